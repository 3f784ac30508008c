"""What size of change a number of items can show: the smallest true change that McNemar's exact test finds; pure."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from evals.stats.intervals import LEVEL

POWER = 0.8


@lru_cache
def smallest_visible(
    cells: int, *, against: float = 0.0, comparisons: int = 1, power: float = POWER, level: float = LEVEL
) -> float | None:
    """The smallest true change of a share that the exact McNemar test of so many paired cells shows with that power.

    `against` is the share of cells that move the other way meanwhile, and p must pass Holm's first step among so many
    `comparisons`. Summed exactly over how many cells move, and how many of them which way. None where no change at all
    would show. ValueError for a share outside [0, 1/2] or no comparison.
    """
    from scipy.special import bdtrc
    from scipy.stats import binom

    if not 0 <= against <= 0.5 or comparisons < 1:
        raise ValueError(f"a share of {against} against, {comparisons} comparisons")
    moved_M = np.arange(cells + 1)
    enough_M = binom.isf((1 - level) / comparisons / 2, moved_M, 0.5)  # with more than so many to one side p is small

    def found(change: float) -> float:
        moving = min(1.0, 2 * against + change)
        up = min(1.0, (against + change) / moving)
        chance_M = binom.pmf(moved_M, cells, moving)
        kept = (chance_M > 1e-12) & (enough_M < moved_M)
        return float(chance_M[kept] @ bdtrc(enough_M[kept], moved_M[kept], up))

    low, high = 0.0, 1 - 2 * against
    if high == 0 or found(high) < power:
        return None
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) >= power else (middle, high)
    return high
