"""Shares in clusters by hand: where Wilson comes out, what conditions weigh, and that nothing is zero-wide."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evals.stats import intervals as stats
from evals.stats import shares


def test_the_share_is_of_cells_and_its_error_is_the_clustered_one() -> None:
    """Golden clusters [[1,1,0],[0,0,0],[1,1,1],[1,0,1]]: 7/12, corrected error .2097, 3 degrees of freedom."""
    found = shares.share([2, 0, 3, 2], cells_G=[3, 3, 3, 3])
    assert found.estimate == pytest.approx(7 / 12) and found.n == 4 and found.degrees == pytest.approx(3)
    assert found.se == pytest.approx(0.2097, abs=5e-5)
    n, t = (7 / 12 * 5 / 12) / found.se**2, 3.182446
    centre = (7 / 12 + t**2 / (2 * n)) / (1 + t**2 / n)
    half = t / (1 + t**2 / n) * math.sqrt(7 / 12 * 5 / 12 / n + t**2 / (4 * n**2))
    assert found.pair == pytest.approx([centre - half, centre + half], rel=1e-5)


def test_single_cells_are_wilsons_interval_with_t() -> None:
    """30 of 32 single cells: variance p (1 - p) / 31, so 31 effective cells; with many cells it is Wilson's own."""
    found = shares.share([1] * 30 + [0] * 2, cells_G=[1] * 32)
    assert found.se == pytest.approx(math.sqrt(30 / 32 * 2 / 32 / 31))
    many = shares.share([1] * 3000 + [0] * 7000, cells_G=[1] * 10_000)
    assert many.pair == pytest.approx(stats.wilson(3000, n=10_000).pair, abs=2e-5)


def test_unequal_clusters_weigh_by_their_cells() -> None:
    """Hits 1 of 1 and 0 of 3 and 2 of 2: 3/6; residuals .5, -1.5, 1 over 6, CR2 factors 1 / (1 - 1/6), 2, 1.5."""
    found = shares.share([1, 0, 2, 0], cells_G=[1, 3, 2, 0])
    assert found.estimate == 0.5 and found.n == 3, "a cluster without cells says nothing"
    expected = (0.25 * 6 / 5 + 2.25 * 2 + 1 * 1.5) / 36
    assert found.se == pytest.approx(math.sqrt(expected)) and found.degrees == pytest.approx(36 / 14 - 1)


def test_all_alike_is_bounded_by_the_number_of_clusters() -> None:
    none, every = shares.share([0] * 20, cells_G=[5] * 20), shares.share([5] * 20, cells_G=[5] * 20)
    square = 2.0930241**2
    assert none.pair == pytest.approx([0, square / (20 + square)], rel=1e-6) and none.se is None
    assert every.pair == pytest.approx([20 / (20 + square), 1], rel=1e-6)


def test_a_share_refuses_what_it_cannot_say() -> None:
    assert shares.share([1], cells_G=[2]).pair is None
    for hits, cells in (([3], [2]), ([-1], [2]), ([1, 1], [2]), ([0], [0]), ([math.nan], [1])):
        with pytest.raises(ValueError):
            shares.share(hits, cells_G=cells)


def test_the_condition_weighs_and_the_items_join_in_clusters() -> None:
    event, given = {"a": 1.0, "b": 0.5, "c": 1.0, "x": 1.0}, {"a": 0.5, "b": 1.0, "c": 0.0, "y": 1.0}
    found = shares.conditional_share(event, given=given)
    assert found is not None and found.estimate == pytest.approx((0.5 + 0.5) / 1.5) and found.n == 2
    assert "with the condition" in found.over
    joined = shares.conditional_share(event, given=given, clusters={"a": "one", "b": "one"})
    assert joined is not None and joined.n == 1 and joined.estimate == found.estimate
    assert shares.conditional_share(event, given={"a": 0.0}) is None


def test_a_conditional_share_of_single_cells_is_the_share_among_them() -> None:
    rng = np.random.default_rng(0)
    given = {str(i): float(v) for i, v in enumerate(rng.random(50) < 0.6)}
    event = {str(i): float(v) for i, v in enumerate(rng.random(50) < 0.3)}
    kept = [event[i] for i in given if given[i]]
    found, plain = shares.conditional_share(event, given=given), shares.share(kept, cells_G=np.ones(len(kept)))
    assert (
        found is not None and found.pair == pytest.approx(plain.pair) and found.degrees == pytest.approx(len(kept) - 1)
    )


def test_coverage_where_a_plain_t_interval_fails() -> None:
    """Failure rate .03, 40 single cells: none fails in 30 % of the worlds, where t has no width."""
    rng, hits, plain_hits = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        cells = (rng.random(40) < 0.03).astype(float)
        found, plain = shares.share(cells, cells_G=np.ones(40)), stats.clustered_mean(cells, clusters_N=range(40))
        hits += found.low <= 0.03 <= found.high
        plain_hits += plain.low <= 0.03 <= plain.high
    assert hits / 1000 > 0.93 and plain_hits / 1000 < 0.75


def test_pairs_with_a_base_item_in_common_are_not_independent() -> None:
    """Two chains of three items: the variance is that of two chains, (.25^2 + .25^2) 6/5, not of four pairs."""
    alone = {name: name for name in "abcdef"}
    pairs = {("a", "b"): 1.0, ("b", "c"): 1.0, ("d", "e"): 0.0, ("e", "f"): 0.0}
    found = shares.share_of_pairs(pairs, clusters=alone)
    assert (found.estimate, found.n) == (0.5, 6) and found.se == pytest.approx(math.sqrt(0.15))
    joined = shares.share_of_pairs(pairs, clusters={name: "x" if name in "abc" else "y" for name in alone})
    assert joined.n == 2 and joined.se == pytest.approx(math.sqrt(0.25)), "two base items: 2/1 (.25^2 + .25^2)"
    # products below 0 in a chain of opposites are not taken off: never less than independent pairs, .5^2 / 2 * 3/2
    opposed = shares.share_of_pairs({("a", "b"): 1.0, ("b", "c"): 0.0}, clusters=alone)
    assert opposed.se == pytest.approx(math.sqrt(0.1875))
    assert shares.share_of_pairs({("a", "b"): 1.0, ("b", "c"): 1.0}, clusters=alone).low < 0.6, "all alike has width"
    assert shares.share_of_pairs({("a", "b"): 1.0}, clusters={"a": "x", "b": "x"}).pair is None
    with pytest.raises(ValueError, match="at least one pair"):
        shares.share_of_pairs({}, clusters=alone)


def test_a_share_of_pairs_weighs_items_alike_and_covers() -> None:
    star = {("a", "b"): 1.0, ("a", "c"): 0.0, ("a", "d"): 0.0}  # a: 1/3, b: 1, c and d: 0
    assert shares.share_of_pairs(star, clusters={x: x for x in "abcd"}).estimate == pytest.approx((1 / 3 + 1) / 4)
    rng, inside = np.random.default_rng(0), 0
    names = [str(k) for k in range(40)]
    truth = 0.75  # both latent values below .5 is a miss: pairs that share an item are alike
    for _ in range(300):
        easy = rng.random(40) > 0.5
        pairs = {(names[a], names[a + s]): float(easy[a] or easy[a + s]) for s in (1, 2) for a in range(40 - s)}
        found = shares.share_of_pairs(pairs, clusters={n: n for n in names})
        inside += found.low <= truth <= found.high  # type: ignore[operator]
    assert 0.91 < inside / 300 <= 1.0
