"""Paired changes of shares: Tango's limits against an oracle, agreement with the exact p, clusters, exact coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from evals.stats.paired_shares import paired_change, score_limits, share_change
from evals.stats.paired_tests import mcnemar

Z = 1.959964


def pair(worse: int, better: int, n: int) -> tuple[dict[str, float], dict[str, float]]:
    """(after, before) of n items of which so many got worse (0 to 1) and better (1 to 0)."""
    after = {str(i): float(i < worse) for i in range(n)}
    return after, {str(i): float(worse <= i < worse + better) for i in range(n)}


def score(worse: int, better: int, n: int, change: float) -> float:
    """|Z| of the change: the share that falls is the most likely one under it, found by search, not by the formula."""

    def loss(fell: float) -> float:
        shares = np.array([fell + change, fell, 1 - 2 * fell - change])
        return -float(np.array([worse, better, n - worse - better]) @ np.log(np.maximum(shares, 1e-300)))

    ends = max(0.0, -change), (1 - change) / 2
    fell = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-12}).x
    return abs(worse - better - n * change) / np.sqrt(n * (2 * fell + change * (1 - change)))


def test_limits_are_those_of_the_score_test() -> None:
    """Fagerland, Lydersen & Laake 2014 give [-.517, -.026] for 1 and 7 discordant pairs of 21."""
    assert score_limits(1 / 21, 7 / 21, cells=21, quantile=Z) == pytest.approx((-0.517, -0.026), abs=6e-4)
    for worse, better, n in ((12, 2, 50), (3, 3, 30), (40, 5, 100), (7, 1, 21)):
        for limit in score_limits(worse / n, better / n, cells=n, quantile=Z):
            assert score(worse, better, n, limit) == pytest.approx(Z, abs=1e-4)
    square = Z * Z / (40 + Z * Z)
    assert score_limits(0, 0, cells=40, quantile=Z) == pytest.approx((-square, square), abs=1e-6)
    assert score_limits(1, 0, cells=40, quantile=Z)[1] == 1


def test_the_interval_leaves_out_0_exactly_where_mcnemar_rejects() -> None:
    for worse in range(20):
        for better in range(20):
            found = share_change(pair(worse, better, 60)[0], before=pair(worse, better, 60)[1])
            assert found is not None and found.p == mcnemar(worse, better) and found.test == "McNemar, exact"
            assert (found.p <= 0.05) == found.interval.excludes_zero, (worse, better)
            low, high = found.interval.pair
            assert low <= found.interval.estimate <= high
            assert found.interval.estimate == pytest.approx((worse - better) / 60)


def test_the_interval_agrees_with_its_p_in_clusters_and_over_samples() -> None:
    rng = np.random.default_rng(0)
    decided = set()
    for _ in range(300):
        n, size, samples = int(rng.integers(8, 60)), int(rng.integers(1, 5)), int(rng.integers(1, 4))
        rates = rng.beta(0.5, 2, size=2)
        sides = [dict(zip(map(str, range(n)), rng.binomial(samples, r, size=n) / samples, strict=True)) for r in rates]
        found = share_change(sides[0], before=sides[1], clusters={str(i): str(i // size) for i in range(n)})
        assert found is not None and (found.p <= 0.05) == found.interval.excludes_zero
        decided.add(found.interval.excludes_zero)
    assert decided == {True, False}


@pytest.mark.parametrize("n", [30, 50, 100, 200, 500])
def test_rare_changes_are_covered(n: int) -> None:
    """Exact: k of n items get worse, k binomial. A t interval holds 3 points of 100 items in 80 % of evaluations."""
    limits = [paired_change(pair(k, 0, n)[0], before=pair(k, 0, n)[1]).pair for k in range(n // 4)]
    for change in (0.01, 0.03, 0.05, 0.1):
        inside = [low <= change <= high for low, high in limits]
        assert binom.pmf(range(len(limits)), n, change) @ np.array(inside, dtype=float) > 0.93, change


def test_items_of_few_changed_clusters_count_as_one_cell_each() -> None:
    """Forty clusters of five. Changed items in clusters of their own look independent; five are too few to know."""
    clusters = {str(i): str(i // 5) for i in range(200)}
    before = dict.fromkeys(clusters, 0.0)
    sides = [{i: float(int(i) % 5 == 0 and int(i) < 5 * k) for i in clusters} for k in (5, 6)]
    few, more = (share_change(side, before=before, clusters=clusters) for side in sides)
    assert few is not None and more is not None
    assert few.cells == pytest.approx(40) and more.cells == 200
    assert (few.worse, few.better, few.interval.n, few.p) == (5, 0, 40, 2 / 2**5)
    whole = {i: float(int(i) < 50) for i in clusters}  # ten clusters change as one
    alike = share_change(whole, before=before, clusters=clusters)
    assert alike is not None and alike.cells == pytest.approx(39) and alike.interval.degrees == pytest.approx(39)


def test_changes_over_samples_and_beyond_one() -> None:
    after, before = {"a": 1.0, "b": 0.5, "c": 0.5}, {"a": 0.0, "b": 0.5, "c": 1.0, "x": 0.0}
    found = share_change(after, before=before)
    assert found is not None and found.interval.estimate == pytest.approx(1 / 6) and found.interval.n == 3
    assert (found.worse, found.better, found.rose, found.fell) == (1, 1, pytest.approx(1 / 3), pytest.approx(1 / 6))
    wide = paired_change({"a": 1.0, "b": 0.0, "c": 0.0}, before={"a": -1.0, "b": 0.0, "c": 0.0}, span=2)
    half = paired_change({"a": 1.0, "b": 0.0, "c": 0.0}, before={"a": 0.0, "b": 0.0, "c": 0.0})
    assert wide is not None and half is not None and wide.pair == pytest.approx([2 * end for end in half.pair])
    with pytest.raises(ValueError, match="not within"):
        paired_change({"a": 1.0}, before={"a": -1.0})
    alone = paired_change({"a": 1.0}, before={"a": 0.0})
    assert alone is not None and alone.pair is None and paired_change({"a": 1.0}, before={"b": 0.0}) is None
