"""The tokenizer of a run, a model directory or a hub id, with an end and a padding token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError
from align.models.gguf import gguf_tokenizer
from align.models.load import first_line
from align.runs import is_gguf, model_dir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def require_special_tokens(tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """UserError unless the tokenizer has an end and a padding token; a missing padding token becomes the end token."""
    if tokenizer.eos_token_id is None:
        raise UserError(f"{place} has no end-of-text token; set tokenizer.eos_token and save it again")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a run, a model directory or a hub id, with a padding token; UserError when there is none."""
    from transformers import AutoTokenizer

    source = model_dir(path)
    try:
        tokenizer = gguf_tokenizer(source) if is_gguf(source) else AutoTokenizer.from_pretrained(source)
    except UserError:
        raise
    except Exception as error:  # a damaged file shows as TypeError, KeyError or a bare Exception of the Rust library
        raise UserError(f"no tokenizer could be read from {source} ({first_line(error)}); save one there") from error
    require_special_tokens(tokenizer, f"the tokenizer of {source}")
    tokenizer.padding_side = "right"
    return tokenizer
