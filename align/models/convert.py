"""Checkpoints that other tools give (a `.gguf` file, a LoRA adapter) saved as an ordinary model directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from align.errors import UserError
from align.models.load import load_model
from align.models.save import save_model
from align.models.stored.adapters import is_adapter
from align.models.tokenizers import load_tokenizer
from align.runs import is_gguf, model_dir

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def gguf_to_folder(file: str | Path, folder: str | Path) -> Path:
    """Save a `.gguf` file as weights, configs, tokenizer and chat template in `folder`, and return it.

    UserError where `folder` already holds something, or `file` cannot be read.
    """
    if not is_gguf(file):
        raise UserError(f"{file} is not a .gguf file; give one")
    return to_folder(file, folder)


def to_folder(source: str | Path, folder: str | Path) -> Path:
    """Save whatever `load_model` reads (an adapter merged, a file unpacked) as an ordinary model directory."""
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give a new folder")
    tokenizer, model = load_tokenizer(source), load_model(source)
    for config in (model.config, model.generation_config):
        config.pad_token_id = tokenizer.pad_token_id
        config.eos_token_id = tokenizer.eos_token_id if config.eos_token_id is None else config.eos_token_id
    return save_model(model, tokenizer, folder)


@contextmanager
def readable(model: PreTrainedModel, source: str) -> Iterator[None]:
    """Within the block a model that was made of an adapter or a `.gguf` file names a folder that holds it whole.

    TRL reads the reference of a fully trained policy from there; the folder is gone after the block.
    """
    source = model_dir(source)
    if not (is_adapter(source) or is_gguf(source)):
        yield
        return
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        model.config._name_or_path = folder
        try:
            yield
        finally:
            model.config._name_or_path = source
