"""What size of change a number of items can show: items needed, minimum detectable change, design effect; pure.

Sources: Miller 2024 section 5 (power of evaluations); Kish 1965 (design effect); Donner 1986 (intraclass correlation).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from evals.stats.intervals import LEVEL, cluster_codes

POWER = 0.8


def items_needed(
    difference: float, *, sd: float, power: float = POWER, level: float = LEVEL, design: float = 1.0
) -> int:
    """Items for a mean paired difference to be seen: `((z_{alpha/2} + z_power) sd / difference)^2 design`, rounded up.

    `sd` is that of one item's paired difference; `design` the `design_effect` where several items share a cluster.
    ValueError for no difference: no number of items shows it.
    """
    if difference == 0 or sd < 0 or design <= 0:
        raise ValueError(f"a difference of {difference} with sd {sd} and design effect {design} needs no finite number")
    return math.ceil((_z_sum(power, level) * sd / abs(difference)) ** 2 * design)


def minimum_detectable(sd: float, *, n: int, power: float = POWER, level: float = LEVEL, design: float = 1.0) -> float:
    """The smallest mean paired difference that `n` items show with that power, in the units of `sd`."""
    if n < 1 or sd < 0:
        raise ValueError(f"{n} items with sd {sd}")
    return _z_sum(power, level) * sd * math.sqrt(design / n)


def _z_sum(power: float, level: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(0.5 + level / 2) + ndtri(power))


def design_effect(*, cluster_size: float, icc: float) -> float:
    """`1 + (m - 1) ICC`: how much clusters of m items inflate the variance of a mean over independent items."""
    return 1 + (cluster_size - 1) * icc


def mean_cluster_size(clusters_N: Sequence[Hashable]) -> float:
    """`sum_c m_c^2 / sum_c m_c`: the m of the design effect for unequal clusters (for equal ones, their size)."""
    counts = np.bincount(cluster_codes(clusters_N)).astype(float)
    return float((counts**2).sum() / counts.sum())


def intraclass_correlation(values_N: Sequence[float] | np.ndarray, *, clusters_N: Sequence[Hashable]) -> float | None:
    """Share of the variance that lies between clusters, by analysis of variance: `(MSB - MSW) / (MSB + (m0 - 1) MSW)`.

    `m0 = (N - sum m_c^2 / N) / (G - 1)`. Can be below 0 by chance. None where it is not defined: one cluster, no
    cluster with two items, or no variance at all.
    """
    values = np.asarray(values_N, dtype=float)
    if len(values) != len(clusters_N):
        raise ValueError(f"{len(values)} values with {len(clusters_N)} cluster labels: one each")
    codes, n = cluster_codes(clusters_N), len(values)
    groups = len(set(codes.tolist()))
    if groups < 2 or n == groups:
        return None
    counts = np.bincount(codes).astype(float)
    means = np.bincount(codes, weights=values) / counts
    between = float((counts * (means - values.mean()) ** 2).sum() / (groups - 1))
    within = float(((values - means[codes]) ** 2).sum() / (n - groups))
    size = (n - float((counts**2).sum()) / n) / (groups - 1)
    spread = between + (size - 1) * within
    return (between - within) / spread if spread > 0 else None
