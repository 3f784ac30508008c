"""Paired tests over base items: exact McNemar, sign flips, t, and families of them corrected; pure.

Shapes: G clusters (base items). Each test says its estimate, interval, p, clusters, degrees of freedom, what it runs
over, and how many comparisons its family makes. Sources: McNemar 1947 (exact: the smaller tail doubled); Fisher 1935
and Pitman 1937 (sign flips); Holm 1979; Tarone 1990.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evals.stats.intervals import LEVEL, Interval, benjamini_hochberg, holm, paired_difference

EXACT_BELOW = 13  # clusters that differ, up to which all 2^G sign flips are enumerated
BLOCK = 4_000_000  # entries of a table of draws held in memory at once


@dataclass(frozen=True)
class PairedTest:
    """One paired test. `p_adjusted` and `comparisons` belong to the family that `family` made; alone it is one."""

    method: str
    interval: Interval  # of first minus second, over base items
    p: float
    comparisons: int = 1
    p_adjusted: float | None = None
    correction: str | None = None

    @property
    def estimate(self) -> float:
        return self.interval.estimate

    @property
    def clusters(self) -> int:
        return self.interval.n

    @property
    def degrees(self) -> float | None:
        """Degrees of freedom of the interval; None where it is not a t interval."""
        return self.interval.degrees

    @property
    def says(self) -> str:
        """One line: all that a reader needs to judge the number."""
        pair = self.interval.pair
        limits = f"[{pair[0]:+.4g}, {pair[1]:+.4g}]" if pair else "no interval"
        words = f"{self.estimate:+.4g} {limits} ({self.interval.says}), p {self.p:.3g} by {self.method}"
        if self.p_adjusted is None:
            return f"{words}, 1 comparison"
        return f"{words}, {self.p_adjusted:.3g} by {self.correction} over {self.comparisons} comparisons"


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p that discordant pairs fall to both sides alike: `min(1, 2 P(X <= min))`, X ~ Bin(b + c, 1/2).

    ValueError on a negative count. Without a discordant pair nothing speaks against equality: 1.
    """
    if min(first_only, second_only) < 0:
        raise ValueError(f"{first_only} and {second_only} discordant pairs")
    n = first_only + second_only
    tail = sum(math.comb(n, j) for j in range(min(first_only, second_only) + 1))
    return min(1.0, 2 * tail / 2**n)


def sign_flip_p(changes_G: Sequence[float] | np.ndarray, *, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of the mean change when the two sides of each base item are swapped at random.

    The share of sign patterns whose |sum| is at least the observed one: of all patterns for at most 12 items that
    change, else of `draws` random ones, the observed one counted among them (so never 0). Exact where the change of an
    item is symmetric about 0 under the hypothesis; for single yes/no cells it is McNemar's p. 1 where nothing changes.
    """
    changes = np.asarray(changes_G, dtype=float)
    if not np.isfinite(changes).all():
        raise ValueError("a change is not finite")
    changes = changes[changes != 0]
    groups = len(changes)
    if groups == 0:
        return 1.0
    observed = abs(changes.sum()) * (1 - 1e-12)  # a mirrored pattern must not fall below by rounding
    if groups < EXACT_BELOW:
        patterns = (np.arange(2**groups)[:, None] >> np.arange(groups)) & 1
        return float((np.abs((1 - 2 * patterns) @ changes) >= observed).mean())
    rng, reached, left = np.random.default_rng(seed), 0, draws
    while left > 0:
        block = min(left, max(1, BLOCK // groups))
        signs = rng.integers(0, 2, size=(block, groups), dtype=np.int8)
        reached += int((np.abs(changes.sum() - 2 * (signs @ changes)) >= observed).sum())
        left -= block
    return (reached + 1) / (draws + 1)


def t_test(
    first: Mapping[str, float], *, second: Mapping[str, float], clusters: Mapping[str, Hashable] | None = None
) -> PairedTest:
    """Paired t with clustered errors and G - 1 degrees of freedom: `stats.paired_difference` with its p."""
    from scipy.special import stdtr

    found = paired_difference(first, second=second, clusters=clusters)
    if found.se is None:
        return PairedTest("no test", found, 1.0)
    if found.se == 0:
        return PairedTest("paired t", found, 0.0 if found.estimate else 1.0)
    return PairedTest("paired t", found, float(2 * stdtr(found.n - 1, -abs(found.estimate) / found.se)))


def family(tests: Sequence[PairedTest], *, correction: str = "Holm") -> list[PairedTest]:
    """The same tests with p adjusted for how many they are: "Holm" for a list of claims, "BH" for exploration."""
    adjust = {"Holm": holm, "BH": benjamini_hochberg}
    if correction not in adjust:
        raise ValueError(f"no correction {correction!r}; choose {' or '.join(adjust)}")
    values = adjust[correction]([test.p for test in tests])
    return [
        replace(test, p_adjusted=value, comparisons=len(tests), correction=correction)
        for test, value in zip(tests, values, strict=True)
    ]


def can_reject(changed: int, *, level: float = LEVEL) -> bool:
    """Whether McNemar's test, or sign flips, may reject where so many clusters change: p is least if all go one way."""
    return 2.0 ** (1 - changed) <= 1 - level


def holm_of_able(p_values: Sequence[float], *, changed: Sequence[int], level: float = LEVEL) -> tuple[list[float], int]:
    """(adjusted p in the order given, size of the family): Holm over the tests that can reject at all (Tarone 1990).

    Sound because the tests are conditional on how many clusters change. The adjusted p of a test outside is 1.
    """
    able = [i for i, count in enumerate(changed) if can_reject(count, level=level)]
    adjusted = [1.0] * len(p_values)
    for i, p in zip(able, holm([p_values[i] for i in able]), strict=True):
        adjusted[i] = p
    return adjusted, len(able)
