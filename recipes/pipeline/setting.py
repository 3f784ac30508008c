"""What an experiment runs on: a problem with its reference, its rewards, and what judges a policy there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from align.preferences import Weights
from align.runs import Call, Run
from recipes.pipeline.rows import Fit, Row, Settings

REFERENCE = "reference"


class Setting(Protocol):
    """Every call comes with its name and folder; `plan` adds the rows and puts all in the order of their needs."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names, in the order of a preference's weights."""

    @property
    def row_keys(self) -> frozenset[str]:
        """A row's keys that this setting reads besides those of plan.ALWAYS_READ; any other is refused."""

    def reference(self) -> Sequence[Call]:
        """What makes the model that every KL is measured against, that model last."""

    def comparisons(self) -> Sequence[Call]:
        """The pairs that rows learn from, the calls that draw them; none where all rows learn from objectives."""

    def reward_models(self) -> Mapping[str, Call]:
        """Objective -> its reward model, for rows with learned rewards."""

    def more(self) -> Sequence[Call]:
        """Whatever else is measured once: facts of the problem, judges, tables."""

    def asked(self, row: Row) -> Sequence[Weights]:
        """The preferences at which a row is trained."""

    def fixes(self, row: Row) -> Settings:
        """Settings that the problem and the seed give to every method that has them, below the row's own."""

    def fit(self, row: Row, fit: Fit, specialists: Mapping[str, Run]) -> Call:
        """One training run of a row."""

    def judge(self, row: Row, policy: Run, weights: Weights) -> Sequence[Call]:
        """What makes the cells of a row's policy at a preference; none where it is not judged there."""

    def controls(self) -> Mapping[str, Sequence[Call]]:
        """Rows that are no methods -> what makes their cells; the reference is one of them."""
