"""Rows of a command's sources: what to train on, demonstrations, texts and prompts, each with its place in errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from align.data.hh import comparisons_in
from align.data.load import Row, iterate_rows
from align.errors import UserError


def load_training_rows(
    sources: Mapping[str, str], *, limit: int | None, drops: Counter[str]
) -> tuple[list[Row] | None, list[dict[str, str]]]:
    """(comparisons or None, prompts): what the sources hold, in one schema; prompts are those of the comparisons.

    Several sources are named by their objective, and each row then carries that name. Rows with `a`, `b` (two responses
    that an annotator or the objectives will judge) pass as they are.
    """
    rows: list[Row] = []
    kinds = set()
    for name, source in sources.items():
        objective = None if name == source else name
        placed = list(iterate_rows(source, limit=limit))
        first = placed[0][1]
        kinds.add(kind := "judged later" if "a" in first else "compared" if "chosen" in first else "prompts")
        if kind == "compared":
            loaded = comparisons_in(placed, source=source, objective=objective, drops=drops)
        else:
            columns = ("prompt", "a", "b") if kind == "judged later" else ("prompt",)
            loaded = [filled(row, columns, place=place) for place, row in placed]
        rows += [{**row, "id": f"{name}:{row['id']}"} if len(sources) > 1 and "id" in row else row for row in loaded]
    if len(kinds) > 1:
        raise UserError(f"--data mixes rows of different kinds ({', '.join(sorted(kinds))}); give one kind")
    return (None if kinds == {"prompts"} else rows), unique_prompts(rows)


def filled(row: Row, columns: Sequence[str], *, place: str) -> Row:
    """The row; UserError naming the place and the column that is missing, empty or not text."""
    for column in columns:
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise UserError(f"{place}: column '{column}' is missing, empty or not text; fix or delete that row")
    return row


def text_rows(source: str, *, limit: int | None) -> list[Row]:
    """Rows with a `text` that is text (it may be empty: cleaning counts those); UserError naming file and line."""
    rows = []
    for place, row in iterate_rows(source, columns=("text",), limit=limit):
        if not isinstance(row["text"], str):
            raise UserError(f"{place}: column 'text' is {type(row['text']).__name__}; make it text or delete that row")
        rows.append(row)
    return rows


def text_prompts(source: str, *, limit: int | None) -> list[str]:
    """The prompts of rows, each once, in order; UserError on a row without one."""
    rows = [filled(row, ("prompt",), place=place) for place, row in iterate_rows(source, columns=("prompt",))]
    return list(dict.fromkeys(row["prompt"] for row in rows))[:limit]


def demonstrations(source: str, *, limit: int | None, drops: Counter[str]) -> list[Row]:
    """Rows {"prompt", "completion"}; of comparisons the chosen side is the demonstration. UserError on an empty one."""
    placed = list(iterate_rows(source, limit=limit))
    if "completion" not in placed[0][1] and "chosen" in placed[0][1]:
        pairs = comparisons_in(placed, source=source, drops=drops)
        return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
    rows = [filled(row, ("prompt", "completion"), place=place) for place, row in placed]
    return [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]


def unique_prompts(rows: Sequence[Row]) -> list[dict[str, str]]:
    """One {"id", "prompt"} row per distinct prompt, in order of first appearance."""
    first: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise UserError(f"prompt row {number}: column 'prompt' is missing or empty; fix that row")
        first.setdefault(row["prompt"], str(row.get("id", number - 1)))
    return [{"id": identity, "prompt": prompt} for prompt, identity in first.items()]
