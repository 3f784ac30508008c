"""Optima by root finding and plain covariances: slower or rarer ways to numbers that the library computes otherwise.

Legend: P prompts, S samples, C reward classes, N nodes, V vocabulary, K objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq

from align.preferences import Weights
from align.testbed.answers import ReferenceTables
from align.testbed.optimum import OptimumPoint, RewardClasses, optimum, optimum_on
from align.testbed.theory.predictions import Predicted
from align.testbed.world import Prompt


def beta_at_kl(prompts: Sequence[RewardClasses], weights: Weights, *, kl: float) -> float:
    """The beta at which pi*_w spends `kl` nats on average.

    KL falls as beta rises. At an unreachable kl, the smallest beta tried.
    """
    if kl <= 0:
        raise ValueError(f"the KL to match must be positive, not {kl}")
    low, high = -7.0, 7.0  # log beta
    spent = lambda log_beta: optimum(prompts, weights, beta=float(np.exp(log_beta))).kl - kl  # noqa: E731
    if spent(low) <= 0:
        return float(np.exp(low))
    if spent(high) >= 0:
        return float(np.exp(high))
    return float(np.exp(brentq(spent, low, high, xtol=1e-10)))


@dataclass(frozen=True)
class ConstrainedOptimum:
    """max E[r_k] - beta KL subject to E[r_j] >= threshold.

    The multiplier and the point; feasible is False when no tilt reaches it.
    """

    multiplier: float
    point: OptimumPoint
    feasible: bool


def constrained_optimum(
    prompts: Sequence[RewardClasses], *, maximise: int, constrain: int, threshold: float, beta: float
) -> ConstrainedOptimum:
    """Constrained optimum by root finding on the multiplier: E[r_j] rises with it; 0 when the constraint is slack."""
    objectives = prompts[0].rewards_CK.shape[1]

    def at(multiplier: float) -> OptimumPoint:
        tilt_K = np.zeros(objectives)
        tilt_K[maximise] += 1 / beta
        tilt_K[constrain] += multiplier / beta
        parts = [optimum_on(p, tilt_K) for p in prompts]
        values_K = np.mean([v for v, _, _ in parts], axis=0)
        kl = float(np.mean([k for _, k, _ in parts]))
        return OptimumPoint(tuple(values_K.tolist()), kl, float(values_K[maximise]) - beta * kl)

    slack = at(0.0)
    if slack.values[constrain] >= threshold:
        return ConstrainedOptimum(0.0, slack, True)
    high = 1.0
    while at(high).values[constrain] < threshold:
        high *= 2
        if high > 1e6:
            return ConstrainedOptimum(high, at(high), False)
    root = brentq(lambda m: at(m).values[constrain] - threshold, 0.0, high, xtol=1e-12)
    return ConstrainedOptimum(float(root), at(float(root)), True)


def advantage_covariance(rewards_PSK: Sequence[Any], *, advantages_PS: Sequence[Any]) -> np.ndarray:
    """Covariance of each objective with the advantage within a prompt (divisor S - 1), averaged over prompts; shape K.

    To first order a policy-gradient step raises E[r_k] in proportion to it, so a negative entry is an objective that
    this advantage trains down. ValueError for a prompt with fewer than two samples or with unequal lengths.
    """
    covariances = []
    for rewards, advantages in zip(rewards_PSK, advantages_PS, strict=True):
        rewards_SK, advantages_S = np.asarray(rewards, dtype=float), np.asarray(advantages, dtype=float)
        if advantages_S.shape != rewards_SK.shape[:1] or len(advantages_S) < 2:
            raise ValueError("each prompt needs one advantage per sample and at least two samples")
        centred_S = advantages_S - advantages_S.mean()
        covariances.append(centred_S @ (rewards_SK - rewards_SK.mean(axis=0)) / (len(centred_S) - 1))
    if not covariances:
        raise ValueError("rewards_PSK needs at least one prompt")
    return np.mean(covariances, axis=0)


def predicted_fixed_point(
    kind: str, *, prompts: Sequence[Prompt], tables: ReferenceTables, weights: Sequence[float]
) -> list[np.ndarray]:
    """(N, V) leaf log-probabilities of the rule's fixed point on each prompt, all of them one batch."""
    policy = Predicted(kind, tables, Weights(tuple(weights)), kind, population=prompts)
    return [policy.leaf_logprobs(tables.world, prompt).numpy() for prompt in prompts]
