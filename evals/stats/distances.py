"""How far states lie from a cloud of others: Mahalanobis with a shrunk covariance (Lee et al. 2018); pure.

Shapes: N states of the cloud, M states measured, H hidden units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sklearn.covariance import ShrunkCovariance

SHRINKAGE = 0.1  # towards a sphere of the same trace, so that few states in many dimensions have an inverse


def fit_cloud(states_NH: np.ndarray, *, shrinkage: float = SHRINKAGE) -> ShrunkCovariance:
    """The cloud of at least two different states; ValueError otherwise, or for a shrinkage outside (0, 1]."""
    from sklearn.covariance import ShrunkCovariance

    states = np.asarray(states_NH, dtype=float)
    if states.ndim != 2 or len(states) < 2:
        raise ValueError(f"a cloud needs at least two states as rows, not an array of shape {states.shape}")
    if not 0 < shrinkage <= 1:
        raise ValueError(f"shrinkage {shrinkage} is not in (0, 1]")
    if (states == states[0]).all():
        raise ValueError("all states of the cloud are the same")
    return ShrunkCovariance(shrinkage=shrinkage).fit(states)


def distances(cloud: ShrunkCovariance, states_MH: np.ndarray) -> np.ndarray:
    """(M,) Mahalanobis distance of each state."""
    return np.sqrt(cloud.mahalanobis(np.atleast_2d(np.asarray(states_MH, dtype=float))))


def log_distance(cloud: ShrunkCovariance, states_MH: np.ndarray, *, plain_MH: np.ndarray) -> np.ndarray:
    """(M,) log of each state's distance over the mean distance of plain ones: 0 as near as plain text, in nats.

    ValueError where plain text lies at the mean itself, which no distance can be measured against.
    """
    home = float(distances(cloud, plain_MH).mean())
    if home <= 0:
        raise ValueError("the plain states lie at the mean of the cloud")
    return np.log(np.maximum(distances(cloud, states_MH), 1e-12 * home) / home)
