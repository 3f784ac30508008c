"""Shares of yes/no cells in clusters: Wilson's interval with clusters, P(A | B), never zero-wide; pure.

Shapes: G clusters (base items), P pairs of items. Each cluster brings `hits` among `cells`; both may be fractions, such
as means over samples. A plain t interval leaves [0, 1] and has no width where every cell agrees, which is where safety
numbers live. Sources: Wilson 1927; Korn & Graubard 1998 (effective sample size); Bell & McCaffrey 2002 (CR2); Carter,
Schnepel & Steigerwald 2017 (effective number of clusters); Fafchamps & Gubert 2007 (pairs).
Paired changes: paired_shares.py.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from evals.stats.intervals import LEVEL, Interval, t_quantile


def share(
    hits_G: Sequence[float] | np.ndarray,
    *,
    cells_G: Sequence[float] | np.ndarray,
    over: str = "base items",
    level: float = LEVEL,
) -> Interval:
    """`sum hits / sum cells` with Wilson's interval at the effective number of cells and a t quantile.

    The variance is the linearised one of a ratio with the CR2 factor, `sum_c (h_c - r n_c)^2 / (1 - n_c / n) / n^2`,
    which is G / (G - 1) for equal clusters; the effective number of cells is `r (1 - r) / variance`, or, where every
    cluster agrees, the effective number of clusters `n^2 / sum_c n_c^2`; the degrees of freedom are the latter less 1.
    Clusters without cells say nothing and are not counted. ValueError where a cluster has hits outside [0, cells], or
    where no cluster has a cell.
    """
    hits, cells = np.asarray(hits_G, dtype=float), np.asarray(cells_G, dtype=float)
    if hits.shape != cells.shape or hits.ndim != 1:
        raise ValueError(f"hits of shape {hits.shape} with cells of shape {cells.shape}: one each per cluster")
    if not (np.isfinite(hits).all() and np.isfinite(cells).all()) or (hits < 0).any() or (hits > cells + 1e-9).any():
        raise ValueError("a cluster has hits outside [0, cells]")
    hits, cells = hits[cells > 0], cells[cells > 0]
    if len(cells) == 0:
        raise ValueError("a share needs at least one cluster with a cell")
    total, groups = float(cells.sum()), len(cells)
    found = float(min(1.0, hits.sum() / total))
    if groups < 2:
        return Interval(found, None, None, over, groups, f"no interval: {groups} of {over}, at least 2 are needed")
    weights = cells / total
    variance = float((((hits - found * cells) / total) ** 2 / (1 - weights)).sum())
    clusters = 1 / float((weights**2).sum())
    agreed = variance < 1e-18
    effective = clusters if agreed else found * (1 - found) / variance
    low, high = _score_interval(found, n=effective, quantile=t_quantile(clusters - 1, level))
    se = None if agreed else math.sqrt(variance)
    return Interval(found, low, high, over, groups, se=se, degrees=clusters - 1)


def share_of(
    hits_N: Sequence[float] | np.ndarray, *, clusters_N: Sequence[Hashable], over: str = "base items",
    level: float = LEVEL,
) -> Interval:  # fmt: skip
    """`share` of single cells: a hit in [0, 1] each, and the cluster that each belongs to."""
    if len(hits_N) != len(clusters_N):
        raise ValueError(f"{len(hits_N)} hits with {len(clusters_N)} clusters: one each")
    hits: dict[Hashable, float] = {}
    cells: dict[Hashable, int] = {}
    for hit, cluster in zip(hits_N, clusters_N, strict=True):
        hits[cluster], cells[cluster] = hits.get(cluster, 0.0) + float(hit), cells.get(cluster, 0) + 1
    return share(list(hits.values()), cells_G=list(cells.values()), over=over, level=level)


def share_of_pairs(
    hits_P: Mapping[tuple[str, str], float], *, clusters: Mapping[str, Hashable], over: str = "base items",
    level: float = LEVEL,
) -> Interval:  # fmt: skip
    """Mean over items of their share of hits among the pairs that they are in, with `share`'s interval for pairs.

    Two pairs that have a base item in common are not independent: the variance sums the products of the residuals of
    all such pairs, each product once (dyadic clusters), times G / (G - 1), and is at least that of independent pairs.
    `clusters` maps item -> base item. ValueError without a pair, or for a hit outside [0, 1].
    """
    if not hits_P or any(not 0 <= hit <= 1 for hit in hits_P.values()):
        raise ValueError("a share of pairs needs at least one pair, and hits within [0, 1]")
    partners: dict[str, int] = {}
    for item in (item for pair in hits_P for item in pair):
        partners[item] = partners.get(item, 0) + 1
    weights_P = {pair: sum(1 / partners[item] for item in pair) / len(partners) for pair in hits_P}
    found = min(1.0, sum(weights_P[pair] * hit for pair, hit in hits_P.items()))
    both: dict[frozenset[Hashable], float] = {}  # the residuals between two base items, or inside one
    sums: dict[Hashable, float] = {}
    size: dict[Hashable, float] = {}
    for pair, hit in hits_P.items():
        ends, rest = frozenset(clusters[item] for item in pair), weights_P[pair] * (hit - found)
        both[ends] = both.get(ends, 0.0) + rest
        for end in ends:
            sums[end] = sums.get(end, 0.0) + rest
            size[end] = size.get(end, 0.0) + weights_P[pair] / len(ends)
    groups = len(sums)
    if groups < 2:
        return Interval(found, None, None, over, groups, f"no interval: {groups} of {over}, at least 2 are needed")
    apart = sum(value**2 for value in both.values())
    twice = sum(value**2 for ends, value in both.items() if len(ends) == 2)
    variance = max(apart, sum(value**2 for value in sums.values()) - twice) * groups / (groups - 1)
    number = 1 / sum(value**2 for value in size.values())
    agreed = variance < 1e-18
    effective = number if agreed else found * (1 - found) / variance
    low, high = _score_interval(found, n=effective, quantile=t_quantile(number - 1, level))
    return Interval(found, low, high, over, groups, se=None if agreed else math.sqrt(variance), degrees=number - 1)


def _score_interval(found: float, *, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's limits for a share of n independent cells, at any quantile."""
    square = quantile * quantile / n
    centre = (found + square / 2) / (1 + square)
    half = quantile * math.sqrt(found * (1 - found) / n + square / (4 * n)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


def conditional_share(
    event: Mapping[str, float],
    *,
    given: Mapping[str, float],
    clusters: Mapping[str, str] | None = None,
    over: str = "base items",
    level: float = LEVEL,
) -> Interval | None:
    """`P(event | given) = sum_i given_i event_i / sum_i given_i` over the items that have both.

    Each value is an item's share over its own samples. The two are drawn apart (before and under a shift), so that
    given the item they are independent and their product is unbiased without pairing samples one by one. Each item is
    its own cluster unless `clusters` says. None where nothing given was seen.
    """
    hits: dict[str, float] = {}
    weights: dict[str, float] = {}
    for item, weight in given.items():
        if item in event and weight > 0:
            cluster = item if clusters is None else clusters[item]
            hits[cluster] = hits.get(cluster, 0.0) + weight * event[item]
            weights[cluster] = weights.get(cluster, 0.0) + weight
    if not weights:
        return None
    cells = list(weights.values())
    return share([hits[c] for c in weights], cells_G=cells, over=f"{over} with the condition", level=level)
