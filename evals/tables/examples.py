"""Cells that a reader should see: per shift a few, those first whose outcome the shift changed; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.items import NO_SHIFT, Missing, Prompt, digest
from evals.measure.engine import Asked
from evals.tables.suite_tables import Found

PER_SHIFT, PLAIN = 2, 4
# what is shown first: what the shift changed, then failures, what no judge could tell, what is as it should be
ORDER = {("GOOD", "BAD"): 0, ("BAD", "GOOD"): 1}
THEN = {"BAD": 2, "wrong": 2, "UNCLEAR": 3, "GOOD": 4, "right": 4}


def examples(asked: Sequence[Asked], found: Found, *, per_shift: int = PER_SHIFT, plain: int = PLAIN) -> list[Any]:
    """JSON-ready rows {item, group, label, shift, request, prompt, response, outcome, before, why}, shift by shift.

    `outcome` is the verdict, or right and wrong of a closed question; `before` that of the plain prompt. Which items
    are shown depends on outcomes and names alone (a hash), not on how a response reads. Cells that are Missing are not
    shown: the table counts them. Only the first sample of an item is.
    """
    rows = [row for i, one in enumerate(asked) if one.sample == 0 and (row := _row(one, i, found)) is not None]
    before = {row["item"]: row["outcome"] for row in rows if row["shift"] == NO_SHIFT}
    for row in rows:
        row["before"] = None if row["shift"] == NO_SHIFT else before.get(row["item"])
    chosen: list[Any] = []
    for shift in dict.fromkeys(row["shift"] for row in rows):
        mine = sorted((row for row in rows if row["shift"] == shift), key=_rank)
        chosen += mine[: plain if shift == NO_SHIFT else per_shift]
    return chosen


def _rank(row: Mapping[str, Any]) -> tuple[int, str]:
    changed = ORDER.get((row["before"], row["outcome"]))
    return THEN.get(row["outcome"], 5) if changed is None else changed, digest(row["shift"], row["item"])


def _row(one: Asked, place: int, found: Found) -> dict[str, Any] | None:
    """One cell for a reader, or None where there is no response to show."""
    values = {name: cells[place].value for name, cells in found.items()}
    known = {name: value for name, value in values.items() if not isinstance(value, Missing)}
    if not isinstance(one.prompt, Prompt):
        return None
    row: dict[str, Any] = {
        "item": one.item.id, "group": one.item.group, "label": one.item.label, "shift": one.shift.name,
        "request": one.item.request, "prompt": "\n\n".join(f"{t.role}: {t.content}" for t in one.prompt.turns),
        "outcome": None, "why": "",
    }  # fmt: skip
    if "completion" in known:
        text = known["completion"]["text"]
        row["response"], row["written"] = one.shift.decode(text), text
        if "verdict" in known:
            row |= {"outcome": known["verdict"]["verdict"], "why": known["verdict"]["why"]}
        return row
    if "choices" in known and one.item.choices:
        value = known["choices"]
        row["response"] = row["written"] = one.item.choices[value["chosen"]]
        row |= {"outcome": "right" if value["correct"] else "wrong", "why": f"choices: {' | '.join(one.item.choices)}"}
        return row
    return None
