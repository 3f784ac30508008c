"""What size of change a number of items can show: the minimum detectable change (Miller 2024, section 5); pure."""

from __future__ import annotations

import math

from evals.stats.intervals import LEVEL

POWER = 0.8


def minimum_detectable(sd: float, *, n: int, power: float = POWER, level: float = LEVEL, design: float = 1.0) -> float:
    """The smallest mean paired difference that `n` items show with that power, in the units of `sd`.

    `(z_{alpha/2} + z_power) sd sqrt(design / n)`; `sd` is that of one item's paired difference, `design` the factor by
    which clusters inflate the variance of a mean. ValueError for no items or a negative `sd`.
    """
    from scipy.special import ndtri

    if n < 1 or sd < 0:
        raise ValueError(f"{n} items with sd {sd}")
    return float(ndtri(0.5 + level / 2) + ndtri(power)) * sd * math.sqrt(design / n)
