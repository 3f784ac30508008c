"""Random preferences: draws from a Dirichlet that are spread evenly over the simplex; pure.

Legend: K objectives.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def even_draws(count: int, *, objectives: int, concentration: float, rng: random.Random) -> list[tuple[float, ...]]:
    """`count` points of the simplex in random order, each Dirichlet(concentration, ...), evenly spread together.

    Stick-breaking, `w_k = (1 - w_1 - ... - w_{k-1}) b_k` with `b_k ~ Beta(a, (K - k) a)`, where the draws of each b_k
    fall into `count` equally likely intervals, one into each (a Latin hypercube). With two objectives the weights
    themselves are stratified. ValueError on a number below 1 or a concentration that is not above 0.
    """
    from scipy.special import betaincinv

    if count < 1 or objectives < 1 or not concentration > 0:
        raise ValueError(f"cannot draw {count} points for {objectives} objectives at concentration {concentration}")
    left, columns = [1.0] * count, []
    for k in range(1, objectives):
        strata = rng.sample(range(count), count)
        below = [(s + rng.random()) / count for s in strata]
        shares = betaincinv(concentration, (objectives - k) * concentration, below).tolist()
        columns.append([rest * share for rest, share in zip(left, shares, strict=True)])
        left = [rest - taken for rest, taken in zip(left, columns[-1], strict=True)]
    return list(zip(*columns, left, strict=True))


def dirichlet(concentration_K: Sequence[float], *, rng: random.Random) -> tuple[float, ...]:
    """One draw of a Dirichlet with these parameters, all above 0."""
    gammas = [rng.gammavariate(a, 1.0) for a in concentration_K]
    return tuple(g / sum(gammas) for g in gammas)
