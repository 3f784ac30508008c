"""The engine: suite x shifts x measurements on one backend, batch by batch into the store; lists in, lists out.

Synchronous. A batch that is in the store is never asked again; a killed run loses at most the batch in flight. The
result is a function of the plan and the model alone, whatever order or number of sittings it was measured in.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from evals.backends.base import Backend
from evals.items import Item, Missing, Prompt, digest, seed_of
from evals.measure.measurements import Measurement, Request, Value
from evals.measure.store import CellStore, Measured
from evals.shifts.base import Shift

SCHEMA = 1


@dataclass(frozen=True)
class Asked:
    """One item under one shift (and one sample of it), with the prompt, or why there is none."""

    suite: str
    item: Item
    shift: Shift
    sample: int
    prompt: Prompt | Missing


def ask(items: Sequence[Item], *, suite: str, shifts: Sequence[Shift], samples: int = 1) -> list[Asked]:
    """Every item under every shift, in that order. A shift draws from a generator seeded by item, shift and sample."""
    asked = []
    for shift in shifts:
        for item in items:
            for sample in range(samples):
                rng = Random(seed_of("shift", suite, item.id, shift.name, sample))
                asked.append(Asked(suite, item, shift, sample, _with_turns(item, shift.encode(item.request, rng))))
    return asked


def _with_turns(item: Item, prompt: Prompt | Missing) -> Prompt | Missing:
    """The item's earlier turns stand before the shifted request, after a system turn."""
    if isinstance(prompt, Missing) or not item.before:
        return prompt
    system = tuple(turn for turn in prompt.turns if turn.role == "system")
    rest = tuple(turn for turn in prompt.turns if turn.role != "system")
    return Prompt((*system, *item.before, *rest))


def cell_key(asked: Asked, *, measurement: Measurement, model: str, earlier: Mapping[str, Value]) -> str:
    """The key of a cell: schema, model, measurement with its configuration, prompt, place, and what it reads."""
    read = {name: _plain(earlier[name]) for name in measurement.needs}
    turns = asked.prompt.jsonable() if isinstance(asked.prompt, Prompt) else asked.prompt.reason
    place = (asked.suite, asked.item.id, asked.shift.name, asked.shift.version, asked.sample)
    about = (asked.item.target, list(asked.item.choices), asked.item.label)
    return digest(SCHEMA, model, measurement.name, measurement.config(), turns, place, about, read)


def _plain(value: Value) -> Any:
    return {"missing": value.reason} if isinstance(value, Missing) else dict(value)


Progress = Callable[[str, int, int, float], None]


def silent(name: str, done: int, total: int, seconds: float) -> None:
    """No progress."""


def to_stderr(name: str, done: int, total: int, seconds: float) -> None:
    """A line that says how far a measurement is, and about how long it still takes."""
    left = f", about {seconds / done * (total - done):.0f} s left" if 0 < done < total else ""
    end = "\n" if done >= total or not sys.stderr.isatty() else "\r"
    print(f"{name}: {done}/{total}{left}   ", end=end, file=sys.stderr, flush=True)


class Engine:
    """Measures with one backend into one store."""

    def __init__(self, backend: Backend, *, store: CellStore, batch: int = 64, progress: Progress = silent) -> None:
        self.backend, self.store, self.batch, self.progress = backend, store, batch, progress

    def run(
        self, asked: Sequence[Asked], *, measurements: Sequence[Measurement]
    ) -> dict[str, list[Measured]]:
        """The cells of every measurement, in the order asked. Measurements come in an order that serves their needs."""
        found: dict[str, list[Measured]] = {}
        for measurement in measurements:
            earlier = [
                {name: found[name][i].value for name in measurement.needs} for i in range(len(asked))
            ]  # fmt: skip
            found[measurement.name] = self._measure(asked, earlier, measurement)
        return found

    def _measure(
        self, asked: Sequence[Asked], earlier: Sequence[Mapping[str, Value]], measurement: Measurement
    ) -> list[Measured]:
        model = self.backend.fingerprint
        keys = [
            cell_key(one, measurement=measurement, model=model, earlier=read)
            for one, read in zip(asked, earlier, strict=True)
        ]
        open_ones = [i for i, key in enumerate(keys) if key not in self.store]
        answered, todo = self._without_prompt(asked, earlier, keys, open_ones, measurement)
        self.store.add(answered)
        start, done = time.monotonic(), 0
        for chosen in self._batches(asked, todo):
            requests = [_request(asked[i], earlier[i]) for i in chosen]
            values = measurement.measure(requests, backend=self.backend)
            self.store.add(
                _cell(asked[i], keys[i], model, measurement, value)
                for i, value in zip(chosen, values, strict=True)
            )  # fmt: skip
            done += len(chosen)
            self.progress(measurement.name, done, len(todo), time.monotonic() - start)
        return [self.store[key] for key in keys]

    def _without_prompt(
        self, asked: Sequence[Asked], earlier: Sequence[Mapping[str, Value]], keys: Sequence[str],
        open_ones: Sequence[int], measurement: Measurement,
    ) -> tuple[list[Measured], list[int]]:  # fmt: skip
        """Cells that are Missing before anything is asked (no prompt, or nothing to read), and the rest to measure."""
        answered, todo = [], []
        for i in open_ones:
            one = asked[i]
            gone = [value for value in earlier[i].values() if isinstance(value, Missing)]
            if isinstance(one.prompt, Missing):
                answered.append(_cell(one, keys[i], self.backend.fingerprint, measurement, one.prompt))
            elif gone:
                answered.append(_cell(one, keys[i], self.backend.fingerprint, measurement, gone[0]))
            else:
                todo.append(i)
        return answered, todo

    def _batches(self, asked: Sequence[Asked], todo: Sequence[int]) -> Iterator[list[int]]:
        """Longest first, so that a full memory shows at once and a batch holds prompts of like length."""
        length = getattr(self.backend, "length", None)
        lengths = {i: length(asked[i].prompt) if length else len(str(asked[i].prompt)) for i in todo}
        order = sorted(todo, key=lambda i: (-lengths[i], i))
        for start in range(0, len(order), self.batch):
            yield order[start : start + self.batch]


def _request(one: Asked, earlier: Mapping[str, Value]) -> Request:
    assert isinstance(one.prompt, Prompt)
    return Request(one.suite, one.item, one.shift, one.sample, one.prompt, earlier)


def _cell(one: Asked, key: str, model: str, measurement: Measurement, value: Value) -> Measured:
    return Measured(key, model, one.suite, one.item.id, one.shift.name, one.sample, measurement.name, value)
