"""Train, validation and test by a hash of the prompt: no prompt crosses, and the order of the rows does not matter."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from align.data.hh import first_human_turn
from align.data.load import Row
from align.errors import UserError

_NOT_WORD = re.compile(r"[\W_]+")


def split_by_prompt(
    rows: Iterable[Mapping[str, Any]], *, fractions: Mapping[str, float], seed: int = 0, key: str = "prompt"
) -> dict[str, list[Row]]:
    """Put each row into one of the named parts by a hash of (seed, normalised prompt).

    A row's part depends on its own prompt, the seed and the fractions only, never on other rows: parts hold about
    `fractions` of the *prompts*, and a row keeps its part when data are added. Transcripts are grouped by their first
    human turn, so that a longer version of one conversation stays on its side too.

    Args:
        fractions: part name -> share; positive, summing to 1.
        key: the column to group by ("text" for rows without a prompt).
    Raises:
        UserError: bad fractions, or a row without the column.
    """
    if any(share <= 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UserError(f"split fractions {dict(fractions)}: give positive shares that sum to 1")
    parts: dict[str, list[Row]] = {name: [] for name in fractions}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get(key), str):
            raise UserError(f"row {number}: no text in column '{key}' to split by; add it or choose another column")
        parts[_part(normal_prompt(row[key]), fractions, seed)].append(dict(row))
    return parts


def held_out_parts(
    rows: Iterable[Mapping[str, Any]], *, share: float, seed: int = 0, key: str = "prompt"
) -> dict[str, list[Row]]:
    """{"train", "validation"} -> rows, with about `share` of the prompts in the second; 0 keeps none out."""
    if not share:
        return {"train": [dict(row) for row in rows], "validation": []}
    return split_by_prompt(rows, fractions={"train": 1 - share, "validation": share}, seed=seed, key=key)


def normal_prompt(prompt: str) -> str:
    """The words of a prompt's first human turn, case and punctuation folded: the key that must not cross a split."""
    opening = first_human_turn(prompt)
    words = _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", opening).casefold()).strip()
    return words or opening.strip()


def _part(text: str, fractions: Mapping[str, float], seed: int) -> str:
    digest = hashlib.sha256(f"{seed}\n{text}".encode("utf-8", "surrogatepass")).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64
    bound = 0.0
    for name, share in fractions.items():
        bound += share
        if draw < bound:
            return name
    return name  # the shares sum to 1 up to rounding
