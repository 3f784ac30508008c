"""Intervals that say over what they run: clustered, paired, bootstrap, binomial, seeds; Holm and BH corrections; pure.

Shapes: N values, G clusters (base items), D bootstrap draws. Sources: Miller 2024 (clustered errors), Wilson 1927,
Holm 1979, Benjamini & Hochberg 1995, Hesterberg 2015 (expanded percentiles). Every interval is a frozen `Interval`; one
that cannot be had is null with the reason. A clustered mean of equal values has no width: for yes/no cells, where that
would claim certainty, use `evals.stats.shares`.
"""

import math
import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with a two-sided interval, what the interval runs over, and how many of those there were."""

    estimate: float
    low: float | None
    high: float | None
    over: str  # e.g. "base items", "training seeds"
    n: int
    reason: str | None = None  # why low and high are None
    se: float | None = None
    degrees: float | None = None  # degrees of freedom of the t quantile, where one was used

    @property
    def pair(self) -> list[float] | None:
        """[low, high], or None."""
        return None if self.low is None or self.high is None else [self.low, self.high]

    @property
    def says(self) -> str:
        """What the interval runs over and n, or why there is none: the words that stand beside the number."""
        return self.reason if self.reason is not None else f"{LEVEL:.0%} over {self.n} {self.over}"

    @property
    def stated(self) -> dict[str, Any]:
        """The number with all that must stand beside it, JSON-ready."""
        return {"value": self.estimate, "ci": self.pair, "over": self.says, "n": self.n}

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def t_quantile(degrees: float, level: float) -> float:
    """The t quantile of a two-sided interval: 2.0930 for 19 degrees of freedom at .95."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + level / 2))


def _none(estimate: float, over: str, n: int, reason: str) -> Interval:
    return Interval(estimate, None, None, over, n, reason)


def cluster_codes(clusters_N: Sequence[Hashable]) -> np.ndarray:
    """0 .. G - 1 for each label, in order of first appearance; shape N."""
    index: dict[Hashable, int] = {}
    return np.array([index.setdefault(cluster, len(index)) for cluster in clusters_N], dtype=int)


def _cluster_sums(values: np.ndarray, clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """(sum of the values, number of values) per cluster, in order of first appearance."""
    if len(values) != len(clusters) or len(values) == 0:
        raise ValueError(f"{len(values)} values with {len(clusters)} cluster labels: one label each, at least one")
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite")
    codes = cluster_codes(clusters)
    return np.bincount(codes, weights=values), np.bincount(codes).astype(float)


def clustered_variance(values_N: Sequence[float] | np.ndarray, *, clusters_N: Sequence[Hashable]) -> tuple[float, int]:
    """(variance of the grand mean with clusters as the units, G): `G/(G-1) sum_c (sum_i (s_i - mean))^2 / n^2`.

    Infinite for a single cluster. With one value per cluster it is the plain s^2 / n.
    """
    values = np.asarray(values_N, dtype=float)
    sums_G, counts_G = _cluster_sums(values, clusters_N)
    groups = len(sums_G)
    if groups < 2:
        return math.inf, groups
    residuals_G = sums_G - counts_G * values.mean()
    return float(groups / (groups - 1) * (residuals_G**2).sum() / len(values) ** 2), groups


def clustered_mean(
    values_N: Sequence[float] | np.ndarray,
    *,
    clusters_N: Sequence[Hashable],
    over: str = "base items",
    level: float = LEVEL,
) -> Interval:
    """Grand mean with a t interval on G - 1 degrees of freedom from the clustered standard error."""
    values = np.asarray(values_N, dtype=float)
    variance, groups = clustered_variance(values, clusters_N=clusters_N)
    mean = float(values.mean())
    if groups < 2:
        return _none(mean, over, groups, f"no interval: {groups} of {over}, at least 2 are needed")
    se = math.sqrt(variance)
    half = t_quantile(groups - 1, level) * se
    return Interval(mean, mean - half, mean + half, over, groups, se=se, degrees=groups - 1)


def clustered_ratio(
    first_N: Sequence[float] | np.ndarray, *, second_N: Sequence[float] | np.ndarray, clusters_N: Sequence[Hashable]
) -> Interval:
    """`r = sum first / sum second`, linearised: the clustered mean of `r + (first - r second) / mean(second)`.

    ValueError where the second values sum to 0.
    """
    first, second = np.asarray(first_N, dtype=float), np.asarray(second_N, dtype=float)
    if second.sum() == 0:
        raise ValueError("a ratio to a sum of 0")
    found = first.sum() / second.sum()
    return clustered_mean(found + (first - found * second) / second.mean(), clusters_N=clusters_N)


def paired_difference(
    first: Mapping[str, float],
    *,
    second: Mapping[str, float],
    clusters: Mapping[str, Hashable] | None = None,
    over: str = "base items",
    level: float = LEVEL,
) -> Interval:
    """Mean of `first - second` over the same keys, clustered (each key its own cluster unless `clusters` says).

    The covariance of the two stays in, which an unpaired z would drop. ValueError where the keys differ: a missing
    partner is for the caller to explain, not to lose here.
    """
    if set(first) != set(second):
        odd = sorted(map(str, set(first) ^ set(second)))[:3]
        raise ValueError(f"not paired: {', '.join(odd)} stands on one side only")
    keys = list(first)
    differences = [first[key] - second[key] for key in keys]
    labels: Sequence[Hashable] = keys if clusters is None else [clusters[key] for key in keys]
    return clustered_mean(differences, clusters_N=labels, over=over, level=level)


def unpaired_difference(
    first_N: Sequence[float] | np.ndarray,
    *,
    second_M: Sequence[float] | np.ndarray,
    clusters_N: Sequence[Hashable],
    clusters_M: Sequence[Hashable],
    over: str = "base items",
    level: float = LEVEL,
) -> Interval:
    """Difference of two clustered means of different items, Welch's t with the Satterthwaite degrees of freedom."""
    first, second = np.asarray(first_N, dtype=float), np.asarray(second_M, dtype=float)
    variance_a, groups_a = clustered_variance(first, clusters_N=clusters_N)
    variance_b, groups_b = clustered_variance(second, clusters_N=clusters_M)
    difference, n = float(first.mean() - second.mean()), groups_a + groups_b
    words = f"{over} ({groups_a} against {groups_b} others, unpaired)"
    if min(groups_a, groups_b) < 2:
        return _none(difference, words, n, f"no interval: {groups_a} against {groups_b} {over}, at least 2 each")
    variance = variance_a + variance_b
    if variance == 0:
        return Interval(difference, difference, difference, words, n, se=0.0)
    degrees = variance**2 / (variance_a**2 / (groups_a - 1) + variance_b**2 / (groups_b - 1))
    half = t_quantile(degrees, level) * math.sqrt(variance)
    return Interval(difference, difference - half, difference + half, words, n, se=math.sqrt(variance), degrees=degrees)


def cluster_counts(items: Sequence[str], *, draws: int, seed: int) -> np.ndarray:
    """How often each base item is drawn in each bootstrap resample; shape D x G, every row sums to G.

    A function of its arguments alone, so that rows, shifts and policies on the same items share the resamples: that is
    what makes the bootstrap paired. Other items get an independent stream.
    """
    groups = len(items)
    if groups < 1 or draws < 2:
        raise ValueError(f"a bootstrap needs items and at least two draws, not {groups} and {draws}")
    stream = np.random.default_rng([seed, zlib.crc32("\n".join(items).encode())])
    picks_DG = stream.integers(groups, size=(draws, groups)) + np.arange(draws)[:, None] * groups
    return np.bincount(picks_DG.ravel(), minlength=draws * groups).reshape(draws, groups)


def expanded_level(n: int, *, level: float = LEVEL) -> float:
    """The level whose percentiles make a bootstrap over `n` items as wide as t with s^2 / n is: above `level`.

    Resampling estimates the variance as `(n - 1) / n` of the unbiased one, and percentiles are those of a normal law.
    Both are fixed by the tail `Phi(-t_{n-1} sqrt(n / (n - 1)))` (Hesterberg 2015, section 4.5): 20 items
    at .95 ask for the percentiles of .968.
    """
    from scipy.special import ndtr

    return float(1 - 2 * ndtr(-t_quantile(n - 1, level) * math.sqrt(n / (n - 1))))


def bootstrap_interval(
    draws_D: Sequence[float] | np.ndarray,
    *,
    estimate: float,
    n: int,
    over: str = "base items",
    level: float = LEVEL,
) -> Interval:
    """Percentile interval from the statistic's value in each resample of `n` base items.

    The percentiles are those of `expanded_level(n)`: plain ones are too close together for few items. Null with the
    reason for fewer than 2 items, or when more than 5 % of the resamples have no finite value.
    """
    values = np.asarray(draws_D, dtype=float)
    finite = np.isfinite(values)
    if n < 2:
        return _none(estimate, over, n, f"no interval: {n} of {over}, at least 2 are needed")
    if finite.mean() < 0.95:
        return _none(estimate, over, n, f"no interval: undefined in {(~finite).sum()} of {len(values)} resamples")
    width = expanded_level(n, level=level)
    low, high = np.quantile(values[finite], [0.5 - width / 2, 0.5 + width / 2])
    return Interval(estimate, float(low), float(high), over, n, se=float(values[finite].std(ddof=1)), degrees=n - 1)


def wilson(successes: int, *, n: int, over: str = "items", level: float = LEVEL) -> Interval:
    """Wilson's score interval for a proportion of independent yes/no items."""
    from scipy.special import ndtri

    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes in {n} items")
    z = float(ndtri(0.5 + level / 2))
    share, scale = successes / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), over, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values in the order given: reject those at or below alpha, family-wise error alpha."""
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError("a p-value lies outside [0, 1]")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the order given: rejecting those at or below q keeps the false discovery rate at q.

    For exploration; a list of claims takes `holm`. Valid for independent or positively dependent tests.
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError("a p-value lies outside [0, 1]")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i], reverse=True)
    adjusted, running = [0.0] * len(p_values), 1.0
    for above, i in enumerate(order):
        running = min(running, p_values[i] * len(p_values) / (len(p_values) - above))
        adjusted[i] = running
    return adjusted


def seed_interval(values: Sequence[float], *, over: str = "training seeds", level: float = LEVEL) -> Interval:
    """t interval over training runs; null with the reason for fewer than 3 of them."""
    if not values:
        raise ValueError("an interval over seeds needs at least one value")
    n = len(values)
    if n < 3:
        runs = over.removesuffix("s") if n == 1 else over
        reason = f"no interval: {n} {runs}, at least 3 are needed"
        return _none(float(np.mean(values)), over, n, reason)
    return clustered_mean(values, clusters_N=range(n), over=over, level=level)
