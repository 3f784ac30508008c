"""Preferences drawn to train on: points spread evenly over the simplex, with vertices, directions in a cone; pure.

Legend: N draws (of `systematic_draws`: responses), M prompts, K objectives.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np

from align.preferences import Direction, Weights


def draw_weights(
    count: int, *, objectives: int, rng: np.random.Generator, alpha: float = 1.0, vertices: float = 0.0
) -> list[Weights]:
    """`count` weights of Dirichlet(alpha, ..., alpha), evenly spread, a share `vertices` of them vertices in turn.

    Below alpha 1 the edges of the simplex are likelier than its middle, which the vertices are even more.
    """
    if count < 1 or objectives < 1 or not alpha > 0 or not 0 <= vertices <= 1:
        raise ValueError(f"cannot draw {count} weights of {objectives} objectives, alpha {alpha}, vertices {vertices}")
    inner = count - int(count * vertices + rng.random())
    drawn: list[Weights] = []
    if inner:
        source = random.Random(int(rng.integers(2**63)))
        points = even_draws(inner, objectives=objectives, concentration=alpha, rng=source)
        drawn = [Weights(tuple(max(0.0, w) for w in point_K)) for point_K in points]
    first = int(rng.integers(objectives))
    drawn += [Weights.vertex((first + i) % objectives, objectives) for i in range(count - inner)]
    return [drawn[i] for i in rng.permutation(count)]


def draw_directions(
    count: int, *, axis: Sequence[float], max_angle: float | None, rng: np.random.Generator
) -> list[Direction]:
    """`count` unit vectors, uniform on the part of the sphere within `max_angle` degrees of `axis`.

    None: uniform on the positive orthant, whatever the axis.
    """
    objectives = len(axis)
    if max_angle is None:
        normal_NK = np.abs(rng.standard_normal((count, objectives)))
        return [Direction(tuple(v_K / np.linalg.norm(v_K))) for v_K in normal_NK]
    middle_K = np.asarray(axis, dtype=float)
    if not 0 < max_angle <= 180 or not np.linalg.norm(middle_K) > 0:
        raise ValueError(f"no cone of {max_angle} degrees around {list(axis)}")
    middle_K = middle_K / np.linalg.norm(middle_K)
    drawn: list[Direction] = []
    widest = math.sin(math.radians(min(max_angle, 90.0)))
    while len(drawn) < count:
        angle = math.radians(max_angle) * rng.random()  # its density on the sphere is sin(angle)^(K - 2)
        if rng.random() > (math.sin(angle) / widest) ** (objectives - 2):
            continue
        side_K = rng.standard_normal(objectives)
        side_K -= (side_K @ middle_K) * middle_K
        v_K = math.cos(angle) * middle_K + math.sin(angle) * side_K / np.linalg.norm(side_K)
        drawn.append(Direction(tuple(v_K / np.linalg.norm(v_K))))
    return drawn


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


def systematic_draws(shares_MN: np.ndarray, *, count: int, rng: np.random.Generator) -> np.ndarray:
    """(M, count) indices: `count` draws by the shares of each row, at evenly spaced places behind one random start.

    Index i comes up `count * share_i` times on average, and never by a whole draw more or less (Kitagawa 1996). What
    has share 0 is not drawn. ValueError where a row's shares do not sum to 1.
    """
    ends_MN = shares_MN.cumsum(1)
    if count < 1 or (shares_MN < 0).any() or not np.allclose(ends_MN[:, -1], 1.0):
        raise ValueError(f"cannot draw {count} of shares that are below 0 or do not sum to 1")
    places_MC = (rng.random((len(shares_MN), 1)) + np.arange(count)) / count
    last_M = [int(np.flatnonzero(row)[-1]) for row in shares_MN]  # rounding may leave a sum below the last place
    found = [np.searchsorted(ends, at, side="right") for ends, at in zip(ends_MN, places_MC, strict=True)]
    return np.stack([np.minimum(index, last) for index, last in zip(found, last_M, strict=True)])


def dirichlet(concentration_K: Sequence[float], *, rng: random.Random) -> tuple[float, ...]:
    """One draw of a Dirichlet with these parameters, all above 0."""
    gammas = [rng.gammavariate(a, 1.0) for a in concentration_K]
    return tuple(g / sum(gammas) for g in gammas)
