"""At least one success in N draws, for N beyond the draws made: a beta fit, and bounds that need no fit; pure.

Items i differ in their chance p_i; of n_i draws c_i succeeded, and `ASR@N = E[1 - (1 - p)^N]` over items. The beta fit
(p ~ Beta(a, b), so ASR@N = 1 - B(a, b + N) / B(a, b)) extrapolates well only where its shape is right: with many items
that never fail, or with two kinds of them, its likelihood interval covers far too rarely (docs/safety_measures.md).
Therefore bounds of no family stand beside it: the smallest and the largest ASR@N of all distributions of p whose shares
of items with at least t successes lie within simultaneous exact limits. Sources: Hughes et al. 2024 (2412.03556) for
extrapolation in N; Clopper & Pearson 1934. Legend: N items, U kinds of counts, F fits, T thresholds, J chances.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from evals.stats.intervals import LEVEL, cluster_codes

LARGEST = math.log(1e4)  # of log(a + b): there all items have one chance
# more chances near 0, which N draws tell apart and n did not
CHANCES_J = np.concatenate([[0.0], np.geomspace(1e-6, 1.0, 240)])


@dataclass(frozen=True)
class Draws:
    """Successes of each item, its number of draws (at least 1), and the base item that it belongs to."""

    successes_N: Sequence[int]
    draws_N: Sequence[int]
    clusters_N: Sequence[Hashable]

    def __post_init__(self) -> None:
        pairs = list(zip(self.successes_N, self.draws_N, strict=True))
        if not pairs or len(pairs) != len(self.clusters_N) or any(not 0 <= c <= n or n < 1 for c, n in pairs):
            raise ValueError("draws are successes in [0, n] of n >= 1 draws with a cluster each, at least one item")


@dataclass(frozen=True)
class BetaFit:
    """The fit of largest likelihood, and all fits that a likelihood ratio test at `level` does not reject: a and b."""

    best: tuple[float, float]
    allowed_F2: np.ndarray

    def at(self, n: int) -> tuple[float, float, float]:
        """(ASR@n of the best fit, the smallest and the largest of the fits allowed)."""
        values_F = beta_at(self.allowed_F2[:, 0], self.allowed_F2[:, 1], n)
        return float(beta_at(*self.best, n)), float(values_F.min()), float(values_F.max())


def beta_fit(draws: Draws, *, level: float = LEVEL) -> BetaFit:
    """The beta-binomial's likelihood on a grid of (logit of the mean, log of a + b), looked at again where it is high.

    The likelihood counts base items, not items: it is scaled by their ratio where several items are one base item.
    """
    from scipy.stats import chi2

    pairs, counts_U = np.unique([draws.successes_N, draws.draws_N], axis=1, return_counts=True)
    scale = (int(cluster_codes(draws.clusters_N).max()) + 1) / len(draws.successes_N)
    cut = float(chi2.ppf(level, 1)) / 2

    def looked_at(logits: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places (logit, log size) of the grid, and the likelihood at each."""
        places_F2 = np.stack([one.ravel() for one in np.meshgrid(logits, sizes, indexing="ij")], axis=1)
        return places_F2, scale * (_log_likelihoods(_shape(places_F2), *pairs) @ counts_U)

    places_F2, found_F = looked_at(np.linspace(-12, 12, 97), np.linspace(-4, LARGEST, 54))
    near_F2 = places_F2[found_F >= found_F.max() - 3 * cut]
    (low, high), step = (near_F2.min(axis=0), near_F2.max(axis=0)), 0.25
    places_F2, found_F = looked_at(*(np.linspace(a - step, b + step, 121) for a, b in zip(low, high, strict=True)))
    shapes_F2 = _shape(places_F2)
    a, b = shapes_F2[found_F.argmax()]
    return BetaFit((float(a), float(b)), shapes_F2[found_F >= found_F.max() - cut])


def _shape(places_F2: np.ndarray) -> np.ndarray:
    """(logit of the mean, log of the size) -> (a, b)."""
    mean_F, size_F = 1 / (1 + np.exp(-places_F2[:, 0])), np.exp(places_F2[:, 1])
    return np.stack([mean_F * size_F, (1 - mean_F) * size_F], axis=1)


def _log_likelihoods(shapes_F2: np.ndarray, c_U: np.ndarray, n_U: np.ndarray) -> np.ndarray:
    """Log-likelihood of c successes in n draws for each shape, without the part that no shape changes; F x U."""
    from scipy.special import betaln

    a_F1, b_F1 = shapes_F2[:, :1], shapes_F2[:, 1:]
    return np.asarray(betaln(a_F1 + c_U, b_F1 + n_U - c_U) - betaln(a_F1, b_F1))


def beta_at(a: ArrayLike, b: ArrayLike, n: int) -> np.ndarray:
    """`1 - B(a, b + n) / B(a, b)`: the chance of at least one success in n draws."""
    from scipy.special import betaln

    return np.asarray(-np.expm1(betaln(a, np.asarray(b) + n) - betaln(a, b)))


def bounds(draws: Draws, *, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The smallest and the largest ASR@n of all distributions of p that the counts allow.

    Allowed: for t = 1, 2, 4, ... the expected share of items with at least t successes lies within limits of Clopper
    and Pearson at `level` for all t together (Bonferroni), with as many draws as there are base items.
    """
    from scipy.optimize import linprog
    from scipy.stats import beta, binom

    c_N, n_N = np.asarray(draws.successes_N), np.asarray(draws.draws_N)
    thresholds = [2**k for k in range(int(n_N.max()).bit_length())]
    groups = int(cluster_codes(draws.clusters_N).max()) + 1
    tail = (1 - level) / 2 / len(thresholds)
    sizes, counts = np.unique(n_N, return_counts=True)
    at_least_TJ = np.array([
        counts @ np.array([binom.sf(t - 1, size, CHANCES_J) for size in sizes]) / len(n_N) for t in thresholds
    ])  # fmt: skip
    hits_T = np.array([groups * (c_N >= t).mean() for t in thresholds])
    low_T = np.array([0.0 if h <= 0 else beta.ppf(tail, h, groups - h + 1) for h in hits_T])
    high_T = np.array([1.0 if h >= groups else beta.ppf(1 - tail, h + 1, groups - h) for h in hits_T])
    any_J = -np.expm1(n * np.log1p(-np.minimum(CHANCES_J, 1 - 1e-15)))
    limits = {
        "A_ub": np.concatenate([at_least_TJ, -at_least_TJ]), "b_ub": np.concatenate([high_T, -low_T]) + 1e-9,
        "A_eq": np.ones((1, len(CHANCES_J))), "b_eq": [1.0], "bounds": (0, 1), "method": "highs",
    }  # fmt: skip
    ends = [linprog(sign * any_J, **limits) for sign in (1, -1)]
    if not all(one.success for one in ends):
        raise RuntimeError(f"no distribution of chances fits the counts: {ends[0].message}")
    return max(0.0, float(ends[0].fun)), min(1.0, float(-ends[1].fun))
