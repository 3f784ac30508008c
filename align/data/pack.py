"""Texts as fixed blocks of token ids for pretraining: documents joined by the end token, then cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from align.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def pack(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    tail: Literal["drop", "keep"] = "drop",
    counts: Counter[str] | None = None,
) -> Dataset:
    """Blocks of exactly `length` ids in a data set with the one column `input_ids`.

    The stream is text, end token, text, end token, ...; a block may start in the middle of a document and hold several.
    What is left after the last full block (at most length - 1 tokens of the last documents) is dropped, or with
    `tail="keep"` becomes one shorter block.

    Args:
        counts: filled with "documents", "tokens", "blocks", "tail tokens dropped" and "tail tokens kept".
    Raises:
        UserError: length below 2, a tokenizer without an end token, or fewer tokens than one block with tail="drop".
    """
    from datasets import Dataset

    if length < 2:
        raise UserError(f"block length {length}: give at least 2 tokens")
    stream = token_stream(texts, tokenizer)
    left = len(stream) % length
    full = len(stream) - left
    blocks: list[np.ndarray] = list(stream[:full].reshape(-1, length))
    if left and tail == "keep":
        blocks.append(stream[full:])
    if not blocks:
        raise UserError(f"{len(stream)} tokens do not fill one block of {length}; give more text or a shorter length")
    if counts is not None:
        counts["documents"] += len(texts)
        counts["tokens"] += len(stream)
        counts["blocks"] += len(blocks)
        counts[f"tail tokens {'kept' if tail == 'keep' else 'dropped'}"] += left
    return Dataset.from_dict({"input_ids": blocks})


def token_stream(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """All texts as one int32 array of ids, each followed by the end token; UserError without an end token."""
    import numpy as np

    if tokenizer.eos_token_id is None:
        raise UserError(f"{tokenizer.name_or_path or 'tokenizer'}: it has no end token; set eos_token")
    pieces = [np.array([*ids, tokenizer.eos_token_id], dtype=np.int32) for ids in encode(texts, tokenizer)]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32)


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 1000) -> list[list[int]]:
    """Token ids of each text, nothing added around it and nothing cut off."""
    ids: list[list[int]] = []
    for start in range(0, len(texts), batch_size):
        batch = list(texts[start : start + batch_size])
        ids.extend(tokenizer(batch, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])
    return ids
