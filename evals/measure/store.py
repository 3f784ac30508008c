"""Measured values on disk: one JSON line each, appended and never changed, found again by their key.

Resume, cache and incremental suites are this one file: a value whose key is there is not measured again. The key holds
the model's fingerprint, so a re-trained model at the same path finds nothing. What failed for a passing reason is not
written, and asked again by the next run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from align.errors import UserError
from evals.append import append_lines, cut_unfinished_line
from evals.items import Missing
from evals.measure.cells import Cell, Value

try:
    import fcntl
except ImportError:  # Windows: two evaluations with the same --out are not kept apart there
    fcntl = None  # type: ignore[assignment]

FIELDS = ("key", "model", "suite", "item", "shift", "sample", "measurement")
BEGINNING = b'{"key":"'  # of every line that this module writes


def line_of(cell: Cell, *, key: str, measurement: str, model: str) -> str:
    """One value of a cell as a line; ValueError for a number that JSON does not have."""
    value = cell.values[measurement]
    where = (key, model, cell.suite, cell.item.id, cell.shift.name, cell.sample, measurement)
    row: dict[str, object] = dict(zip(FIELDS, where, strict=True))
    if isinstance(value, Missing):
        row["missing"] = {"reason": value.reason, "detail": value.detail}
    else:
        row["value"] = dict(value)
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def is_text(value: Value) -> bool:
    """Whether all text of a value can be written: half of a surrogate pair (a server's reply may hold one) cannot."""
    if isinstance(value, Missing):
        return True
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse(line: bytes) -> tuple[str, Value]:
    """(key, value) of a line; ValueError, KeyError, TypeError or RecursionError for one that is none of ours."""
    row = json.loads(line.decode())
    if not isinstance(row, dict) or any(name not in row for name in FIELDS) or not isinstance(row["key"], str):
        raise ValueError("is not a cell")
    if ("value" in row) == ("missing" in row) or not isinstance(row.get("value", row.get("missing")), dict):
        raise ValueError("has neither a value nor a reason for its absence")
    missing = row.get("missing")
    return row["key"], row["value"] if missing is None else Missing(missing["reason"], missing["detail"], lasting=True)


class CellStore:
    """The values of one file by key, read once; `add` appends a batch and is on the disk when it returns."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.values: dict[str, Value] = {}
        if self.path.exists():
            self._read()
            cut_unfinished_line(self.path)

    def _read(self) -> None:
        """All finished lines; UserError naming file and line for damage, or for a file that this module did not write.

        A value that is no text is left out, and so measured again.
        """
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{self.path}:{number}"
                if not line.endswith(b"\n"):  # what a killed run did not finish
                    if line[: len(BEGINNING)] != BEGINNING[: len(line)]:
                        raise UserError(f"{where}: not a line of a cell store; choose another --out")
                    return
                try:
                    key, value = _parse(line)
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    words = f"{where}: the cell cannot be read ({_short(error)}); delete that line and run again"
                    raise UserError(words) from error
                if is_text(value):
                    self.values[key] = value

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __getitem__(self, key: str) -> Value:
        return self.values[key]

    def add(self, cells: Mapping[str, Cell], *, measurement: str, model: str) -> None:
        """Append one measurement's value of new cells (by key); those Missing for a passing reason stay in memory."""
        values = {key: cell.values[measurement] for key, cell in cells.items() if key not in self.values}
        lasting = [key for key, value in values.items() if not isinstance(value, Missing) or value.lasting]
        if lasting:
            lines = [line_of(cells[key], key=key, measurement=measurement, model=model) for key in lasting]
            append_lines(self.path, lines)
        self.values.update(values)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


@contextmanager
def locked(path: Path | str) -> Iterator[CellStore]:
    """The store of a file that no other process writes meanwhile; UserError when one does."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{path}: another evaluation writes to it; wait for it, or choose another --out") from error
        yield CellStore(path)
