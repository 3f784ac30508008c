"""Judged responses from a string of letters, for tables of outcomes."""

from __future__ import annotations

from collections.abc import Sequence

from evals.items import Missing
from evals.tables.outcomes import Outcome


def rows(shift: str, verdicts: str, *, harmful: bool = True, groups: Sequence[str] = ()) -> list[Outcome]:
    """One outcome per letter: G, B, U, or M for an outage and C for a prompt that does not fit."""
    words: dict[str, str | Missing] = {
        "G": "GOOD", "B": "BAD", "U": "UNCLEAR", "M": Missing("http_500"), "C": Missing("context", lasting=True),
    }  # fmt: skip
    start = "h" if harmful else "b"
    return [
        Outcome(f"{start}{i}", f"{start}{i}", shift, words[v], harmful, groups[i] if groups else "")
        for i, v in enumerate(verdicts)
    ]
