"""Linear rewards from labelled pairs: the most probable weights, their covariance, and the strength of their prior.

The model is Bradley and Terry's, `P(chosen beats rejected) = sigmoid(w . (f_chosen - f_rejected))`, with a prior
`w ~ N(0, I / strength)`. Its log-posterior is concave, so Newton's method finds the one maximum, and the Laplace
approximation around it (MacKay 1992) says how probable the labels are under each strength. Legend: N pairs, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
STRENGTHS = tuple(10 ** (step / 2) for step in range(9))  # 1 to 10,000


@dataclass(frozen=True)
class LinearReward:
    """(F,) weights, their (F, F) covariance, the prior's strength, and the labels' log-evidence in nats."""

    weights_F: Array
    covariance_FF: Array
    strength: float
    evidence: float


def fit_linear_reward(differences_NF: Array, *, strengths: Sequence[float] = STRENGTHS) -> LinearReward:
    """The posterior at the strength of the highest evidence; `differences_NF` are chosen minus rejected features.

    Cost: a few solves of F equations per strength. ValueError without pairs or on values that are not finite.
    """
    if not differences_NF.size or not np.isfinite(differences_NF).all():
        raise ValueError(f"features of {len(differences_NF)} pairs are missing or not finite")
    fits, start_F = [], np.zeros(differences_NF.shape[1])
    for strength in sorted(strengths, reverse=True):  # the strongest prior lies nearest to the start
        fits.append(_posterior(differences_NF, strength=strength, start_F=start_F))
        start_F = fits[-1].weights_F
    return max(fits, key=lambda fit: fit.evidence)


def _posterior(differences_NF: Array, *, strength: float, start_F: Array) -> LinearReward:
    features = differences_NF.shape[1]
    weights_F = start_F.copy()
    value, gradient_F, curvature_FF = _log_posterior(differences_NF, weights_F, strength)
    for _ in range(100):
        step_F = np.linalg.solve(curvature_FF, gradient_F)
        size = 1.0
        while size > 1e-8:  # concave: some step along Newton's direction gains, unless this is the maximum
            found = _log_posterior(differences_NF, weights_F + size * step_F, strength)
            if found[0] >= value:
                break
            size /= 2
        else:
            break
        weights_F = weights_F + size * step_F
        gained, (value, gradient_F, curvature_FF) = found[0] - value, found
        if gained < 1e-10 * max(1.0, abs(value)):
            break
    log_determinant = float(np.linalg.slogdet(curvature_FF)[1])
    evidence = value + 0.5 * features * float(np.log(strength)) - 0.5 * log_determinant
    covariance_FF = np.asarray(np.linalg.inv(curvature_FF), dtype=np.float64)
    return LinearReward(weights_F, covariance_FF, float(strength), evidence)


def _log_posterior(differences_NF: Array, weights_F: Array, strength: float) -> tuple[float, Array, Array]:
    """Value (without the prior's constant), gradient, and minus the Hessian."""
    margins_N = differences_NF @ weights_F
    wrong_N = np.exp(-np.logaddexp(0.0, margins_N))  # the probability of the other label
    value = -float(np.logaddexp(0.0, -margins_N).sum()) - 0.5 * strength * float(weights_F @ weights_F)
    gradient_F = differences_NF.T @ wrong_N - strength * weights_F
    curvature_FF = (differences_NF * (wrong_N * (1 - wrong_N))[:, None]).T @ differences_NF
    return value, gradient_F, curvature_FF + strength * np.eye(len(weights_F))
