"""Cells on disk: one JSON line per item x shift x measurement of one policy, appended and read back checked.

Two kinds. `testbed` (exact): row, preference, shift, item, prompt, values, kl, J, J_star, regret, values_star, kl_star,
malformed. `sampled`: row, preference, shift, item, prompt, sample, completion, values, kl. `item` is the base item (the
cluster of every interval); shift "none" is in distribution.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from align.errors import UserError
from evals.append import append_lines, cut_unfinished_line

Cell = dict[str, Any]
_TEXT = ("row", "shift", "item", "prompt")
_TESTBED = ("kl", "J", "J_star", "regret", "kl_star", "malformed")


def cell_kind(cell: Mapping[str, Any]) -> str:
    """'testbed' for an exact cell (it has J), else 'sampled'."""
    return "testbed" if "J" in cell else "sampled"


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(_number(entry) for entry in value)


def fault(cell: object) -> str | None:
    """What is wrong with a cell, in words, or None."""
    if not isinstance(cell, Mapping):
        return "is not a JSON object"
    lists = ("preference", "values", "values_star") if "J" in cell else ("preference", "values")
    numbers = _TESTBED if "J" in cell else ("kl", "sample")
    texts = _TEXT if "J" in cell else (*_TEXT, "completion")
    for name in (*texts, *lists, *numbers):
        if name not in cell:
            return f"has no '{name}'"
    for name in texts:
        if not isinstance(cell[name], str):
            return f"has '{name}' that is not text"
    for name in lists:
        if not _numbers(cell[name]) or len(cell[name]) != len(cell["preference"]):
            return f"needs '{name}' to be finite numbers, one per objective of its preference"
    for name in numbers:
        if not _number(cell[name]):
            return f"has '{name}' that is not a finite number"
    return None


def append_cells(path: Path | str, cells: Iterable[Mapping[str, Any]]) -> int:
    """Append cells to a JSONL file, flushed to disk; returns how many.

    A last line without its newline was never finished (a killed process): it is cut off first. UserError naming the
    cell for one that breaks the schema; nothing of the batch is then written.
    """
    lines = []
    for number, cell in enumerate(cells, start=1):
        wrong = fault(cell)
        if wrong:
            raise UserError(f"{path}: cell {number} of the batch {wrong}; see its schema in front_cells.py")
        lines.append(json.dumps(cell, ensure_ascii=False, allow_nan=False) + "\n")
    path = Path(path)
    cut_unfinished_line(path)
    append_lines(path, lines)
    return len(lines)


def read_cells(path: Path | str) -> list[Cell]:
    """All cells of a JSONL file, in order. UserError naming file and line for anything that is not a valid cell."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file of cells; run the evaluation first") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}); run the evaluation again") from error
    cells: list[Cell] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            cell = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error.msg}); evaluate anew") from error
        wrong = fault(cell)
        if wrong:
            raise UserError(f"{path}:{number}: the cell {wrong}; evaluate anew")
        cells.append(cell)
    if not cells:
        raise UserError(f"{path}: holds no cells; run the evaluation first")
    _check_alike(path, cells)
    return cells


def _check_alike(path: Path, cells: list[Cell]) -> None:
    kinds = {cell_kind(cell) for cell in cells}
    widths = {len(cell["preference"]) for cell in cells}
    if len(kinds) > 1 or len(widths) > 1:
        raise UserError(f"{path}: mixes exact and sampled cells, or different numbers of objectives; keep one per file")
    seen: set[tuple[Any, ...]] = set()
    for number, cell in enumerate(cells, start=1):
        key = (cell["row"], *cell["preference"], cell["shift"], cell["item"], cell["prompt"], cell.get("sample"))
        if key in seen:
            raise UserError(f"{path}: cell {number} repeats row, preference, shift, item, prompt and sample; keep one")
        seen.add(key)
