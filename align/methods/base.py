"""What the methods share: fields of every config, labelled pairs, metered objectives, finished points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from align.data.comparisons import Row
from align.objectives.metered import Objective
from align.policies.base import PolicyFamily
from align.runs import Ledger


class Method(Protocol):
    """A module of this package: a frozen dataclass `Config` and `fit`."""

    Config: type

    def fit(
        self,
        config: Any,
        *,
        reference: str,
        objectives: Mapping[str, Objective],
        preferences: Sequence[Any],
        out: Path,
        ledger: Ledger,
        comparisons: Sequence[Row] | None = None,
        prompts: Sequence[Row] | None = None,
    ) -> PolicyFamily: ...
