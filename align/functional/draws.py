"""Preferences drawn to train on: weights over the simplex with a share of vertices, and directions in a cone; pure

Legend: N draws, K objectives.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np

from align.functional.simplex import even_draws
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
