"""What the tests of conflict log share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from factories.tiny_bandit import OBJECTIVES


class Opposed:
    """Minus another objective."""

    def __init__(self, name: str, other: Any, factor: float = -1.0) -> None:
        self.__name__, self.other, self.factor = name, other, factor

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        return [self.factor * s for s in self.other(prompts, completions, **columns)]


ONE = OBJECTIVES["one"]
AGAINST = {"one": ONE, "against": Opposed("against", ONE)}
