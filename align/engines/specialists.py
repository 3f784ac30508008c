"""Specialists: one policy per objective for the methods that combine them; what a method is configured with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from align.engines.problem import Problem, Specialists
from align.errors import UserError
from align.preferences import Weights
from align.runs import model_dir


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where the specialists come from: model directories in the objectives' order, or what the planner trains at the
    vertices, `method` with the keys in `method_config` (recipes/pipeline/specialists.py).
    """

    specialists: tuple[str, ...] = ()
    method: str = "morlhf"
    method_config: Mapping[str, object] = field(default_factory=dict)

    def check(self, *, objectives: int) -> None:
        """UserError on what can be known to be impossible before any specialist is trained."""
        if self.specialists and len(self.specialists) != objectives:
            raise UserError(
                f"{len(self.specialists)} specialists for {objectives} objectives; give one per objective, in order"
            )


def specialists_of(config: Config, problem: Problem[Weights]) -> Specialists:
    """The configured directories, else the problem's own specialists; UserError when there are neither."""
    if config.specialists:
        return Specialists(tuple(model_dir(path) for path in config.specialists), "given specialists")
    if problem.specialists is None:
        raise UserError(
            "no specialists: set specialists to a model directory per objective (align finetune trains them itself)"
        )
    return problem.specialists
