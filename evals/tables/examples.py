"""Cells that a reader should see: per shift a few, those first whose outcome the shift changed; pure."""

from __future__ import annotations

from collections.abc import Sequence

from align.functional.thinking import answer_of
from evals.items import NO_SHIFT, Fields, Json, Missing, Prompt, digest
from evals.measure.cells import Cell

PER_SHIFT, PLAIN = 2, 4
# what is shown first: what the shift changed, then failures, what no judge could decide, what is as it should be
ORDER = {("GOOD", "BAD"): 0, ("BAD", "GOOD"): 1}
THEN = {"BAD": 2, "wrong": 2, "UNCLEAR": 3, "GOOD": 4, "right": 4}


def examples(cells: Sequence[Cell], *, per_shift: int = PER_SHIFT, plain: int = PLAIN) -> list[Json]:
    """JSON-ready rows {item, group, label, shift, request, prompt, response, outcome, before, why}, shift by shift.

    `outcome` is the verdict, or right and wrong of a closed question; `before` that of the plain prompt. Which items
    are shown depends on outcomes and names alone (a hash), not on how a response reads. Cells that are Missing are not
    shown: the table counts them. Only the first sample of an item is.
    """
    rows = [row for cell in cells if cell.sample == 0 and (row := _row(cell)) is not None]
    before = {row["item"]: row["outcome"] for row in rows if row["shift"] == NO_SHIFT}
    for row in rows:
        row["before"] = None if row["shift"] == NO_SHIFT else before.get(row["item"])
    chosen: list[Json] = []
    for shift in dict.fromkeys(row["shift"] for row in rows):
        ranked = sorted((row for row in rows if row["shift"] == shift), key=_rank)
        chosen += ranked[: plain if shift == NO_SHIFT else per_shift]
    return chosen


def _rank(row: Fields) -> tuple[int, str]:
    changed = ORDER.get((row["before"], row["outcome"]))
    return THEN.get(row["outcome"], 5) if changed is None else changed, digest(row["shift"], row["item"])


def _row(cell: Cell) -> Json | None:
    """One cell for a reader, or None where there is no response to show."""
    known = {name: value for name, value in cell.values.items() if not isinstance(value, Missing)}
    if not isinstance(cell.prompt, Prompt):
        return None
    row: Json = {
        "item": cell.item.id, "group": cell.item.group, "label": cell.item.label, "shift": cell.shift.name,
        "request": cell.item.request, "prompt": "\n\n".join(f"{t.role}: {t.content}" for t in cell.prompt.turns),
        "outcome": None, "why": "",
    }  # fmt: skip
    if "completion" in known:
        text = known["completion"]["text"]
        row["response"], row["written"] = cell.shift.decode(answer_of(text)), text
        if "verdict" in known:
            row |= {"outcome": known["verdict"]["verdict"], "why": known["verdict"]["why"]}
        return row
    if "choices" in known and cell.item.choices:
        value = known["choices"]
        row["response"] = row["written"] = cell.item.choices[value["chosen"]]
        row |= {"outcome": "right" if value["correct"] else "wrong", "why": f"choices: {' | '.join(cell.item.choices)}"}
        return row
    return None
