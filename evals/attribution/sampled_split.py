"""What the optimum loses and how the regret rises, `J_id - J_s = [J*_id - J*_s] + [R_s - R_id]`, from samples; pure.

J of a policy is a mean over its samples. J* = beta log E_ref[exp(w.r / beta)] needs no optimum either: it is a mean
over samples of policy and reference together, each weighted by `ref(y) exp(w.r / beta) / (pi(y)/2 + ref(y)/2)` (the
balance heuristic of Veach and Guibas 1995). The weights are flat where the policy is near the optimum, so that few
samples do there; where it is far, the reference's half keeps them bounded by 2 exp(w.r / beta).
Shapes: N samples of the policy, M of the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Samples:
    """Judged samples of one prompt: `values` w.r, and log-probabilities of the whole response under both models."""

    values: np.ndarray
    policy_logp: np.ndarray
    reference_logp: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """J of the policy and of the optimum on one prompt, in units of reward."""

    J: float
    J_star: float

    @property
    def regret(self) -> float:
        return self.J_star - self.J


def estimate(own_N: Samples, reference_M: Samples, *, beta: float) -> Estimate:
    """J and J* of one prompt; ValueError without samples of both, or for beta that is not positive."""
    if not len(own_N.values) or not len(reference_M.values) or beta <= 0:
        raise ValueError("an estimate needs samples of policy and reference and a positive beta")
    log_ratio_N = own_N.policy_logp - own_N.reference_logp
    value = float(np.mean(own_N.values - beta * log_ratio_N))
    n, m = len(own_N.values), len(reference_M.values)
    policy, reference = (
        np.concatenate([getattr(part, name) for part in (own_N, reference_M)])
        for name in ("policy_logp", "reference_logp")
    )
    mixed = np.logaddexp(policy + np.log(n / (n + m)), reference + np.log(m / (n + m)))
    scores = np.concatenate([own_N.values, reference_M.values]) / beta + reference - mixed
    top = float(scores.max())
    return Estimate(value, beta * (top + float(np.log(np.mean(np.exp(scores - top))))))


def split(home: Mapping[str, Estimate], away: Mapping[str, Estimate]) -> dict[str, float]:
    """`drop`, `optimum` and `regret_rise`: means over the prompts of both sides, which may be different ones.

    Neither names a mechanism: the first moves with what the reference can read, the second with what was wrong before.
    """

    def mean(side: Mapping[str, Estimate], name: str) -> float:
        return float(np.mean([getattr(one, name) for one in side.values()]))

    optimum = mean(home, "J_star") - mean(away, "J_star")
    rise = mean(away, "regret") - mean(home, "regret")
    return {"drop": optimum + rise, "optimum": optimum, "regret_rise": rise}


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """(Spearman's rho, Kendall's tau-b) of two lists in the same order; nan where one does not vary."""
    from scipy.stats import kendalltau, spearmanr

    if len(first) != len(second) or len(first) < 3:
        raise ValueError(f"{len(first)} and {len(second)} values: as many on both sides, at least 3")
    return float(spearmanr(first, second).statistic), float(kendalltau(first, second).statistic)
