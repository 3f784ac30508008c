"""Paired tests and power: published numbers, enumeration by hand, and the size of each test under a true null."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from evals.stats import paired_tests as tests_of
from evals.stats import power


def test_mcnemar_golden() -> None:
    assert tests_of.mcnemar(8, 1) == pytest.approx(0.0391, abs=5e-5)
    assert tests_of.mcnemar(10, 4) == tests_of.mcnemar(4, 10) == pytest.approx(0.1796, abs=5e-5)
    assert tests_of.mcnemar(0, 0) == tests_of.mcnemar(3, 3) == 1


def test_mcnemar_is_scipys_binomial_test() -> None:
    from scipy.stats import binomtest

    for b, c in itertools.product(range(6), range(7)):
        if b + c:
            assert tests_of.mcnemar(b, c) == pytest.approx(binomtest(b, b + c, 0.5).pvalue)


def test_sign_flips_by_enumeration() -> None:
    """Changes 3, 1, 1: |sum| 5 in two of eight patterns. 3, -1, 1: sums 5, 3, 3, 1 and mirrored: |3| in six."""
    assert tests_of.sign_flip_p([3, 1, 1]) == 0.25
    assert tests_of.sign_flip_p([3, -1, 1, 0]) == 0.75
    assert tests_of.sign_flip_p([0.0, 0.0]) == 1 and tests_of.sign_flip_p([]) == 1
    assert tests_of.sign_flip_p([0.1, 0.2, 0.3]) == 0.25, "the mirrored pattern counts in spite of rounding"
    with pytest.raises(ValueError, match="finite"):
        tests_of.sign_flip_p([math.nan])


@pytest.mark.parametrize("counts", [(8, 1), (10, 4), (3, 5)])
def test_sign_flips_of_single_cells_are_mcnemar(counts: tuple[int, int]) -> None:
    changes = [1.0] * counts[0] + [-1.0] * counts[1]
    assert tests_of.sign_flip_p(changes, draws=40_000) == pytest.approx(tests_of.mcnemar(*counts), abs=0.006)


def test_random_sign_flips_agree_with_all_of_them() -> None:
    changes = np.random.default_rng(0).normal(0.4, 1, size=14)
    patterns = np.array(list(itertools.product([1, -1], repeat=14)))
    exact = (np.abs(patterns @ changes) >= abs(changes.sum()) - 1e-9).mean()
    assert tests_of.sign_flip_p(changes, draws=40_000) == pytest.approx(exact, abs=0.01)
    assert tests_of.sign_flip_p(changes, seed=1) == tests_of.sign_flip_p(changes, seed=1) > 0
    assert tests_of.sign_flip_p([1.0] * 40, draws=99) == 1 / 100, "never 0"


def test_all_three_tests_point_the_same_way_and_share_the_interval() -> None:
    rng = np.random.default_rng(0)
    first = {f"{g} {v}": float(rng.normal(0.8)) for g in range(30) for v in range(3)}
    second = {key: float(rng.normal()) for key in first}
    clusters = {key: key.split()[0] for key in first}
    found = [
        test(first, second=second, clusters=clusters)
        for test in (tests_of.t_test, tests_of.permutation_test, tests_of.bootstrap_test)
    ]
    assert len({one.interval.pair[0] for one in found}) == 1 and all(one.estimate > 0 for one in found)
    assert all(one.clusters == 30 and one.degrees == 29 and one.p < 0.01 for one in found)
    assert {one.method for one in found} == {"paired t", "sign flips", "cluster bootstrap"}


def test_the_paired_t_is_scipys() -> None:
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(1)
    first, second = rng.normal(size=12), rng.normal(0.5, size=12)
    found = tests_of.t_test(*({str(i): float(v) for i, v in enumerate(side)} for side in (first,)), second={
        str(i): float(v) for i, v in enumerate(second)
    })  # fmt: skip
    assert found.p == pytest.approx(ttest_rel(first, second).pvalue)
    assert tests_of.t_test({"a": 1.0, "b": 1.0}, second={"a": 0.0, "b": 0.0}).p == 0
    assert tests_of.t_test({"a": 1.0, "b": 1.0}, second={"a": 1.0, "b": 1.0}).p == 1
    assert tests_of.t_test({"a": 1.0}, second={"a": 0.0}).p == 1


def test_the_bootstrap_p_is_the_share_of_larger_t() -> None:
    from evals.stats.bootstrap import studentise

    changes = np.random.default_rng(3).normal(0.5, 1, size=25)
    drawn = studentise(changes, clusters_N=range(25), draws=500, seed=7)
    larger = int((np.abs(drawn.t_D) >= abs(drawn.mean / drawn.se)).sum())
    assert tests_of.bootstrap_p(changes, clusters_N=range(25), draws=500, seed=7) == (larger + 1) / 501
    assert tests_of.bootstrap_p([0.0] * 9, clusters_N=range(9)) == 1


def test_a_family_is_corrected_and_says_how_many_it_is() -> None:
    base = tests_of.t_test({"a": 1.0, "b": 0.0}, second={"a": 0.0, "b": 0.0})
    from dataclasses import replace

    family = [replace(base, p=p) for p in (0.03, 0.01, 0.5, 0.02)]
    holm, fdr = (tests_of.family(family, correction=name) for name in ("Holm", "BH"))
    assert [t.p_adjusted for t in holm] == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert [t.p_adjusted for t in fdr] == pytest.approx([0.04, 0.04, 0.5, 0.04])
    assert holm[0].comparisons == 4 and "0.06 by Holm over 4 comparisons" in holm[0].says and holm[0].p == 0.03
    with pytest.raises(ValueError, match="no correction"):
        tests_of.family(family, correction="none")


def test_the_minimum_detectable_change_golden() -> None:
    """503 items for a difference of .05 with sd .4, at power .8 and level .95."""
    assert power.minimum_detectable(0.4, n=503) == pytest.approx(0.05, abs=5e-5)
    assert power.minimum_detectable(0.4, n=503, design=4) == pytest.approx(2 * power.minimum_detectable(0.4, n=503))
    with pytest.raises(ValueError, match="items"):
        power.minimum_detectable(1.0, n=0)


def test_the_power_is_what_it_says() -> None:
    """At the minimum detectable change of 60 items a paired test finds it in about 80 % of the worlds."""
    rng, n = np.random.default_rng(0), 60
    change = power.minimum_detectable(1.0, n=n)
    values = rng.normal(change, 1, size=(2000, n))
    found = np.abs(values.mean(1)) / (values.std(1, ddof=1) / math.sqrt(n)) > 2.001
    assert found.mean() == pytest.approx(0.8, abs=0.03)


def test_the_size_of_the_tests_with_clusters() -> None:
    """20 clusters of 5, differences shared within: each test rejects about 5 %, prompts as items far more."""
    rng, worlds = np.random.default_rng(0), 400
    rejected = dict.fromkeys(("t", "flips", "bootstrap", "naive"), 0)
    clusters = {f"{g} {v}": str(g) for g in range(20) for v in range(5)}
    for _ in range(worlds):
        shared = rng.normal(size=20)
        first = {key: float(shared[int(g)] + 0.5 * rng.normal()) for key, g in clusters.items()}
        second = dict.fromkeys(first, 0.0)
        rejected["t"] += tests_of.t_test(first, second=second, clusters=clusters).p <= 0.05
        rejected["flips"] += tests_of.permutation_test(first, second=second, clusters=clusters, draws=199).p <= 0.05
        rejected["bootstrap"] += tests_of.bootstrap_test(first, second=second, clusters=clusters, draws=199).p <= 0.05
        rejected["naive"] += tests_of.t_test(first, second=second).p <= 0.05
    shares = {name: count / worlds for name, count in rejected.items()}
    assert all(0.02 <= shares[name] <= 0.085 for name in ("t", "flips", "bootstrap")) and shares["naive"] > 0.3, shares
