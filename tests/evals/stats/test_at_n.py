"""At least one of N draws: the beta fit against closed forms and other programs, the bounds against cases by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import beta, betabinom

from evals.stats.at_n import Draws, beta_at, beta_fit, bounds


def draws(counts: list[int], n: int) -> Draws:
    return Draws(counts, [n] * len(counts), range(len(counts)))


def test_the_chance_of_at_least_one_in_closed_form() -> None:
    assert beta_at(1, 1, 1) == pytest.approx(1 / 2) and beta_at(1, 1, 3) == pytest.approx(3 / 4)  # n / (n + 1)
    assert beta_at(1, 9, 1) == pytest.approx(0.1)
    assert beta_at(2, 3, 2) == pytest.approx(1 - (3 / 5) * (4 / 6))


def test_the_best_fit_is_that_of_scipys_beta_binomial() -> None:
    counts = [0] * 22 + [1] * 9 + [2] * 5 + [4] * 2 + [8] * 2
    found = beta_fit(draws(counts, 8))

    def loss(x: np.ndarray) -> float:
        return -float(betabinom.logpmf(counts, 8, *np.exp(x)).sum())

    best = minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-8})
    assert loss(np.log(found.best)) == pytest.approx(best.fun, abs=5e-3)
    value, low, high = found.at(64)
    assert value == pytest.approx(float(beta_at(*np.exp(best.x), 64)), abs=0.01)
    # the ends are where the likelihood has fallen by 3.8415 / 2, all other fits of that ASR@64 being less likely
    for end in (low, high):
        at_end = [shape for shape in found.allowed_F2 if abs(float(beta_at(*shape, 64)) - end) < 1e-9]
        assert loss(np.log(at_end[0])) - best.fun == pytest.approx(3.8415 / 2, abs=0.15)


def test_where_nothing_fails_the_fit_and_the_bounds_begin_at_0() -> None:
    none = draws([0] * 30, 10)
    value, low, high = beta_fit(none).at(100)
    assert value < 0.01 and low < 1e-3 and high > 0.05
    assert bounds(none, n=100)[0] == pytest.approx(0, abs=1e-6)


def test_bounds_by_hand_with_one_draw_an_item() -> None:
    """One draw says only what the mean chance is, and at most of 2 draws is convex between p and 1."""
    low, high = bounds(draws([1] * 12 + [0] * 28, 1), n=1000)
    ends = beta.ppf(0.025, 12, 29), beta.ppf(0.975, 13, 28)  # Clopper and Pearson for 12 of 40
    assert low == pytest.approx(ends[0], abs=2e-3), "all chance on items that always fail: N draws add nothing"
    assert high == pytest.approx(1.0, abs=1e-3), "all items at the mean chance: nearly all fail in 1000 draws"
    assert bounds(draws([1] * 12 + [0] * 28, 1), n=1) == pytest.approx(ends, abs=2e-3)


def test_bounds_hold_the_truth_where_the_fit_fails() -> None:
    """Three of ten items with a chance of .4, the others .01: the fit extrapolates to far too little (seed 3)."""
    stream = np.random.default_rng(3)
    chances = np.where(stream.random(200) < 0.3, 0.4, 0.01)
    found = draws(stream.binomial(32, chances).tolist(), 32)
    truth = 0.3 + 0.7 * (1 - 0.99**512)
    low, high = bounds(found, n=512)
    assert low < truth < high and beta_fit(found).at(512)[2] < truth - 0.05


def test_clusters_widen_both() -> None:
    counts = [0, 0, 1, 2, 0, 1, 0, 3] * 4
    apart = Draws(counts, [8] * 32, range(32))
    joined = Draws(counts, [8] * 32, [i // 4 for i in range(32)])
    for wide, narrow in (
        (beta_fit(joined).at(32)[1:], beta_fit(apart).at(32)[1:]),
        (bounds(joined, n=32), bounds(apart, n=32)),
    ):
        assert wide[0] < narrow[0] and wide[1] > narrow[1]


def test_what_is_no_draw_is_refused() -> None:
    for counts, sizes, clusters in (([], [], []), ([2], [1], ["a"]), ([0], [0], ["a"]), ([0], [1], [])):
        with pytest.raises(ValueError, match="successes in"):
            Draws(counts, sizes, clusters)
    assert math.isfinite(beta_fit(draws([3, 3], 3)).at(5)[0])


@pytest.mark.slow
def test_coverage_of_the_fit_where_it_holds_and_of_the_bounds_where_it_does_not() -> None:
    stream, covered, bounded = np.random.default_rng(5), 0, 0
    for _ in range(200):
        found = draws(stream.binomial(16, stream.beta(0.5, 5, 50)).tolist(), 16)
        _, low, high = beta_fit(found).at(64)
        covered += low <= beta_at(0.5, 5, 64) <= high
        found = draws(stream.binomial(16, np.where(stream.random(50) < 0.3, 0.4, 0.01)).tolist(), 16)
        low, high = bounds(found, n=256)
        bounded += low <= 0.3 + 0.7 * (1 - 0.99**256) <= high
    assert covered >= 183 and bounded >= 190  # .95 of 200, less two standard errors
