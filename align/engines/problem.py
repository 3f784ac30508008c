"""What a method is given: the reference, the objectives, the preferences asked for, and the rows to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from align.data.comparisons import Row
from align.objectives.metered import Objective
from align.preferences import Preference


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One multi-objective problem, the same for every method.

    `reference` is a model directory or hub id; `objectives` maps names to callables in the order of the preferences'
    entries; `comparisons` and `prompts` are rows, None where there are none.
    """

    reference: str
    objectives: Mapping[str, Objective]
    preferences: Sequence[Preference]
    comparisons: Sequence[Row] | None = None
    prompts: Sequence[Row] | None = None
