"""Paired tests and power: published numbers, enumeration by hand, and the size of each test under a true null."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom

from evals.stats import paired_tests as tests_of
from evals.stats.power import smallest_visible


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


def test_a_test_that_cannot_reject_is_in_no_family() -> None:
    """At .05 five changes all one way have p 1/16, six have 1/32: of four tests two are in the family."""
    assert not tests_of.can_reject(5) and tests_of.can_reject(6) and tests_of.can_reject(5, level=0.9)
    adjusted, size = tests_of.holm_of_able([0.03, 1.0, 0.01, 0.0625], changed=[9, 0, 8, 5])
    assert size == 2 and adjusted == pytest.approx([0.03, 1, 0.02, 1]), "Holm over four would be .09 and .04"
    assert tests_of.holm_of_able([1.0, 1.0], changed=[0, 0]) == ([1, 1], 0)


def test_the_smallest_visible_change_by_hand() -> None:
    """Six changes of n = 6 give p 1/32: P(all six change) = .8 at .8^(1/6). Five items never show anything."""
    assert smallest_visible(6) == pytest.approx(0.8 ** (1 / 6), abs=1e-5) and smallest_visible(5) is None
    needed = next(k for k in range(172) if 2 / 2**k <= 0.05 / 54)  # twelve to none, in a family of 54
    found = smallest_visible(171, comparisons=54)
    assert needed == 12 and binom.sf(needed - 1, 171, found) == pytest.approx(0.8, abs=1e-4)
    with pytest.raises(ValueError, match="against"):
        smallest_visible(10, against=0.6)


def test_the_power_is_what_it_says_where_some_items_move_the_other_way() -> None:
    n, against = 100, 0.05
    change = smallest_visible(n, against=against)
    drawn = np.random.default_rng(0).multinomial(n, [against + change, against, 1 - 2 * against - change], size=4000)
    found = [tests_of.mcnemar(int(b), int(c)) <= 0.05 for b, c, _ in drawn]
    assert np.mean(found) == pytest.approx(0.8, abs=0.02) and change > smallest_visible(n)


def test_the_size_of_the_tests_with_clusters() -> None:
    """20 clusters of 5, differences shared within: each test rejects about 5 %, prompts as items far more."""
    rng, worlds = np.random.default_rng(0), 400
    rejected = dict.fromkeys(("t", "flips", "naive"), 0)
    clusters = {f"{g} {v}": str(g) for g in range(20) for v in range(5)}
    for _ in range(worlds):
        shared = rng.normal(size=20)
        first = {key: float(shared[int(g)] + 0.5 * rng.normal()) for key, g in clusters.items()}
        second = dict.fromkeys(first, 0.0)
        rejected["t"] += tests_of.t_test(first, second=second, clusters=clusters).p <= 0.05
        sums = [sum(first[f"{g} {v}"] for v in range(5)) for g in range(20)]
        rejected["flips"] += tests_of.sign_flip_p(sums, draws=199) <= 0.05
        rejected["naive"] += tests_of.t_test(first, second=second).p <= 0.05
    shares = {name: count / worlds for name, count in rejected.items()}
    assert all(0.02 <= shares[name] <= 0.085 for name in ("t", "flips")) and shares["naive"] > 0.3, shares
