"""How far states lie from a cloud of others: Mahalanobis with a shrunk covariance (Lee et al. 2018); pure.

Shapes: N states of the cloud, M states asked, H hidden units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHRINKAGE = 0.1  # towards a sphere of the same trace, so that few states in many dimensions have an inverse


@dataclass(frozen=True)
class Cloud:
    """Mean (H,) and inverse covariance (H, H) of the states that something was trained on."""

    mean_H: np.ndarray
    inverse_HH: np.ndarray

    def distances(self, states_MH: np.ndarray) -> np.ndarray:
        """(M,) Mahalanobis distance of each state."""
        off_MH = np.atleast_2d(np.asarray(states_MH, dtype=float)) - self.mean_H
        return np.sqrt(np.einsum("mh,hk,mk->m", off_MH, self.inverse_HH, off_MH))


def fit_cloud(states_NH: np.ndarray, *, shrinkage: float = SHRINKAGE) -> Cloud:
    """The cloud of at least two different states; ValueError otherwise, or for a shrinkage outside (0, 1]."""
    states = np.asarray(states_NH, dtype=float)
    if states.ndim != 2 or len(states) < 2:
        raise ValueError(f"a cloud needs at least two states as rows, not an array of shape {states.shape}")
    if not 0 < shrinkage <= 1:
        raise ValueError(f"shrinkage {shrinkage} is not in (0, 1]")
    covariance_HH = np.atleast_2d(np.cov(states.T))
    size = len(covariance_HH)
    spread = float(np.trace(covariance_HH)) / size
    if spread <= 0:
        raise ValueError("all states of the cloud are the same")
    shrunk_HH = (1 - shrinkage) * covariance_HH + shrinkage * spread * np.eye(size)
    return Cloud(states.mean(0), np.linalg.inv(shrunk_HH))


def log_distance(cloud: Cloud, states_MH: np.ndarray, *, plain_MH: np.ndarray) -> np.ndarray:
    """(M,) log of each state's distance over the mean distance of plain ones: 0 as near as plain text, in nats.

    ValueError where plain text lies at the mean itself, which no distance can be measured against.
    """
    home = float(cloud.distances(plain_MH).mean())
    if home <= 0:
        raise ValueError("the plain states lie at the mean of the cloud")
    return np.log(np.maximum(cloud.distances(states_MH), 1e-12 * home) / home)
