"""A padding token that the model has a row for: batches of unlike lengths read it, though nothing is learned of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from align.errors import UserError
from align.models.stored.adapters import EMBEDDINGS, base_of, is_adapter, shapes
from align.runs import is_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def embedding_rows(source: str) -> int | None:
    """How many token ids a checkpoint has embeddings for, by its config (an adapter: its own, else its base's); None
    where that cannot be known.
    """
    from transformers import AutoConfig

    if is_gguf(source):
        return None
    try:
        if is_adapter(source):
            whole = [(n, shape) for n, shape in shapes(source).items() if n.endswith(EMBEDDINGS) and "lora_" not in n]
            return whole[0][1][0] if whole else embedding_rows(base_of(source))
        return getattr(AutoConfig.from_pretrained(source).get_text_config(), "vocab_size", None)
    except Exception:  # the loader of models reports what is wrong with it
        return None


def require_pad_row(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Pad with the end token where the padding token is none of the model's, with a line on stderr.

    UserError where the end token is none of them either.
    """
    rows = embedding_rows(source)
    if rows is None or tokenizer.pad_token_id < rows:
        return
    if tokenizer.eos_token_id >= rows:
        raise UserError(
            f"the tokenizer of {source} ends texts with id {tokenizer.eos_token_id}, but the model has {rows} ids; "
            "resize its embeddings and save it again"
        )
    print(
        f"align: {source} pads with {tokenizer.pad_token!r}, id {tokenizer.pad_token_id} of a model of {rows} ids; "
        f"padding with {tokenizer.eos_token!r} instead",
        file=sys.stderr,
    )
    tokenizer.pad_token = tokenizer.eos_token
