"""Cells with everything a reader needs next to them (request, prompt, decoded response), as JSON lines or Parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError
from align.functional.thinking import answer_of
from align.runs import write_text
from align.runs.folders import beside
from evals.items import Json, Missing, Prompt
from evals.measure.cells import Cell, Evaluated

if TYPE_CHECKING:
    from evals.backends.base import Backend
    from evals.backends.reward_model import RewardBackend

RESERVED = ("cells.jsonl", "outcomes.jsonl", "shifts.jsonl")  # what an evaluation's folder holds in any case


def export_file(out: Path, *, suite: str, kind: str) -> Path:
    """The file of a suite's exported cells; UserError where its name is that of a file of the evaluation itself."""
    file = out / (f"{suite}.eval" if kind == "inspect" else f"{suite}.{kind}")
    if file.name in RESERVED:
        raise UserError(f"{file} is a file of the evaluation itself; rename the suite's file or export otherwise")
    return file


def full_rows(cells: Sequence[Cell], *, model: str, fingerprint: str) -> list[Json]:
    """One flat row per item x shift x sample; a measurement's fields are `measurement.field`, or `.missing`."""
    rows = []
    for cell in cells:
        row: Json = {
            "model": model, "fingerprint": fingerprint, "suite": cell.suite, "item": cell.item.id,
            "request": cell.item.request, "label": cell.item.label, "group": cell.item.group, "shift": cell.shift.name,
            "family": cell.shift.family, "mode": cell.shift.mode, "sample": cell.sample,
            "prompt": json.dumps(cell.question.jsonable(), ensure_ascii=False)
            if isinstance(cell.prompt, Prompt) else None,
        }  # fmt: skip
        for name, value in cell.values.items():
            if isinstance(value, Missing):
                row[f"{name}.missing"] = value.reason
                continue
            row |= {f"{name}.{field}": entry for field, entry in value.items()}
            if name == "completion":
                row["response"] = cell.shift.decode(answer_of(value["text"]))
        rows.append(row)
    return rows


def export_cells(results: Mapping[str, Evaluated], *, kind: str, backend: Backend | RewardBackend, out: Path) -> None:
    """The cells of every suite as jsonl, parquet or inspect, one file a suite."""
    for name, result in results.items():
        rows = full_rows(result.cells, model=backend.name, fingerprint=backend.fingerprint)
        file = export_file(out, suite=name, kind=kind)
        if kind == "inspect":
            from evals.bridges.inspect_export import write_inspect_log

            write_inspect_log(rows, file)
        else:
            write_rows(rows, file)


def write_rows(rows: Sequence[Json], path: Path) -> Path:
    """Write rows as JSON lines, or as Parquet where the file is named so; every column in every row."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    filled = [{name: row.get(name) for name in columns} for row in rows]
    if path.suffix == ".parquet":
        from datasets import Dataset

        temporary = beside(path, "unfinished")
        Dataset.from_list(filled).to_parquet(str(temporary))
        return temporary.replace(path)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in filled))
    return path
