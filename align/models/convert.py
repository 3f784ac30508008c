"""Checkpoints that other tools give (a `.gguf` file, a LoRA adapter) saved as an ordinary model directory."""

from __future__ import annotations

from pathlib import Path

from align.errors import UserError
from align.models.load import load_model
from align.models.save import save_model
from align.models.tokenizers import load_tokenizer
from align.runs import is_gguf


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
