"""Measured cells on disk: one JSON line each, appended and never changed, found again by their key.

Resume, cache and incremental suites are this one file: a cell whose key is there is not measured again. The key holds
the model's fingerprint, so a re-trained model at the same path finds nothing. What failed for a passing reason is not
written, and asked again by the next run.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import UserError
from evals.append import append_lines, cut_unfinished_line
from evals.items import Missing

FIELDS = ("key", "model", "suite", "item", "shift", "sample", "measurement")


@dataclass(frozen=True)
class Measured:
    """One cell: what it is a measurement of, and its value (a flat mapping) or Missing."""

    key: str
    model: str
    suite: str
    item: str
    shift: str
    sample: int
    measurement: str
    value: Mapping[str, Any] | Missing

    def line(self) -> str:
        row: dict[str, Any] = {name: getattr(self, name) for name in FIELDS}
        if isinstance(self.value, Missing):
            row["missing"] = {"reason": self.value.reason, "detail": self.value.detail}
        else:
            row["value"] = dict(self.value)
        return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def _parse(line: str) -> Measured:
    row = json.loads(line)
    if not isinstance(row, dict) or any(name not in row for name in FIELDS):
        raise ValueError("is not a cell")
    if ("value" in row) == ("missing" in row) or not isinstance(row.get("value", row.get("missing")), dict):
        raise ValueError("has neither a value nor a reason for its absence")
    missing = row.get("missing")
    value = row["value"] if missing is None else Missing(missing["reason"], missing["detail"], lasting=True)
    return Measured(**{name: row[name] for name in FIELDS}, value=value)


class CellStore:
    """The cells of one file, read once; `add` appends a batch and is on the disk when it returns."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.cells: dict[str, Measured] = {}
        if self.path.exists():
            cut_unfinished_line(self.path)
            self._read()

    def _read(self) -> None:
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    cell = _parse(line)
                except (ValueError, KeyError, TypeError) as error:
                    words = f"{self.path}:{number}: the cell cannot be read ({error}); delete that line and run again"
                    raise UserError(words) from error
                self.cells[cell.key] = cell

    def __contains__(self, key: str) -> bool:
        return key in self.cells

    def __getitem__(self, key: str) -> Measured:
        return self.cells[key]

    def add(self, batch: Iterable[Measured]) -> None:
        """Append new cells; those Missing for a passing reason are kept in memory only."""
        fresh = [cell for cell in batch if cell.key not in self.cells]
        lasting = [c for c in fresh if not isinstance(c.value, Missing) or c.value.lasting]
        if lasting:
            append_lines(self.path, [cell.line() for cell in lasting])
        self.cells.update((cell.key, cell) for cell in fresh)


@contextmanager
def locked(path: Path | str) -> Iterator[CellStore]:
    """The store of a file that no other process writes meanwhile; UserError when one does."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{path}: another evaluation writes to it; wait for it, or choose another --out") from error
        yield CellStore(path)
