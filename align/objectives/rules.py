"""Objectives that are rules on the text: length, keywords, patterns. Each says which direction is better."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.errors import UserError
from align.models import load_tokenizer
from align.objectives.base import as_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


UNITS = ("word", "character", "token")


class Length:
    """The length of the completion in words, characters or tokens; `longer_is_better=False` turns the sign.

    Words are runs of non-blank characters; tokens need `tokenizer`, the path of one, and count no end token.
    """

    def __init__(
        self, per: str = "word", *, longer_is_better: bool = True, tokenizer: str | None = None, name: str | None = None
    ) -> None:
        if per not in UNITS:
            raise UserError(f"length per {per!r} is not one of {', '.join(UNITS)}")
        if per == "token" and tokenizer is None:
            raise UserError('length per "token" needs tokenizer=, the directory or hub id of one')
        self.per = per
        self.sign = 1.0 if longer_is_better else -1.0
        self.tokenizer = tokenizer
        self.__name__ = name or ("length" if longer_is_better else "brevity")
        self._loaded: PreTrainedTokenizerBase | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_loaded": None}

    def count(self, text: str) -> int:
        """Units in `text`."""
        if self.per == "word":
            return len(text.split())
        if self.per == "character":
            return len(text)
        if self._loaded is None:
            assert self.tokenizer is not None
            self._loaded = load_tokenizer(self.tokenizer)
        return len(self._loaded(text, add_special_tokens=False)["input_ids"])

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float | None]:
        _, completions = as_texts(prompts, completions)
        return [self.sign * self.count(completion) for completion in completions]


class Keywords:
    """How many of `words` the completion contains (each counted once), times `reward`; whole words, any case.

    A negative `reward` makes them unwanted. `at_most` caps the count.
    """

    def __init__(
        self, words: Sequence[str], *, reward: float = 1.0, at_most: int | None = None, name: str = "keywords"
    ) -> None:
        if isinstance(words, str) or not words or not all(w.strip() for w in words):
            raise UserError("keywords needs words=, a list of at least one word, none of them blank")
        self.words = tuple(words)
        self.reward = float(reward)
        self.at_most = at_most
        self.__name__ = name
        self._patterns = [re.compile(rf"(?<!\w){re.escape(w.strip())}(?!\w)", re.IGNORECASE) for w in self.words]

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float | None]:
        _, completions = as_texts(prompts, completions)
        found = [sum(bool(p.search(completion)) for p in self._patterns) for completion in completions]
        return [self.reward * (n if self.at_most is None else min(n, self.at_most)) for n in found]


class Pattern:
    """`reward` where the regular expression is found in the completion, else 0."""

    def __init__(self, pattern: str, *, reward: float = 1.0, name: str = "pattern") -> None:
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise UserError(f"pattern {pattern!r} is not a regular expression ({error})") from error
        self.reward = float(reward)
        self.__name__ = name

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float | None]:
        _, completions = as_texts(prompts, completions)
        return [self.reward if self.pattern.search(completion) else 0.0 for completion in completions]
