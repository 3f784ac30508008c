"""A cell: one item under one shift as a policy was asked it, with every value that was measured of the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from align.functional.thinking import answer_of
from evals.items import Fields, Item, Missing, Prompt, seed_of
from evals.shifts.base import Probe, Shift
from evals.suites.base import Suite

EMPTY = "empty_completion"  # what the policy did, and no outage
Value = Fields | Missing  # what one measurement finds: flat fields of JSON types, or why there are none


@dataclass(frozen=True)
class Cell:
    """One item under one shift, and one sample of it: what the policy was asked, and what was measured so far.

    `prompt` is Missing where the shift could not make one. `values` maps a measurement's name to its value.
    """

    suite: str
    item: Item
    shift: Shift
    sample: int
    prompt: Prompt | Missing
    values: Mapping[str, Value] = field(default_factory=dict)

    @property
    def question(self) -> Prompt:
        """The prompt of a cell that has one; ValueError for one that has none."""
        if isinstance(self.prompt, Missing):
            raise ValueError(f"item {self.item.id} has no prompt under shift {self.shift.name}: {self.prompt.reason}")
        return self.prompt

    @property
    def seed(self) -> int:
        return seed_of(self.suite, self.item.id, self.shift.name, self.sample)

    def value(self, measurement: str) -> Value:
        """What a measurement found, Missing where it was not made."""
        return self.values.get(measurement, Missing("not_measured"))

    def response(self) -> str | Missing:
        """The completion's answer (what follows its reasoning) as a judge reads it, decoded; Missing without one."""
        completion = self.values.get("completion", Missing("no_completion"))
        if isinstance(completion, Missing):
            return completion
        answer = answer_of(completion["text"])
        if not answer.strip():
            return Missing(EMPTY, "the policy answered nothing", lasting=True)
        return self.shift.decode(answer)

    def probe(self) -> Probe | Missing:
        """The shift's harmless question for this cell; Missing where the shift has none."""
        if self.shift.probe is None:
            return Missing("no_probe", "the shift has none", lasting=True)
        return self.shift.probe(Random(seed_of("probe", self.suite, self.item.id, self.shift.name, self.sample)))

    def read(self, name: str) -> Value:
        """What a measurement needs, by name: `response` (decoded), `item`, `probe`, or another measurement's value."""
        if name == "response":
            text = self.response()
            if isinstance(text, Missing):
                return {"text": ""} if text.reason == EMPTY else text
            return {"text": text}
        if name == "probe":
            probe = self.probe()
            return probe if isinstance(probe, Missing) else {"turns": probe.prompt.jsonable()}
        return self.item.jsonable() if name == "item" else self.values[name]

    def measured(self, measurement: str, value: Value) -> Cell:
        """The same cell with one more value."""
        return dataclasses.replace(self, values={**self.values, measurement: value})


def ask(items: Sequence[Item], *, suite: str, shifts: Sequence[Shift], samples: int = 1) -> list[Cell]:
    """Every item under every shift, in that order, with nothing measured yet.

    A shift draws from a generator seeded by item, shift and sample, so that no prompt depends on what else is asked.
    """
    cells = []
    for shift in shifts:
        for item in items:
            for sample in range(samples):
                rng = Random(seed_of("shift", suite, item.id, shift.name, sample))
                cells.append(Cell(suite, item, shift, sample, _with_turns(item, shift.encode(item.request, rng))))
    return cells


def _with_turns(item: Item, prompt: Prompt | Missing) -> Prompt | Missing:
    """The item's earlier turns stand before the shifted request, after a system turn."""
    if isinstance(prompt, Missing) or not item.before:
        return prompt
    system = tuple(turn for turn in prompt.turns if turn.role == "system")
    rest = tuple(turn for turn in prompt.turns if turn.role != "system")
    return Prompt((*system, *item.before, *rest))


def measurements_of(cells: Iterable[Cell]) -> list[str]:
    """The names of all measurements that were made, in order."""
    return list(dict.fromkeys(name for cell in cells for name in cell.values))


@dataclass(frozen=True)
class Evaluated:
    """All cells of one policy on one suite."""

    suite: Suite
    cells: Sequence[Cell]
    how: Mapping[str, Fields] = field(default_factory=dict)  # measurement -> its configuration

    @property
    def measurements(self) -> list[str]:
        """What was measured, in order."""
        return measurements_of(self.cells)

    @property
    def shifts(self) -> dict[str, Shift]:
        """The shifts by name, in the order asked."""
        return {cell.shift.name: cell.shift for cell in self.cells}
