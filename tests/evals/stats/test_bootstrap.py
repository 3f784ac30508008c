"""Bootstrap t, jackknife t and many hypervolumes: against closed forms, and against the one-at-a-time functions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from align.functional import fronts
from evals.stats import bootstrap
from evals.stats import intervals as stats

HOME = [(0.9, 0.2), (0.7, 0.6), (0.3, 0.9)]
AWAY = [(0.8, 0.1), (0.6, 0.4), (0.2, 0.7)]


def test_hypervolumes_golden() -> None:
    """.55 in distribution, .32 shifted, retention .5818."""
    home, away = bootstrap.hypervolumes(np.array([HOME, AWAY]), ref_point=(0, 0))
    assert (home, away) == pytest.approx((0.55, 0.32)) and away / home == pytest.approx(0.5818, abs=5e-5)


@pytest.mark.parametrize("objectives", [2, 3])
def test_hypervolumes_are_the_loop(objectives: int) -> None:
    points = np.random.default_rng(0).normal(size=(40, 6, objectives)).round(1)  # ties, points below the reference
    reference = [-0.3] * objectives
    expected = [fronts.hypervolume(table, ref_point=reference) for table in points]
    assert bootstrap.hypervolumes(points, ref_point=reference).tolist() == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="reference"):
        bootstrap.hypervolumes(points, ref_point=[0.0])


def test_the_jackknife_of_a_mean_is_its_t_interval() -> None:
    values = np.random.default_rng(1).normal(size=15)
    found = bootstrap.jackknife_interval(lambda counts: counts @ values / counts.sum(axis=1), groups=15)
    plain = stats.clustered_mean(values, clusters_N=range(15))
    assert found.pair == pytest.approx(plain.pair) and found.degrees == 14 and found.se == pytest.approx(plain.se)


def test_the_jackknife_of_a_ratio_is_the_delta_method_for_many_items() -> None:
    rng = np.random.default_rng(2)
    below = rng.normal(3, 0.5, 400)
    above = below * 0.5 + rng.normal(0, 0.3, 400)
    found = bootstrap.jackknife_interval(lambda counts: (counts @ above) / (counts @ below), groups=400)
    ratio = above.mean() / below.mean()
    assert found.estimate == pytest.approx(ratio)
    assert found.se == pytest.approx((above - ratio * below).std(ddof=1) / below.mean() / 20, rel=0.01)


def test_the_jackknife_says_why_there_is_none() -> None:
    assert bootstrap.jackknife_interval(lambda counts: counts.sum(axis=1), groups=2).pair is None
    broken = bootstrap.jackknife_interval(lambda counts: np.where(counts[:, 0] > 0, 1.0, np.nan), groups=5)
    assert broken.pair is None and "undefined" in broken.says


def test_studentised_draws_are_each_resamples_own_t() -> None:
    values, clusters = np.array([1.0, 2.0, 4.0, 0.0, 7.0, 3.0]), [0, 0, 1, 1, 2, 2]
    found = bootstrap.studentise(values, clusters_N=clusters, draws=50, seed=3)
    plain = stats.clustered_mean(values, clusters_N=clusters)
    assert found.mean == plain.estimate and found.se == pytest.approx(plain.se)
    counts = stats.cluster_counts(["0", "1", "2"], draws=50, seed=3)
    for row, t in zip(counts, found.t_D, strict=True):
        again = [(v, f"{c} {copy}") for v, c in zip(values, clusters, strict=True) for copy in range(row[c])]
        drawn = stats.clustered_mean([v for v, _ in again], clusters_N=[c for _, c in again])
        if drawn.se:
            assert t == pytest.approx((drawn.estimate - plain.estimate) / drawn.se)
        else:
            assert not math.isfinite(t) or row.max() == 3


def test_bootstrap_t_is_t_for_a_normal_law_and_leans_for_a_skewed_one() -> None:
    normal = np.random.default_rng(0).normal(size=200)
    found = bootstrap.studentised_mean(normal, clusters_N=range(200), draws=4000)
    assert found.pair == pytest.approx(stats.clustered_mean(normal, clusters_N=range(200)).pair, abs=0.02)
    skewed = np.random.default_rng(0).exponential(size=30)
    leaning = bootstrap.studentised_mean(skewed, clusters_N=range(30), draws=4000)
    assert leaning.high - leaning.estimate > 1.2 * (leaning.estimate - leaning.low), "the long tail is above"
    assert leaning.n == 30 and leaning.excludes_zero


def test_bootstrap_t_refuses_few_or_equal_items() -> None:
    few = bootstrap.studentised_mean([1.0, 2.0], clusters_N=range(2))
    alike = bootstrap.studentised_mean([1.0] * 12, clusters_N=range(12))
    assert few.pair is None and "at least 10" in few.says and alike.pair is None and "hardly differ" in alike.says
    with pytest.raises(ValueError, match="one each"):
        bootstrap.studentise([1.0], clusters_N=[0, 1], draws=10, seed=0)
