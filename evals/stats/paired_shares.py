"""Paired changes of shares: Tango's score interval with clusters, and a p that agrees with it; pure.

Shapes: N items, G clusters (base items). A change lies in [-1, 1]: an item's share after less its share before. Tango's
interval (1998, Statistics in Medicine 17:891) inverts the score test, whose value at 0 is McNemar's, so it stays right
where few items change; t does not. Clusters and shares over samples enter through the effective number of cells (Korn &
Graubard 1998). At 0 the exact test decides: where it does not reject, the interval reaches to 0.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from evals.stats.intervals import LEVEL, Interval, cluster_codes, t_quantile
from evals.stats.paired_tests import mcnemar, sign_flip_p

OVER = "base items, paired"
TOLD = 6  # changed clusters below which nothing is known of how alike a cluster's items are; fewer never reject at .05


@dataclass(frozen=True)
class PairedChange:
    """A mean change with its interval and its p: at the interval's level, p rejects exactly where it leaves out 0.

    `worse` and `better` count clusters that rose and fell; `cells` is the effective number of independent yes/no cells,
    of which the shares `rose` and `fell` moved.
    """

    interval: Interval
    p: float
    test: str
    worse: int
    better: int
    cells: float
    rose: float
    fell: float


def paired_change(
    after: Mapping[str, float],
    *,
    before: Mapping[str, float],
    clusters: Mapping[str, Hashable] | None = None,
    span: float = 1.0,
    over: str = OVER,
) -> Interval | None:
    """The interval of `share_change`; `over` says what the clusters are."""
    found = share_change(after, before=before, clusters=clusters, span=span)
    return None if found is None else replace(found.interval, over=over)


def share_change(
    after: Mapping[str, float],
    *,
    before: Mapping[str, float],
    clusters: Mapping[str, Hashable] | None = None,
    span: float = 1.0,
) -> PairedChange | None:
    """Mean of `after - before` over the items that both have; None where there is none.

    Each item is its own cluster unless `clusters` says; `span` is the largest change that an item can make. Where every
    cluster is one item that moves by 0 or by all of `span`, the cells are the items, and p is McNemar's exact one. Else
    the cells are `(rose + fell - change^2) / variance` with the clustered CR2 variance, at most one an item if items
    move by 0 or all, and at most one a cluster if fewer than TOLD clusters change; the quantile is t's; and p is that
    of sign flips by cluster, or of the score test where that alone does not reject. ValueError for a change beyond
    `span`.
    """
    both = [item for item in after if item in before]
    if not both:
        return None
    changes_N = np.array([after[item] - before[item] for item in both]) / span
    if not (np.abs(changes_N) <= 1 + 1e-9).all():
        raise ValueError(f"a change is not within [-{span:g}, {span:g}]")
    codes_N = cluster_codes([item if clusters is None else clusters[item] for item in both])
    counts_G, sums_G = np.bincount(codes_N), np.bincount(codes_N, weights=changes_N)
    mean, groups = float(changes_N.mean()), len(counts_G)
    rose, fell = (float(np.maximum(sign * changes_N, 0).mean()) for sign in (1, -1))
    worse, better = int((sums_G > 1e-12).sum()), int((sums_G < -1e-12).sum())
    if groups < 2:
        reason = f"no interval: {groups} of {OVER}, at least 2 are needed"
        none = Interval(span * mean, None, None, OVER, groups, reason)
        return PairedChange(none, 1.0, "none", worse, better, groups, rose, fell)
    weights_G = counts_G / len(both)
    variance = float((((sums_G - mean * counts_G) / len(both)) ** 2 / (1 - weights_G)).sum())
    whole = bool(np.isin(np.round(np.abs(changes_N), 9), (0, 1)).all())
    single = whole and groups == len(both)
    if single:
        cells, degrees = float(groups), math.inf
        p, test = mcnemar(worse, better), "McNemar, exact"
    else:
        cells, degrees = _effective(rose, fell, variance=variance, weights_G=weights_G, changed=worse + better)
        cells = min(cells, len(both)) if whole else cells
        p, test = sign_flip_p(np.where(np.abs(sums_G) > 1e-12, sums_G, 0.0)), "sign flips"
        if p <= 1 - LEVEL < (score_p := _score_p(rose, fell, cells=cells, degrees=degrees)):
            p, test = score_p, "score"
    low, high = score_limits(rose, fell, cells=cells, quantile=t_quantile(degrees, LEVEL))
    if p > 1 - LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    found = Interval(
        span * mean, span * low, span * high, OVER, groups, se=span * math.sqrt(variance) or None,
        degrees=None if single else degrees,
    )  # fmt: skip
    return PairedChange(found, p, test, worse, better, cells, rose, fell)


def _effective(
    rose: float, fell: float, *, variance: float, weights_G: np.ndarray, changed: int
) -> tuple[float, float]:
    """(effective number of yes/no cells, degrees of freedom): see `share_change`."""
    clusters = 1 / float((weights_G**2).sum())
    spread = rose + fell - (rose - fell) ** 2
    if variance < 1e-18 or spread < 1e-12:
        return clusters, clusters - 1
    cells = spread / variance
    return (min(cells, clusters) if changed < TOLD else cells), clusters - 1


def _score_p(rose: float, fell: float, *, cells: float, degrees: float) -> float:
    from scipy.special import stdtr

    return float(2 * stdtr(degrees, -abs(rose - fell) * math.sqrt(cells / (rose + fell)))) if rose + fell else 1.0


def score_limits(rose: float, fell: float, *, cells: float, quantile: float) -> tuple[float, float]:
    """Tango's limits for `rose - fell`, where of `cells` paired yes/no cells these shares rose and fell.

    The changes d with `(rose - fell - d)^2 <= quantile^2 (2 q + d (1 - d)) / cells`, where q is the most likely share
    that falls if the change is d: the root of `2 q^2 + (2 d - d (rose - fell) - rose - fell) q - fell d (1 - d) = 0`.
    """
    mean = rose - fell

    def inside(d: float) -> bool:
        b = d * (2 - mean) - rose - fell
        q = (math.sqrt(max(0.0, b * b + 8 * fell * d * (1 - d))) - b) / 4
        return (mean - d) ** 2 <= quantile**2 * max(0.0, 2 * q + d * (1 - d)) / cells

    limits = []
    for end in (-1.0, 1.0):
        within, beyond = mean, end
        if inside(end):
            within = end
        for _ in range(60):
            middle = (within + beyond) / 2
            within, beyond = (middle, beyond) if inside(middle) else (within, middle)
        limits.append(within)
    return limits[0], limits[1]
