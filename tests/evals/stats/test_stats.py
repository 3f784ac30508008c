"""Interval statistics: golden values, and a simulation of their coverage. CPU, about two seconds."""

import math

import numpy as np
import pytest

from evals.stats import intervals as stats

CLUSTERS = [[1, 1, 0], [0, 0, 0], [1, 1, 1], [1, 0, 1]]
VALUES = [value for cluster in CLUSTERS for value in cluster]
LABELS = [name for name, cluster in zip("abcd", CLUSTERS, strict=True) for _ in cluster]


def test_clustered_error_golden() -> None:
    """Naive .1486; clusters as units .1816, with G/(G-1) .2097; t with 3 degrees of freedom is 3.1824."""
    naive = stats.clustered_mean(VALUES, clusters_N=range(12))
    assert naive.se == pytest.approx(0.1486, abs=5e-5)
    clustered = stats.clustered_mean(VALUES, clusters_N=LABELS)
    assert clustered.se == pytest.approx(0.2097, abs=5e-5) and clustered.se / math.sqrt(4 / 3) == pytest.approx(
        0.1816, abs=5e-5
    )
    assert clustered.n == 4 and clustered.estimate == pytest.approx(7 / 12)
    assert clustered.high - clustered.low == pytest.approx(2 * 3.18245 * clustered.se, rel=1e-5)
    assert clustered.says == "95% over 4 base items"


def test_one_cluster_gives_no_interval() -> None:
    interval = stats.clustered_mean([1, 2, 3], clusters_N=["a"] * 3)
    assert interval.pair is None and "1 of base items" in interval.says and not interval.excludes_zero


def test_paired_difference_keeps_the_covariance() -> None:
    first = {"a": 10.0, "b": 20.0, "c": 31.0}
    second = {"c": 30.0, "a": 9.0, "b": 19.0}
    interval = stats.paired_difference(first, second=second)
    assert interval.estimate == 1 and interval.se == 0 and interval.pair == [1, 1] and interval.excludes_zero
    with pytest.raises(ValueError, match="not paired: c"):
        stats.paired_difference(first, second={"a": 9.0, "b": 19.0})


def test_paired_difference_by_hand() -> None:
    """d = (1, 3, -1): mean 1, s = 2, se = 2 / sqrt(3), t(2) = 4.30265."""
    interval = stats.paired_difference({"a": 1, "b": 3, "c": 0}, second={"a": 0, "b": 0, "c": 1})
    half = 4.30265 * 2 / math.sqrt(3)
    assert interval.pair == pytest.approx([1 - half, 1 + half], rel=1e-5)


def test_unpaired_difference_is_welch() -> None:
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    first, second = rng.normal(1, 1, 9), rng.normal(0, 3, 6)
    interval = stats.unpaired_difference(first, second_M=second, clusters_N=range(9), clusters_M=range(6))
    expected = ttest_ind(first, second, equal_var=False).confidence_interval()
    assert interval.pair == pytest.approx([expected.low, expected.high])
    assert "9 against 6 others, unpaired" in interval.says


def test_wilson_golden() -> None:
    assert stats.wilson(30, n=32).pair == pytest.approx([0.7985, 0.9827], abs=5e-5)
    assert stats.wilson(0, n=32).pair == pytest.approx([0, 0.1072], abs=5e-5)
    assert stats.wilson(295, n=317).pair == pytest.approx([0.8972, 0.9537], abs=5e-5)
    with pytest.raises(ValueError):
        stats.wilson(3, n=2)


def test_holm_by_hand() -> None:
    """Sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, made monotone: .04 .06 .06 .06."""
    assert stats.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert stats.holm([0.9, 0.8]) == [1, 1] and stats.holm([]) == []


def test_seed_interval_needs_three() -> None:
    assert stats.seed_interval([0.2]).says == "no interval: 1 training seed, at least 3 are needed"
    assert stats.seed_interval([0.2, 0.3]).pair is None
    interval = stats.seed_interval([1, 3, -1])
    assert interval.n == 3 and interval.high == pytest.approx(1 + 4.30265 * 2 / math.sqrt(3), rel=1e-5)


def test_bootstrap_is_shared_between_rows_and_deterministic() -> None:
    items = [f"item {i}" for i in range(20)]
    counts = stats.cluster_counts(items, draws=400, seed=3)
    assert counts.shape == (400, 20) and (counts.sum(1) == 20).all()
    assert (counts == stats.cluster_counts(items, draws=400, seed=3)).all()
    assert (counts != stats.cluster_counts(items, draws=400, seed=4)).any()
    others = stats.cluster_counts([f"other {i}" for i in range(20)], draws=400, seed=3)
    assert (counts != others).any()
    values = np.random.default_rng(0).normal(size=20)
    shifted = (counts @ (values + 0.5) - counts @ values) / 20  # two rows that differ by a constant
    assert stats.bootstrap_interval(shifted, estimate=0.5, n=20).pair == pytest.approx([0.5, 0.5])


def test_bootstrap_error_is_the_textbook_one() -> None:
    values = np.random.default_rng(1).normal(size=200)
    counts = stats.cluster_counts([str(i) for i in range(200)], draws=4000, seed=0)
    interval = stats.bootstrap_interval(counts @ values / 200, estimate=values.mean(), n=200)
    assert interval.se == pytest.approx(values.std() / math.sqrt(200), rel=0.05)
    assert interval.low < values.mean() < interval.high


def test_bootstrap_refuses_a_statistic_that_is_often_undefined() -> None:
    interval = stats.bootstrap_interval([1.0] * 90 + [math.nan] * 10, estimate=1.0, n=9)
    assert interval.pair is None and "undefined in 10 of 100" in interval.says


def test_coverage_with_clusters() -> None:
    """12 clusters of 5 with ICC .5, 600 worlds: the clustered interval covers 95 %, the naive one far less."""
    rng, hits, naive_hits, worlds = np.random.default_rng(0), 0, 0, 600
    labels = np.repeat(np.arange(12), 5)
    for _ in range(worlds):
        values = rng.normal(size=12)[labels] + rng.normal(size=60)
        interval = stats.clustered_mean(values, clusters_N=labels.tolist())
        naive = stats.clustered_mean(values, clusters_N=range(60))
        hits += interval.low <= 0 <= interval.high
        naive_hits += naive.low <= 0 <= naive.high
    assert 0.92 < hits / worlds < 0.98 and naive_hits / worlds < 0.85


def test_the_error_of_a_mean_golden() -> None:
    """Items as units .1486, clusters as units with the small-sample factor .2097 (Miller 2024, eq. 4)."""
    clustered, groups = stats.clustered_variance(VALUES, clusters_N=LABELS)
    naive, _ = stats.clustered_variance(VALUES, clusters_N=range(len(VALUES)))
    assert (naive**0.5, clustered**0.5) == pytest.approx((0.1486, 0.2097), abs=5e-5) and groups == 4
    assert stats.clustered_variance([1, 2], clusters_N=["a", "a"]) == (float("inf"), 1)


def test_intervals_say_their_degrees_of_freedom() -> None:
    assert stats.clustered_mean(VALUES, clusters_N=LABELS).degrees == 3
    welch = stats.unpaired_difference([1, 2, 4], second_M=[1, 2, 4], clusters_N=range(3), clusters_M=range(3))
    assert welch.degrees == pytest.approx(4)
    assert stats.bootstrap_interval([1.0, 2.0, 3.0], estimate=2.0, n=20).degrees == 19


def test_benjamini_hochberg_by_hand() -> None:
    """Sorted .01 .02 .03 .5 times 4/1 4/2 4/3 4/4 = .04 .04 .04 .5; the smallest so far from the top."""
    assert stats.benjamini_hochberg([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.04, 0.04, 0.5, 0.04])
    assert stats.benjamini_hochberg([0.04, 0.01]) == pytest.approx([0.04, 0.02]) and stats.benjamini_hochberg([]) == []
    assert stats.benjamini_hochberg([0.01, 0.039, 0.04]) == pytest.approx([0.03, 0.04, 0.04])
    with pytest.raises(ValueError, match="outside"):
        stats.benjamini_hochberg([1.2])


def test_benjamini_hochberg_is_scipys() -> None:
    from scipy.stats import false_discovery_control

    p = np.random.default_rng(0).random(30) ** 2
    assert stats.benjamini_hochberg(p.tolist()) == pytest.approx(false_discovery_control(p).tolist())


def test_expanded_percentiles_are_as_wide_as_t() -> None:
    """20 items: Phi(-2.09302 sqrt(20 / 19)) = Phi(-2.14740) = .01588 on either side."""
    assert stats.expanded_level(20) == pytest.approx(1 - 2 * 0.015881, abs=2e-6)
    normal = np.random.default_rng(0).normal(size=400_000)
    wide = stats.bootstrap_interval(normal, estimate=0.0, n=20)
    assert wide.high == pytest.approx(2.14740, abs=0.02), "plain percentiles end at 1.96"
    assert wide.low == pytest.approx(-2.14740, abs=0.02)


def test_cluster_codes_keep_the_order_of_first_appearance() -> None:
    assert stats.cluster_codes(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]
