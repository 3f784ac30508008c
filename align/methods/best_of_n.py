"""Best-of-n as a method: nothing is trained, and the family answers any weights at n samples and scores a response.

The baseline that every trained method is measured against (Nakano et al. 2021; Gao et al. 2023), under the
scalarised reward `w . r`. *Deviation*: ties are broken uniformly, where published code takes the first.
Data: none. Fixed point: the best of n reference samples, n samples a response.
"""

from __future__ import annotations

from dataclasses import dataclass

from align import checks
from align.engines.points import check_preferences
from align.engines.problem import Problem
from align.policies.best_of_n import BestOfNFamily, kl_bound
from align.preferences import Weights
from align.runs import Workspace, model_dir

ASKED_BY = (Weights,)
FAMILY = BestOfNFamily


@dataclass(frozen=True, kw_only=True)
class Config:
    """How many samples compete for each response."""

    n: int = 4


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> BestOfNFamily:
    """The family of best-of-n policies. It lists the problem's preferences, and answers any other weights, too.

    The whole cost comes at decoding: neither `run` nor the problem's rows are used. UserError for an n below 1, or a
    reference that is no model directory.
    """
    names = check_preferences(problem)
    checks.at_least(1, config, "n")
    claims = {weights.label: describe(config, weights=weights) for weights in problem.preferences}
    return BestOfNFamily(
        model_dir(problem.reference), config.n, tuple(names), dict(problem.objectives), tuple(problem.preferences),
        claims,
    )  # fmt: skip


def describe(config: Config, *, weights: Weights) -> str:
    """One line: what the policy of a point maximises, at which KL."""
    return (
        f"no J: the largest w.r of {config.n} reference samples at w = {weights.label}, at a KL of at most "
        f"log n - (n - 1)/n = {kl_bound(config.n):.3g} nats whatever the rewards"
    )
