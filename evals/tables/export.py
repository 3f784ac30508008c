"""Cells with everything a reader needs beside them (request, prompt, decoded response), as JSON lines or Parquet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.items import Missing, Prompt
from evals.measure.engine import Asked
from evals.tables.suite_tables import Found


def full_rows(asked: Sequence[Asked], found: Found, *, model: str, fingerprint: str) -> list[dict[str, Any]]:
    """One flat row per item x shift x sample; a measurement's fields are `measurement.field`, or `.missing`."""
    rows = []
    for i, one in enumerate(asked):
        row: dict[str, Any] = {
            "model": model, "fingerprint": fingerprint, "suite": one.suite, "item": one.item.id,
            "request": one.item.request, "label": one.item.label, "group": one.item.group, "shift": one.shift.name,
            "family": one.shift.family, "mode": one.shift.mode, "sample": one.sample,
            "prompt": json.dumps(one.prompt.jsonable(), ensure_ascii=False) if isinstance(one.prompt, Prompt) else None,
        }  # fmt: skip
        for name, cells in found.items():
            value = cells[i].value
            if isinstance(value, Missing):
                row[f"{name}.missing"] = value.reason
                continue
            row |= {f"{name}.{field}": entry for field, entry in value.items()}
            if name == "completion":
                row["response"] = one.shift.decode(value["text"])
        rows.append(row)
    return rows


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Write rows as JSON lines, or as Parquet where the file is named so; every column in every row."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    filled = [{name: row.get(name) for name in columns} for row in rows]
    temporary = path.with_name(path.name + ".tmp")
    if path.suffix == ".parquet":
        from datasets import Dataset

        Dataset.from_list(filled).to_parquet(str(temporary))
    else:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in filled)
    return temporary.replace(path)
