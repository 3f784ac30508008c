"""Finished runs on disk and the models in them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.errors import UserError

RUN_FILE = "run.json"


@dataclass(frozen=True)
class Run:
    """A finished stage on disk."""

    path: Path
    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]
    fingerprint: str
    metrics: dict[str, Any]
    ledger: dict[str, float]
    environment: dict[str, Any] = field(default_factory=dict)


def open_run(path: str | Path) -> Run:
    """Read a finished run; UserError when it is missing or was interrupted."""
    path = Path(path)
    file = path / RUN_FILE
    if not file.is_file():
        if path.with_name(path.name + ".partial").is_dir():
            raise UserError(f"{path} was interrupted before it finished; run its command again to resume it")
        raise UserError(f"{path} is not a run directory (no {RUN_FILE}); give the --out folder of a finished stage")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        for name in ("config", "inputs", "metrics", "ledger", "environment"):
            if not isinstance(content[name], dict):
                raise TypeError(f"{name} is no object")
        if not all(isinstance(cost, (int, float)) for cost in content["ledger"].values()):
            raise TypeError("the ledger holds more than numbers")
        return Run(path=path, **{f.name: content[f.name] for f in dataclasses.fields(Run) if f.name != "path"})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{file} is damaged, or another program wrote it ({reason}); move {path} away and run its stage again"
        ) from error


def is_gguf(path: str | Path) -> bool:
    """Whether a path is a file in the format of llama.cpp."""
    return Path(path).suffix == ".gguf" and Path(path).is_file()


def split_head(path: str) -> tuple[str, str | None]:
    """(Place of a model, name or number of its output) of DIR@LABEL; a place that exists, or has no label, is whole."""
    place, at, label = path.rpartition("@")
    return (place, label) if at and place and label and not Path(path).exists() else (path, None)


def model_dir(path: str | Path) -> str:
    """What `from_pretrained` takes, from a run directory, a Hugging Face model directory, or a hub id.

    A `.gguf` file is given back as it is: `load_model` and `load_tokenizer` read it.
    """
    folder = Path(path)
    if is_gguf(folder):
        return str(folder)
    if folder.with_name(folder.name + ".partial").is_dir() and not folder.exists():
        open_run(folder)
    if not folder.is_dir():
        beside = folder.parent != Path(".") and folder.parent.is_dir()  # runs/typo is a path, not the hub's runs/typo
        if beside or str(path).startswith((".", "/", "~")) or str(path).count("/") > 1:
            raise UserError(f"model directory {path} does not exist; give a run, a Hugging Face directory or a hub id")
        return str(path)
    if (folder / "model").is_dir():
        if not (folder / RUN_FILE).is_file() and any(folder.glob(f"*/{RUN_FILE}")):
            raise UserError(f"{folder} is a folder of runs; name one of them")
        folder = folder / "model"
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} has no config.json; give a run directory, a Hugging Face directory or a hub id")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise UserError(f"{folder} has no tokenizer; save one there with tokenizer.save_pretrained({str(folder)!r})")
    return str(folder)
