"""What a method is given: the reference, the objectives, the preferences asked for, and the rows to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from align.data.comparisons import Row
from align.objectives.base import Objective
from align.preferences import Preference

P = TypeVar("P", bound=Preference)
P_co = TypeVar("P_co", bound=Preference, covariant=True)


@dataclass(frozen=True)
class Specialists:
    """One model directory per objective, in words where they come from, and the beta that all of them were trained at
    (None: not known).
    """

    models: tuple[str, ...]
    origin: str
    beta: float | None = None


@dataclass(frozen=True, kw_only=True)
class Problem(Generic[P_co]):
    """One multi-objective problem, the same for every method.

    `reference` is a model directory or hub id; `objectives` maps names to callables in the order of the preferences'
    entries; `comparisons` and `prompts` are rows, None where there are none. `specialists` are for the methods that
    combine them; whoever plans an experiment trains them (recipes/pipeline/specialists.py).
    """

    reference: str
    objectives: Mapping[str, Objective]
    preferences: Sequence[P_co]
    comparisons: Sequence[Row] | None = None
    prompts: Sequence[Row] | None = None
    specialists: Specialists | None = None

    @property
    def names(self) -> list[str]:
        """The objectives' names, in order."""
        return list(self.objectives)
