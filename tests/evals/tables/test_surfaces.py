"""Many hypervolumes at once: against numbers by hand, and against the one-at-a-time function."""

from __future__ import annotations

import numpy as np
import pytest

from align.functional import fronts
from evals.tables.surfaces import hypervolumes

HOME = [(0.9, 0.2), (0.7, 0.6), (0.3, 0.9)]
AWAY = [(0.8, 0.1), (0.6, 0.4), (0.2, 0.7)]


def test_hypervolumes_golden() -> None:
    """.55 in distribution, .32 shifted, retention .5818."""
    home, away = hypervolumes(np.array([HOME, AWAY]), ref_point=(0, 0))
    assert (home, away) == pytest.approx((0.55, 0.32)) and away / home == pytest.approx(0.5818, abs=5e-5)


@pytest.mark.parametrize("objectives", [2, 3])
def test_hypervolumes_are_the_loop(objectives: int) -> None:
    points = np.random.default_rng(0).normal(size=(40, 6, objectives)).round(1)  # ties, points below the reference
    reference = [-0.3] * objectives
    expected = [fronts.hypervolume(table, ref_point=reference) for table in points]
    assert hypervolumes(points, ref_point=reference).tolist() == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="reference"):
        hypervolumes(points, ref_point=[0.0])
