"""Drawn preferences: weights of their Dirichlet law, spread evenly over a batch, directions uniform in a cone."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from align.functional.draws import draw_directions, draw_weights
from align.preferences import Weights


@pytest.mark.parametrize(("objectives", "alpha"), [(2, 1.0), (3, 1.0), (3, 0.5), (4, 2.0)])
def test_drawn_weights_have_the_moments_of_their_dirichlet_law(objectives: int, alpha: float) -> None:
    rng = np.random.default_rng(0)
    table_NK = np.array([w.values for w in draw_weights(20000, objectives=objectives, rng=rng, alpha=alpha)])
    assert table_NK.sum(1) == pytest.approx(1.0, abs=2e-6)  # entries have six decimals
    total = objectives * alpha
    variance = (1 / objectives) * (1 - 1 / objectives) / (total + 1)
    assert table_NK.mean(0) == pytest.approx(1 / objectives, abs=0.01)
    assert table_NK.var(0) == pytest.approx(variance, rel=0.05)
    covariance = np.cov(table_NK.T)[np.triu_indices(objectives, 1)]
    assert covariance == pytest.approx(-(1 / objectives**2) / (total + 1), rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_the_weights_of_a_batch_are_spread_evenly(seed: int) -> None:
    """Two objectives: exactly one first weight in each sixteenth of [0, 1]; independent draws never do that."""
    drawn = draw_weights(16, objectives=2, rng=np.random.default_rng(seed))
    assert sorted(int(w[0] * 16) for w in drawn) == list(range(16))
    assert [w[0] for w in drawn] != sorted(w[0] for w in drawn)  # but in no order
    three = draw_weights(16, objectives=3, rng=np.random.default_rng(seed))
    # The first of three has the law P(w < t) = 1 - (1 - t)^2; the second's share of the rest is uniform.
    assert sorted(int((1 - (1 - w[0]) ** 2) * 16) for w in three) == list(range(16))
    assert sorted(int(w[1] / (1 - w[0]) * 16) for w in three) == list(range(16))


def test_a_share_of_vertices_is_drawn_in_turn() -> None:
    rng = np.random.default_rng(0)
    drawn = [w for _ in range(200) for w in draw_weights(10, objectives=3, rng=rng, vertices=0.25)]
    vertices = Counter(w.values for w in drawn if w.is_vertex)
    assert set(vertices) == {Weights.vertex(k, 3).values for k in range(3)}
    assert sum(vertices.values()) == pytest.approx(500, abs=40)
    assert max(vertices.values()) - min(vertices.values()) < 60
    assert all(w.is_vertex for w in draw_weights(8, objectives=2, rng=rng, vertices=1.0))
    assert draw_weights(3, objectives=1, rng=rng) == [Weights((1.0,))] * 3
    with pytest.raises(ValueError, match="alpha 0"):
        draw_weights(3, objectives=2, rng=rng, alpha=0)


def test_directions_lie_on_the_positive_orthant() -> None:
    rng = np.random.default_rng(0)
    table_NK = np.array([v.values for v in draw_directions(4000, axis=(1, 1), max_angle=None, rng=rng)])
    angles = np.degrees(np.arctan2(table_NK[:, 1], table_NK[:, 0]))
    assert table_NK.min() >= 0 and np.linalg.norm(table_NK, axis=1) == pytest.approx(1.0)
    counts, _ = np.histogram(angles, bins=9, range=(0, 90))  # uniform on the arc
    assert counts.min() > 444 - 5 * math.sqrt(444) and counts.max() < 444 + 5 * math.sqrt(444)


@pytest.mark.parametrize("objectives", [2, 3])
def test_directions_in_a_cone_are_uniform_there(objectives: int) -> None:
    rng = np.random.default_rng(0)
    axis = (1.0,) + (0.0,) * (objectives - 1)
    table_NK = np.array([v.values for v in draw_directions(4000, axis=axis, max_angle=45.0, rng=rng)])
    angles = np.degrees(np.arccos(np.clip(table_NK[:, 0], -1, 1)))
    assert angles.max() <= 45 + 1e-6 and (table_NK[:, 1] < 0).mean() == pytest.approx(0.5, abs=0.05)
    # P(angle < 22.5): half the arc for two objectives, the share of the cap's area for three.
    inner = 0.5 if objectives == 2 else (1 - math.cos(math.radians(22.5))) / (1 - math.cos(math.radians(45)))
    assert (angles < 22.5).mean() == pytest.approx(inner, abs=0.04)
