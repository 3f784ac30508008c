"""Reinforcement learning on a Chebyshev utility of the expected rewards, plain or smooth, through weights that move.

What is maximised is `U(E[r]) - beta KL(pi || ref)`, the utility of the mean (SER), with
    plain:   U(v) = min_k w_k (v_k - z_k)                                (weighted Chebyshev, written for maximisation)
    smooth:  U(v) = -mu log sum_k exp(-w_k (v_k - z_k) / mu)            (Lin et al. 2024, with f = -r)
over the objectives of weight above 0; z is an ideal point, which no policy exceeds. The gradient of U at E[r] is a
weighted sum of the objectives' gradients with `w_k a_k`, a on the simplex (plain: the worst term, or the mean over
equal worst terms; smooth: a softmax of the negative terms), so a callback sets the reward weights to it after each step
(align/engines/on_policy/weight_control.py). They sum to at most max_k w_k: beside it, beta weighs more than beside
the linear w . r.

What to expect. The means are an exponential average of noisy batches, and a gradient at an estimated mean is biased,
the more so the smaller mu beside the means' noise. The plain utility has its optimum at a corner, where the weights
jump between the objectives from step to step and only their average settles: the policy oscillates, the further the
longer the average lags behind it (`decay`), and the last iterate, which is what is returned, may be far off. Smooth
weights settle.
Deviations: published language-model code (a Chebyshev trainer beside CTWA) takes the minimum of each token's or
response's scores, the mean of the utility (ESR), which is another problem with another optimum.
Legend: N points, K objectives.
Data: prompts. Fixed point: the optimum of (smooth) `min_k w_k (E r_k - z_k)` less beta KL.
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

ASKED_BY = (Weights,)
FAMILY = PointFamily


@dataclass(frozen=True, kw_only=True)
class Config(onpolicy.AlgorithmConfig):
    """How to sample and train, rloo and grpo both with the sequence's KL and unscaled rewards, and the utility."""

    ideal: tuple[float, ...] = ()  # z, one number per objective: at least the best expected reward within reach
    smooth: float = 0.05  # mu, in units of w r; 0 is the plain utility
    decay: float = 0.9  # of the moving average of the batch means; below 0.5 for the plain utility


def chebyshev_utility(
    values_NK: ArrayLike, *, weights: Sequence[float], ideal: Sequence[float], smooth: float = 0.0
) -> np.ndarray:
    """(N,) Chebyshev utility of points (N, K), or of one point (K,); higher is better, 0 at the ideal if plain.

    Objectives of weight 0 do not count. ValueError on other lengths, when no weight is above 0, or if `smooth < 0`.
    """
    terms_NS, _ = _terms(values_NK, weights=weights, ideal=ideal, smooth=smooth)
    worst_N = terms_NS.min(-1)
    if smooth == 0:
        return worst_N
    return worst_N - smooth * np.log(np.exp(-(terms_NS - worst_N[..., None]) / smooth).sum(-1))


def utility_gradient(
    values_K: ArrayLike, *, weights: Sequence[float], ideal: Sequence[float], smooth: float = 0.0
) -> np.ndarray:
    """(K,) gradient of `chebyshev_utility` at one point; a subgradient where the plain one has a corner."""
    terms_S, counts_K = _terms(values_K, weights=weights, ideal=ideal, smooth=smooth)
    if smooth == 0:
        share_S = np.isclose(terms_S, terms_S.min(), rtol=0, atol=1e-12).astype(float)
    else:
        share_S = np.exp(-(terms_S - terms_S.min()) / smooth)
    gradient_K = np.zeros(len(counts_K))
    gradient_K[counts_K] = np.asarray(weights, dtype=float)[counts_K] * share_S / share_S.sum()
    return gradient_K


def _terms(
    values: ArrayLike, *, weights: Sequence[float], ideal: Sequence[float], smooth: float
) -> tuple[np.ndarray, np.ndarray]:
    """`w_k (v_k - z_k)` of the objectives with a weight above 0, and which those are."""
    points, weights_K, ideal_K = (np.asarray(x, dtype=float) for x in (values, list(weights), list(ideal)))
    counts_K = weights_K > 0
    if not points.shape[-1:] == weights_K.shape == ideal_K.shape or not counts_K.any() or smooth < 0:
        raise ValueError(f"values {points.shape}, weights {weights_K}, ideal {ideal_K}, smooth {smooth} do not fit")
    return (weights_K * (points - ideal_K))[..., counts_K], counts_K


@dataclass(frozen=True)
class UtilityGradient:
    """The rule: reward weights are the gradient of the utility at the moving average of the means.

    Before the first batch every objective counts the same: `w_k / K`.
    """

    preference: tuple[float, ...]
    ideal: tuple[float, ...]
    smooth: float
    decay: float
    reads_advantages: bool = False

    def start(self) -> Memory:
        return {"means": None}

    def step(self, memory: Memory, observed: Observed) -> Memory:
        return {"means": smoothed(memory["means"], observed.means_K, decay=self.decay)}

    def weights(self, memory: Memory) -> list[float]:
        if memory["means"] is None or None in memory["means"]:
            return [w / len(self.preference) for w in self.preference]
        gradient_K = utility_gradient(memory["means"], weights=self.preference, ideal=self.ideal, smooth=self.smooth)
        return [float(g) for g in gradient_K]

    def report(self, memory: Memory) -> dict[str, object]:
        """Averaged means, their utility, and by how much the best of them passes its ideal (0: none does)."""
        means_K = memory["means"]
        if means_K is None or None in means_K:
            return {"means": means_K}
        utility = chebyshev_utility(means_K, weights=self.preference, ideal=self.ideal, smooth=self.smooth)
        passed = max(0.0, *(m - z for m, z in zip(means_K, self.ideal, strict=True)))
        return {"means": means_K, "utility": float(utility), "beyond_ideal": passed}


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> PointFamily:
    """One policy per preference, trained on samples for the prompts. Comparisons are not used.

    Objectives of weight 0 are not asked; at a vertex this is the single objective's run, bit for bit. UserError on an
    impossible configuration, an ideal of the wrong length, or without prompts.
    """
    names = check_preferences(problem)
    check_config(config, names=names)
    rows = onpolicy.required_prompts(problem, method="chebyshev")

    def body(weights: Weights, point: Workspace) -> Mapping[str, object]:
        asked = [k for k, w in enumerate(weights) if w]
        rule = UtilityGradient(
            tuple(weights[k] for k in asked), tuple(config.ideal[k] for k in asked), config.smooth, config.decay
        )
        return train_point(
            config,
            replace(problem, objectives={names[k]: problem.objectives[names[k]] for k in asked}),
            point,
            rule=rule,
            label=f"chebyshev {weights.label}",
        )

    return train_points(
        "chebyshev", config, problem, run, rows=rows, body=body, optimises=lambda w: describe(config, weights=w)
    )


def check_config(config: Config, *, names: Sequence[str]) -> None:
    """UserError on a value that the utility or the trainer cannot mean."""
    onpolicy.check_sampling(config)
    if len(config.ideal) != len(names) or not all(math.isfinite(z) for z in config.ideal):
        raise UserError(
            f"ideal {list(config.ideal)} must be one finite number for each of {', '.join(names)}: the best expected "
            "reward within reach, for example that of a policy trained on this objective alone"
        )
    checks.at_least(0, config, "smooth", "decay")
    if config.decay >= 1:
        raise UserError(f"decay must be in [0, 1), not {config.decay:g}")


def describe(config: Config, *, weights: Weights) -> str:
    """One line: what a point's training really optimises."""
    ideal = ",".join(f"{z:g}" for z in config.ideal)
    utility = (
        f"-{config.smooth:g} log sum_k exp(-w_k (E[r_k] - z_k) / {config.smooth:g})"
        if config.smooth
        else "min_k w_k (E[r_k] - z_k), whose weights oscillate at the corner"
    )
    target = f"{utility} - {config.beta:g} KL(pi||ref) at w = {weights.label}, z = {ideal}"
    return f"{target}, on-policy {config.algorithm}: gradient at averaged batch means, sequence KL in the reward"
