"""A tokenizer for trainers that hand over texts: called with prompts it gives the ids of their prompt format.

TRL's on-policy trainers encode prompts by `processing_class(text=prompts)` and decode responses by `batch_decode`.
Objectives get the prompt and the response as plain text all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.models.formats import Formatter, formatter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def formatted(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, of a class of its own kind whose bare call reads prompts in their format; saved as it was."""
    kind = type(tokenizer)
    if issubclass(kind, _Formatted):
        return tokenizer
    found: PreTrainedTokenizerBase = object.__new__(type(kind.__name__, (_Formatted, kind), {}))
    found.__dict__.update(tokenizer.__dict__, form=formatter(tokenizer))
    return found


class _Formatted:
    """Before a tokenizer's own class: prompts in their format, responses as the format decodes them."""

    form: Formatter  # of the tokenizer itself, which reads what the format renders

    def __call__(self, text: str | Sequence[str], **how: Any) -> Any:
        """`{"input_ids": ...}` of prompts; with any further argument what the tokenizer gives for plain text."""
        if how or isinstance(text, str):
            return self.form.tokenizer(text, **how)
        return {"input_ids": self.form.prompts_ids(text)}

    def batch_decode(self, sequences: Sequence[Sequence[int]], skip_special_tokens: bool = False, **how: Any) -> Any:
        """Texts of responses without special tokens; anything else as the tokenizer decodes it."""
        if how or not skip_special_tokens:
            return self.form.tokenizer.batch_decode(sequences, skip_special_tokens=skip_special_tokens, **how)
        return [self.form.decode(ids) for ids in sequences]

    def save_pretrained(self, save_directory: str | Path, **how: Any) -> Any:
        """Under the name of its own class, the format with it."""
        return self.form.tokenizer.save_pretrained(save_directory, **how)
