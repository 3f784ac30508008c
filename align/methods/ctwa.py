"""CTWA (Lu & Jiang 2026): reinforcement learning whose weights grow for what the advantage trains too little.

To first order a policy-gradient step raises E[r_k] in proportion to the covariance, within a prompt, of r_k with the
advantage (align/functional/conflict.py). After each step the weights of objectives below their target move,
    log w_k += rate * max(0, target_k - average corr_k),
corr_k being the correlation of r_k with the advantage within a prompt, averaged over prompts, and the average an
exponential one over steps. The preference is where the weights start; it binds nothing afterwards.

No J is optimised and there is no fixed point in general: the weights move while the policy does, towards whichever
objective lags. Near an optimum of the current weights the advantage is noise and every correlation near 0, below any
target above 0: with equal targets the weights then stand still wherever they have got to, with unequal ones they drift
to the objective of the largest target, and official ones grow for ever, so that beta counts ever less. The weights at
the end stand in the metrics; regret is against the J that the preference asked for.
Deviations from the official code (a fork of verl): the weights are brought back to sum 1 after each step
(`renormalise: false` keeps the official ones, which only grow); samples serve one step, so the ratio is 1, nothing is
clipped and u is the advantage itself, including the sequence's KL, with no filter of outliers; and prompts on which the
advantage or r_k is constant have no correlation: where all are such, the weights stay (the same code's PAMA trains on a
constant advantage).
Legend: B completions, P prompts, S completions of a prompt, K objectives.
Data: prompts. Fixed point: none: the weights move.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from align import checks
from align.engines.on_policy import trainer as onpolicy
from align.engines.on_policy.weight_control import Memory, Observed, smoothed, train_point
from align.engines.points import check_preferences, train_points
from align.engines.problem import Problem
from align.errors import UserError
from align.policies.base import PointFamily
from align.preferences import Weights
from align.runs import Workspace

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

MEASURES = ("correlation", "covariance")
ASKED_BY = (Weights,)
FAMILY = PointFamily


@dataclass(frozen=True, kw_only=True)
class Config(onpolicy.AlgorithmConfig):
    """How to sample and train, rloo and grpo both with the sequence's KL and unscaled rewards; how the weights move."""

    targets: tuple[float, ...] = (0.1,)  # one for all objectives, or one each; the paper's runs use 0.08 to 0.15
    measure: str = "correlation"  # or covariance, whose targets are in units of r_k times the advantage
    weight_rate: float = 0.05  # the official one
    decay: float = 0.9  # of the moving average of the correlations
    renormalise: bool = True  # false: weights only grow


def advantage_association(
    scores_BK: ArrayLike, *, advantages_B: ArrayLike, group: int, measure: str = "correlation"
) -> list[float | None]:
    """Each objective's correlation (or covariance, divisor S - 1) with the advantage within a prompt, prompts averaged.

    Rows lie together in groups of `group` completions per prompt. A score of nan is left out; so is a prompt with fewer
    than two scores, and one on which either side is constant up to rounding. None where no prompt is left.
    """
    table_BK, all_B = np.asarray(scores_BK, dtype=float), np.asarray(advantages_B, dtype=float)
    if table_BK.ndim != 2 or all_B.shape != table_BK.shape[:1] or len(table_BK) % group:
        raise ValueError(f"scores {table_BK.shape}, advantages {all_B.shape} and groups of {group} do not fit")
    # Advantages are differences of rewards in single precision: what rounding leaves of equal ones is no spread.
    rounding = 1e-6 * max(np.abs(table_BK[~np.isnan(table_BK)]).max(initial=0.0), np.abs(all_B).max(initial=0.0))
    found: list[float | None] = []
    for column_B in table_BK.T:
        values = []
        for scores_S, advantages_S in zip(column_B.reshape(-1, group), all_B.reshape(-1, group), strict=True):
            r_S, u_S = (x[~np.isnan(scores_S)] for x in (scores_S, advantages_S))
            if len(r_S) < 2 or np.ptp(u_S) <= rounding or np.ptp(r_S) <= 1e-6 * np.abs(r_S).max():
                continue
            r_S, u_S = r_S - r_S.mean(), u_S - u_S.mean()
            scale = math.sqrt((r_S @ r_S) * (u_S @ u_S)) if measure == "correlation" else len(r_S) - 1.0
            values.append(float(r_S @ u_S) / scale)
        found.append(sum(values) / len(values) if values else None)
    return found


@dataclass(frozen=True)
class Growth:
    """The rule: multiplicative growth of the weights of objectives below their target."""

    preference: tuple[float, ...]
    targets: tuple[float, ...]
    rate: float
    decay: float
    measure: str
    renormalise: bool
    reads_advantages: bool = True

    def start(self) -> Memory:
        return {"weights": list(self.preference), "association": None}

    def step(self, memory: Memory, observed: Observed) -> Memory:
        assert observed.advantages_B is not None  # the rule reads them
        latest_K = advantage_association(
            observed.scores_BK, advantages_B=observed.advantages_B, group=observed.group, measure=self.measure
        )
        average_K = smoothed(memory["association"], latest_K, decay=self.decay)
        weights_K = []
        for w, target, latest, average in zip(memory["weights"], self.targets, latest_K, average_K, strict=True):
            lack = 0.0 if latest is None or average is None else max(0.0, target - average)
            weights_K.append(w * math.exp(self.rate * lack))
        total = sum(weights_K) / sum(self.preference) if self.renormalise else 1.0
        return {"weights": [w / total for w in weights_K], "association": average_K}

    def weights(self, memory: Memory) -> list[float]:
        return list(memory["weights"])

    def report(self, memory: Memory) -> dict[str, object]:
        """The averaged association of each objective with the advantage, the sum of the weights (1 if renormalised)."""
        return {"association": memory["association"], "sum_of_weights": sum(memory["weights"])}


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> PointFamily:
    """One policy per preference, the weights that its run starts from. Comparisons are not used.

    Objectives of weight 0 stay at 0 and are not asked. UserError on an impossible configuration or without prompts.
    """
    names = check_preferences(problem)
    check_config(config, names=names)
    rows = onpolicy.required_prompts(problem, method="ctwa")
    targets = config.targets * len(names) if len(config.targets) == 1 else config.targets

    def body(weights: Weights, point: Workspace) -> Mapping[str, object]:
        asked = [k for k, w in enumerate(weights) if w]
        rule = Growth(
            preference=tuple(weights[k] for k in asked),
            targets=tuple(targets[k] for k in asked),
            rate=config.weight_rate,
            decay=config.decay,
            measure=config.measure,
            renormalise=config.renormalise,
        )
        return train_point(
            config,
            replace(problem, objectives={names[k]: problem.objectives[names[k]] for k in asked}),
            point,
            rule=rule,
            label=f"ctwa {weights.label}",
        )

    return train_points(
        "ctwa", config, problem, run, rows=rows, body=body, optimises=lambda w: describe(config, weights=w)
    )


def check_config(config: Config, *, names: Sequence[str]) -> None:
    """UserError on a value that the rule or the trainer cannot mean."""
    onpolicy.check_sampling(config)
    checks.one_of(config, measure=MEASURES)
    if len(config.targets) not in (1, len(names)) or not all(math.isfinite(t) for t in config.targets):
        raise UserError(
            f"targets {list(config.targets)} must be one finite number, or one for each of {', '.join(names)}"
        )
    checks.at_least(0, config, "weight_rate", "decay")
    if config.decay >= 1:
        raise UserError(f"decay must be in [0, 1), not {config.decay:g}")


def describe(config: Config, *, weights: Weights) -> str:
    """One line: what a point's training really optimises."""
    targets = ",".join(f"{t:g}" for t in config.targets)
    growth = "renormalised" if config.renormalise else "growing, so that beta counts ever less"
    start = f"no fixed J: E[w.r] - {config.beta:g} KL(pi||ref) starting at w = {weights.label}"
    rule = f"weights then raised ({growth}) while their {config.measure} with the advantage is below {targets}"
    return f"{start}, {rule}, on-policy {config.algorithm}, sequence KL in the reward"
