"""Rows cleaned for training: Unicode and control characters fixed, bad rows dropped and counted by reason."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from align.data.dedup import Document, exact_duplicates, near_duplicates
from align.data.load import Row
from align.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


COMPARISON_FIELDS = ("prompt", "chosen", "rejected")

_LINE_ENDS = re.compile("\r\n?|[\x85\u2028\u2029]")
# C0 and C1 controls but tab and line feed, half surrogates, byte-order marks, private use "not a character" codes
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")


@dataclass(frozen=True)
class CleanConfig:
    """What a row must be like; every limit left at None (or False) is off."""

    unicode_form: Literal["NFC", "NFKC", "NFD", "NFKD"] | None = "NFC"
    strip_control_characters: bool = True
    special_tokens: tuple[str, ...] = ("<|pad|>", "<|end|>")  # deleted from texts: as text they would end a document
    min_characters: int = 1  # of a text; of each completion of a comparison, white space at the ends not counted
    max_characters: int | None = None  # of a text; of prompt + the longer completion
    max_tokens: int | None = None  # same text as max_characters, counted by the tokenizer that is passed
    max_nonletter_share: float | None = 0.6  # of the characters that are not white space; text of >= 20 characters
    max_repeated_line_share: float | None = 0.5  # lines that repeat an earlier line; text of >= 4 non-empty lines
    exact_duplicates: bool = True
    near_duplicates: bool = True
    near_threshold: float = 0.8
    near_words: int = 5
    near_permutations: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_nonletter_share", "max_repeated_line_share", "near_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(f"CleanConfig {name}={value}: give a share above 0 and at most 1")
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise UserError(f"CleanConfig max_characters={self.max_characters} is below min_characters: raise it")


def clean_texts(
    rows: Sequence[Mapping[str, Any]],
    config: CleanConfig | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[list[Row], Counter[str]]:
    """Clean rows with a `text` column: (kept rows with fixed text, number of drops by reason).

    Rows keep their other columns and their order. `tokenizer` is needed for `max_tokens` only.

    Raises:
        UserError: a row without text, or `max_tokens` without a tokenizer.
    """

    def fault(row: Row, config: CleanConfig, count_tokens: Callable[[str], int]) -> str:
        return _length_fault(row["text"].strip(), row["text"], config, count_tokens) or rubbish(row["text"], config)

    return _cleaned(rows, config or CleanConfig(), fields=("text",), tokenizer=tokenizer, fault=fault)


def clean_comparisons(
    rows: Sequence[Mapping[str, Any]],
    config: CleanConfig | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[list[Row], Counter[str]]:
    """Clean rows with `prompt`, `chosen`, `rejected`: (kept rows with fixed texts, number of drops by reason).

    Beside the faults of a text: a completion that is empty after mending, and two completions that are the same. The
    rubbish filter reads the completions, not the prompt: odd prompts are what a safety data set is about.

    Raises:
        UserError: a row without these columns, or `max_tokens` without a tokenizer.
    """
    return _cleaned(
        rows, config or CleanConfig(), fields=COMPARISON_FIELDS, tokenizer=tokenizer, fault=_comparison_fault
    )


def _cleaned(
    rows: Sequence[Mapping[str, Any]], config: CleanConfig, *, fields: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None, fault: Callable[[Row, CleanConfig, Callable[[str], int]], str],
) -> tuple[list[Row], Counter[str]]:  # fmt: skip
    """Rows with these text fields cleaned, without those that have a `fault` (why, or "") or repeat an earlier one."""
    count_tokens = _token_counter(config, tokenizer)
    drops: Counter[str] = Counter()
    kept = []
    for row in _with_fields(rows, fields):
        fixed = {**row, **{field: clean_text(row[field], config) for field in fields}}
        reason = fault(fixed, config, count_tokens)
        if reason:
            drops[reason] += 1
        else:
            kept.append(fixed)
    return _without_repeats(kept, [tuple(row[field] for field in fields) for row in kept], config, drops), drops


def clean_text(text: str, config: CleanConfig | None = None) -> str:
    """`text` in one Unicode form, with "\\n" line ends, without control characters and special-token spellings."""
    config = config or CleanConfig()
    if config.strip_control_characters:
        text = _CONTROLS.sub("", _LINE_ENDS.sub("\n", text))
    while any(token in text for token in config.special_tokens):  # again: a deletion can join the halves of another
        for token in config.special_tokens:
            text = text.replace(token, "")
    return unicodedata.normalize(config.unicode_form, text) if config.unicode_form else text


def rubbish(text: str, config: CleanConfig) -> str:
    """Why `text` looks like no language at all, or ""."""
    solid = [c for c in text if not c.isspace()]
    if config.max_nonletter_share is not None and len(solid) >= 20:
        # marks (Mn, Mc) belong to letters in many scripts, so they count as letters
        letters = sum(c.isalpha() or unicodedata.category(c)[0] == "M" for c in solid)
        if 1 - letters / len(solid) > config.max_nonletter_share:
            return f"more than {config.max_nonletter_share:g} of the characters are no letters"
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if config.max_repeated_line_share is not None and len(lines) >= 4:
        repeated = 1 - len(set(lines)) / len(lines)
        if repeated > config.max_repeated_line_share:
            return f"more than {config.max_repeated_line_share:g} of the lines repeat another"
    return ""


def _comparison_fault(row: Mapping[str, Any], config: CleanConfig, count_tokens: Callable[[str], int]) -> str:
    chosen, rejected = row["chosen"].strip(), row["rejected"].strip()
    if not chosen or not rejected:
        return "a completion is empty after cleaning"
    if chosen == rejected:
        return "chosen and rejected are the same"
    longer = row["prompt"] + max(row["chosen"], row["rejected"], key=len)
    fault = _length_fault(min(chosen, rejected, key=len), longer, config, count_tokens)
    return fault or rubbish(row["chosen"], config) or rubbish(row["rejected"], config)


def _length_fault(shortest: str, longest: str, config: CleanConfig, count_tokens: Callable[[str], int]) -> str:
    if len(shortest) < config.min_characters:
        return f"shorter than {config.min_characters} characters"
    if config.max_characters is not None and len(longest) > config.max_characters:
        return f"longer than {config.max_characters} characters"
    if config.max_tokens is not None and count_tokens(longest) > config.max_tokens:
        return f"longer than {config.max_tokens} tokens"
    return ""


def _token_counter(config: CleanConfig, tokenizer: PreTrainedTokenizerBase | None) -> Callable[[str], int]:
    if config.max_tokens is not None and tokenizer is None:
        raise UserError(f"CleanConfig max_tokens={config.max_tokens} needs a tokenizer; pass one or use max_characters")
    return lambda text: 0 if tokenizer is None else len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _with_fields(rows: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    for number, row in enumerate(rows, start=1):
        for field in fields:
            if not isinstance(row.get(field), str):
                raise UserError(f"row {number}: column '{field}' is missing or not text; fix it before cleaning")
    return rows


def _without_repeats(
    rows: Sequence[Row], documents: Sequence[Document], config: CleanConfig, drops: Counter[str]
) -> list[Row]:
    exact = exact_duplicates(documents) if config.exact_duplicates else set()
    left = [position for position in range(len(rows)) if position not in exact]
    near: set[int] = set()
    if config.near_duplicates:
        found = near_duplicates(
            [documents[position] for position in left],
            threshold=config.near_threshold,
            words=config.near_words,
            permutations=config.near_permutations,
            seed=config.seed,
        )
        near = {left[position] for position in found}
    if exact:
        drops["exact duplicate of an earlier row"] += len(exact)
    if near:
        drops["near duplicate of an earlier row"] += len(near)
    return [rows[position] for position in left if position not in near]
