"""Tests of paired yes/no outcomes, and what size of change a number of items can show; pure.

Sources: McNemar 1947 (exact, two-sided: the smaller tail doubled); Miller 2024 (power of paired evaluations).
"""

from __future__ import annotations

import math


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p that discordant pairs fall to both sides alike: `min(1, 2 P(X <= min))`, X ~ Bin(b + c, 1/2).

    ValueError on a negative count. Without a discordant pair nothing speaks against equality: 1.
    """
    if min(first_only, second_only) < 0:
        raise ValueError(f"{first_only} and {second_only} discordant pairs")
    n = first_only + second_only
    tail = sum(math.comb(n, j) for j in range(min(first_only, second_only) + 1))
    return min(1.0, 2 * tail / 2**n)


def items_needed(difference: float, *, sd: float, power: float = 0.8, level: float = 0.95) -> int:
    """Items for a paired difference to be seen: `((z_{alpha/2} + z_power) sd / difference)^2`, rounded up."""
    return math.ceil((_z_sum(power, level) * sd / abs(difference)) ** 2)


def minimum_detectable(sd: float, *, n: int, power: float = 0.8, level: float = 0.95) -> float:
    """The smallest mean paired difference that `n` base items show with that power, in the units of `sd`."""
    return _z_sum(power, level) * sd / math.sqrt(n)


def _z_sum(power: float, level: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(0.5 + level / 2) + ndtri(power))
