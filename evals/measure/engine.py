"""The engine: cells x measurements on one backend, batch by batch into the store; cells in, cells out, in order.

Synchronous. A value that is in the store is never asked for again; a killed run loses at most the batch in flight. The
result is a function of the plan and the model alone, whatever order or number of sittings it was measured in.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

from evals.backends.base import Backend
from evals.items import Fields, Missing, Prompt, digest, number_of
from evals.measure.cells import Cell, Value
from evals.measure.measurements import Measurement
from evals.measure.store import CellStore, is_text
from evals.shifts.base import Probe

SCHEMA = 2


Encode = Callable[[Prompt], list[int] | Missing]


def cell_key(cell: Cell, *, measurement: Measurement, model: str, encode: Encode | None = None) -> str:
    """The key of a value: schema, model, measurement with its configuration, what is asked, place, what is read.

    What is asked stands there as its turns and, of a model in memory, as the ids that `encode` makes of them.
    """
    read = {name: _plain(cell.read(name)) for name in measurement.needs}
    probe = cell.probe() if "probe" in measurement.needs else None
    prompt = probe.prompt if isinstance(probe, Probe) else cell.prompt
    turns = prompt.jsonable() if isinstance(prompt, Prompt) else prompt.reason
    ids = encode(prompt) if encode is not None and isinstance(prompt, Prompt) else None
    where = (cell.suite, cell.item.id, cell.shift.name, number_of(cell.shift.version), cell.sample)
    asked = turns, ids.reason if isinstance(ids, Missing) else ids
    return digest(SCHEMA, model, measurement.name, measurement.config(), asked, where, read)


def _plain(value: Value) -> Fields:
    return {"missing": value.reason} if isinstance(value, Missing) else dict(value)


Progress = Callable[[str, int, int, float], None]


def silent(name: str, done: int, total: int, seconds: float) -> None:
    """No progress."""


def to_stderr(name: str, done: int, total: int, seconds: float) -> None:
    """A line that shows how far a measurement is, and about how long it still takes."""
    left = f", about {seconds / done * (total - done):.0f} s left" if 0 < done < total else ""
    end = "\n" if done >= total or not sys.stderr.isatty() else "\r"
    print(f"{name}: {done}/{total}{left}   ", end=end, file=sys.stderr, flush=True)


class Engine:
    """Measures with one backend into one store."""

    def __init__(self, backend: Backend, *, store: CellStore, batch: int = 64, progress: Progress = silent) -> None:
        self.backend, self.store, self.batch, self.progress = backend, store, batch, progress

    def run(self, cells: Sequence[Cell], *, measurements: Sequence[Measurement]) -> list[Cell]:
        """The same cells with the value of every measurement. Measurements come in an order that serves their needs."""
        measured, model = list(cells), self.backend.fingerprint
        encode = getattr(self.backend, "encode", None)  # of a model in memory
        encode = encode and lru_cache(None)(encode)
        for measurement in measurements:
            keys = [cell_key(cell, measurement=measurement, model=model, encode=encode) for cell in measured]
            self._measure(dict(zip(keys, measured, strict=True)), measurement)
            measured = [
                cell.measured(measurement.name, self.store[key]) for key, cell in zip(keys, measured, strict=True)
            ]
        return measured

    def _measure(self, cells: Mapping[str, Cell], measurement: Measurement) -> None:
        """Every value that the store lacks: first what is Missing before anything is asked, then batch by batch."""
        fresh = {key: cell for key, cell in cells.items() if key not in self.store}
        absent = {key: absence for key, cell in fresh.items() if (absence := _absence(cell, measurement)) is not None}
        self._keep(fresh, absent, measurement)
        todo = {key: cell for key, cell in fresh.items() if key not in absent}
        start, done = time.monotonic(), 0
        for keys in self._batches(todo):
            values = measurement.measure([todo[key] for key in keys], backend=self.backend)
            self._keep(todo, dict(zip(keys, values, strict=True)), measurement)
            done += len(keys)
            self.progress(measurement.name, done, len(todo), time.monotonic() - start)

    def _keep(self, cells: Mapping[str, Cell], values: Mapping[str, Value], measurement: Measurement) -> None:
        measured = {
            key: cells[key].measured(measurement.name, value if is_text(value) else NO_TEXT)
            for key, value in values.items()
        }
        self.store.add(measured, measurement=measurement.name, model=self.backend.fingerprint)

    def _batches(self, cells: Mapping[str, Cell]) -> Iterator[list[str]]:
        """Longest first, so that a full memory shows at once and a batch holds prompts of like length."""
        length = getattr(self.backend, "length", None)
        lengths = {key: length(cell.prompt) if length else len(str(cell.prompt)) for key, cell in cells.items()}
        order = sorted(cells, key=lambda key: -lengths[key])  # a stable sort: of equal length, in the order given
        for start in range(0, len(order), self.batch):
            yield order[start : start + self.batch]


NO_TEXT = Missing("unencodable", "the answer holds half of a surrogate pair, which is no text")


def _absence(cell: Cell, measurement: Measurement) -> Missing | None:
    """Why a measurement has nothing to measure: there is no prompt, or what it reads is Missing."""
    if isinstance(cell.prompt, Missing):
        return cell.prompt
    read = (cell.read(name) for name in measurement.needs)
    return next((value for value in read if isinstance(value, Missing)), None)
