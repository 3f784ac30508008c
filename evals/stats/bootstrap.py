"""Intervals where a plain t or percentile falls short: bootstrap t, jackknife t, and many hypervolumes at once; pure.

Shapes: N values, D resamples, G clusters (base items), N points, K objectives. Sources: Efron & Tibshirani 1993, 11
(jackknife) and 12.5 (bootstrap t); `stats.bootstrap_interval(expanded=True)` is the remedy for percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from align.functional import fronts
from evals.stats.intervals import LEVEL, Interval, cluster_codes, cluster_counts, clustered_mean, t_quantile

Statistic = Callable[[np.ndarray], np.ndarray]  # counts_DG, how often each base item stands in each sample -> D values


@dataclass(frozen=True)
class Studentised:
    """A clustered mean with its error, and `(mean* - mean) / error*` of each resample (not finite without spread)."""

    mean: float
    se: float
    t_D: np.ndarray


def studentise(
    values_N: Sequence[float] | np.ndarray, *, clusters_N: Sequence[Hashable], draws: int, seed: int
) -> Studentised:
    """Resamples whole clusters and takes each resample's own clustered error (with G / (G - 1))."""
    values, codes = np.asarray(values_N, dtype=float), cluster_codes(clusters_N)
    if len(values) != len(codes) or not np.isfinite(values).all() or len(values) == 0:
        raise ValueError(f"{len(values)} values with {len(codes)} cluster labels: one each, at least one, all finite")
    counts_G = np.bincount(codes).astype(float)
    groups = len(counts_G)
    sums_G = np.bincount(codes, weights=values) - counts_G * values.mean()  # centred: rounding, not results

    def moments(table_DG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n_D = table_DG @ counts_G
        mean_D = table_DG @ sums_G / n_D
        squares_D = table_DG @ sums_G**2 - 2 * mean_D * (table_DG @ (sums_G * counts_G))
        squares_D += mean_D**2 * (table_DG @ counts_G**2)
        squares_D = np.where(squares_D < 1e-12 * (sums_G**2).sum(), 0.0, squares_D)
        return mean_D, np.sqrt(squares_D * groups / max(groups - 1, 1)) / n_D

    table_DG = cluster_counts([str(g) for g in range(groups)], draws=draws, seed=seed)
    mean_D, se_D = moments(table_DG)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Studentised(float(values.mean()), float(moments(np.ones((1, groups)))[1][0]), mean_D / se_D)


def studentised_mean(
    values_N: Sequence[float] | np.ndarray,
    *,
    clusters_N: Sequence[Hashable],
    draws: int = 2000,
    seed: int = 0,
    over: str = "base items",
    level: float = LEVEL,
) -> Interval:
    """Clustered mean with a bootstrap-t interval: for skewed scores on few base items, where symmetric t is one-sided.

    `[mean - t*_{.975} se, mean - t*_{.025} se]`. Null with the reason below 10 clusters, where resamples without
    spread are no longer rare, or where the values do not differ.
    """
    found = clustered_mean(values_N, clusters_N=clusters_N, over=over, level=level)
    if found.n < 10:
        reason = f"no interval: {found.n} of {over}, a bootstrap t needs at least 10"
        return Interval(found.estimate, None, None, over, found.n, reason)
    drawn = studentise(values_N, clusters_N=clusters_N, draws=draws, seed=seed)
    t_D = drawn.t_D[np.isfinite(drawn.t_D)]
    if drawn.se == 0 or len(t_D) < 0.95 * draws:
        return Interval(found.estimate, None, None, over, found.n, "no interval: the base items hardly differ")
    low, high = np.quantile(t_D, [0.5 - level / 2, 0.5 + level / 2])
    estimate = found.estimate
    return Interval(estimate, estimate - high * drawn.se, estimate - low * drawn.se, over, found.n, se=drawn.se)


def jackknife_interval(
    statistic: Statistic, *, groups: int, over: str = "base items", level: float = LEVEL
) -> Interval:
    """t interval from leaving out each base item once: `se^2 = (G - 1) / G sum_g (s_(g) - mean)^2`, G - 1 degrees.

    For smooth functions of means (ratios, hypervolumes); not for medians. Deterministic: G + 1 evaluations. Null with
    the reason for fewer than 3 items, or where the statistic is not finite without one of them.
    """
    whole = np.ones((1, groups))
    estimate = float(statistic(whole)[0])
    if groups < 3:
        return Interval(estimate, None, None, over, groups, f"no interval: {groups} of {over}, at least 3 are needed")
    values_G = np.asarray(statistic(np.ones((groups, groups)) - np.eye(groups)), dtype=float)
    if not math.isfinite(estimate) or not np.isfinite(values_G).all():
        return Interval(estimate, None, None, over, groups, "no interval: undefined without one of the base items")
    se = math.sqrt((groups - 1) / groups * float(((values_G - values_G.mean()) ** 2).sum()))
    half = t_quantile(groups - 1, level) * se
    return Interval(estimate, estimate - half, estimate + half, over, groups, se=se, degrees=groups - 1)


def hypervolumes(points_DNK: np.ndarray, *, ref_point: Sequence[float]) -> np.ndarray:
    """`fronts.hypervolume` of each of D sets of points; shape D.

    Two objectives are swept for all sets at once: sorted by the first, from the best down, each point adds the strip
    between its height and the highest so far. With more objectives, or one, it is the loop.
    """
    points = np.asarray(points_DNK, dtype=float)
    reference = np.asarray(ref_point, dtype=float)
    if points.ndim != 3 or reference.shape != points.shape[2:]:
        raise ValueError(f"points of shape {points.shape} with a reference point of shape {reference.shape}")
    if points.shape[2] != 2:
        return np.array([fronts.hypervolume(set_NK, ref_point=reference) for set_NK in points])
    if not np.isfinite(points).all():
        raise ValueError("a point is not finite")
    above = np.maximum(points - reference, 0.0)  # a point that is not above in every objective spans nothing
    order = np.argsort(-above[:, :, 0], axis=1)
    width_DN = np.take_along_axis(above[:, :, 0], order, axis=1)
    height_DN = np.maximum.accumulate(np.take_along_axis(above[:, :, 1], order, axis=1), axis=1)
    rises_DN = np.diff(height_DN, axis=1, prepend=0.0)
    volumes_D: np.ndarray = (width_DN * rises_DN).sum(axis=1)
    return volumes_D
