"""Scores of given prompts and completions by any objectives, one JSON line for each row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from align.data.load import Row, iterate_rows
from align.errors import UserError
from align.objectives.base import Objective
from align.objectives.by_content import columns_read
from align.runs.values import write_text

COLUMNS = ("prompt", "completion")


def rows_to_score(source: str | Path, *, limit: int | None = None) -> list[Row]:
    """The rows of a file, each with a prompt and a completion of text; UserError names the first bad row and its fault.

    Nothing is scored when one row is bad: a file of scores has a line for every row of its source, in order.
    """
    rows = []
    for place, row in iterate_rows(source, columns=COLUMNS, limit=limit):
        for name in COLUMNS:
            if not isinstance(row[name], str):
                raise UserError(f"{place}: {name} is {str(row[name])[:60]!r}, not text; make it a string")
        if not row["prompt"].strip():
            raise UserError(f"{place}: the prompt is empty; give the text that the completion answers")
        rows.append(row)
    return rows


def score_rows(rows: list[Row], objectives: Mapping[str, Objective]) -> list[dict[str, object]]:
    """Each row with `scores`: a number per objective, None where it does not apply; objectives get the columns of the
    rows that they read. UserError for another count.
    """
    prompts, completions = ([row[name] for row in rows] for name in COLUMNS)
    columns = {}
    for name, objective in objectives.items():
        read = [c for c in columns_read(objective) if any(row.get(c) is not None for row in rows)]
        found = list(objective(prompts, completions, **{c: [row.get(c) for row in rows] for c in read}))
        if len(found) != len(rows):
            raise UserError(f"objective {name} gave {len(found)} scores for {len(rows)} rows")
        columns[name] = [None if score is None else float(score) for score in found]
    return [{**row, "scores": {name: column[i] for name, column in columns.items()}} for i, row in enumerate(rows)]


def write_scores(path: Path, scored: list[dict[str, object]]) -> None:
    """As JSON lines, the file whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in scored))


def means(scored: list[dict[str, object]]) -> dict[str, str]:
    """Objective -> its mean and how many rows it applies to, in words."""
    found = {}
    tables = [row["scores"] for row in scored]
    for name in tables[0] if tables and isinstance(tables[0], dict) else ():
        known = [table[name] for table in tables if isinstance(table, dict) and table[name] is not None]
        found[name] = f"{sum(known) / len(known):.4g} over {len(known)} rows" if known else "applies to no row"
    return found
