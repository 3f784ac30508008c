"""One training run of a row, on any problem: the family that its method fits, its points made and saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from align.runs import Metrics, Run, Workspace
from recipes.pipeline.rows import Fit

if TYPE_CHECKING:
    from align.engines.problem import Problem
    from align.preferences import Preference


def fitted(work: Workspace, fit: Fit, problem: Problem[Preference], *, specialists: Mapping[str, Run]) -> Metrics:
    """Fit the problem's preferences and save the family; returns what each point optimises."""
    from align.methods import METHODS
    from recipes.pipeline.specialists import with_specialists

    more = {"specialists": tuple(policy_dir(run) for run in specialists.values())} if specialists else {}
    config = fit.config(**more)
    family = METHODS[fit.method].fit(config, with_specialists(config, problem, work), work)
    for preference in problem.preferences:
        family.policy(preference)  # a soup is merged here, not at its first evaluation
    family.save(work.folder)
    return {"optimises": {p.label: family.optimises[p.label] for p in problem.preferences}}


def policy_dir(run: Run) -> str:
    """The model directory of a run that holds one trained point: a specialist."""
    from align.policies.load import load_family

    return next(iter(load_family(run.path).points.values()))
