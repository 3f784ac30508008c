"""Pushing a proxy: best-of-n by enumeration of all subsets, Gao's two forms recovered, peaks, gaps at a matched d."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from align.errors import UserError
from align.policies.best_of_n import kl_bound
from evals.tables.overoptimisation import (
    Curve,
    Fit,
    best_of_n_curve,
    best_of_n_means,
    best_of_n_weights,
    fit,
    fit_curve,
)


def by_subsets(proxy: list[float], gold: list[float], n: int) -> float:
    """Mean gold score of the best by the proxy over all subsets of n; equal proxies share theirs."""
    total = []
    for chosen in itertools.combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in chosen)
        total.append(np.mean([gold[i] for i in chosen if proxy[i] == top]))
    return float(np.mean(total))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_subsets(n: int) -> None:
    proxy, gold = [0.3, 2.0, -1.0, 0.7, 1.1], [1.0, -3.0, 0.5, 2.0, 4.0]
    assert best_of_n_means([proxy], gold_PN=[gold], n=n)[0] == pytest.approx(by_subsets(proxy, gold, n))
    weights = best_of_n_weights(5, n=n)
    assert weights.sum() == pytest.approx(1)
    assert weights == pytest.approx([math.comb(j, n - 1) / math.comb(5, n) for j in range(5)])


def test_equal_proxies_are_broken_by_lot_and_a_proxy_is_its_own_gold() -> None:
    (tied,) = best_of_n_means([[1.0, 1.0, 0.0]], gold_PN=[[4.0, 0.0, 9.0]], n=3)
    assert tied == 2.0
    assert best_of_n_means([[1.0, 3.0]], gold_PN=[[1.0, 3.0]], n=2)[0] == 3.0
    for bad in (0, 4):
        with pytest.raises(ValueError, match="best of"):
            best_of_n_weights(3, n=bad)
    with pytest.raises(ValueError, match="finite"):
        best_of_n_means([[1.0, float("nan")]], gold_PN=[[1.0, 2.0]], n=1)


def test_the_curve_stands_at_the_root_of_the_kl_bound_and_starts_at_no_gain() -> None:
    rng = np.random.default_rng(0)
    proxy = rng.normal(size=(6, 16))
    curve = best_of_n_curve(proxy, gold_PN=-proxy)
    assert curve.labels == (1, 2, 4, 8, 16) and curve.d_M[2] == pytest.approx(math.sqrt(kl_bound(4)))
    assert np.allclose(curve.gold_PM[:, 0], 0) and curve.d_M[0] == 0
    assert curve.gold()[-1].estimate < 0 < curve.gap()[-1].estimate, "the proxy promises what gold does not pay"
    assert curve.drop() == pytest.approx(-curve.gold_PM[:, -1].mean())


@pytest.mark.parametrize(("form", "bend"), [("best-of-n", lambda d: d * d), ("rl", lambda d: d * np.log(d))])
def test_gaos_forms_are_recovered_without_noise(form: str, bend: object) -> None:
    d = np.linspace(0.2, 4, 12)
    found = fit(d, gains_M=1.5 * d - 0.4 * bend(d), form=form, d_min=0.3)  # type: ignore[operator]
    assert (found.alpha, found.beta) == pytest.approx((1.5, 0.4))
    peak = found.peak
    assert peak == pytest.approx(1.5 / 0.8 if form == "best-of-n" else math.exp(1.5 / 0.4 - 1))
    assert found.at(peak) >= max(found.at(peak * 0.99), found.at(peak * 1.01))


def test_a_curve_that_never_turns_has_no_peak_and_too_few_points_no_fit() -> None:
    assert Fit("best-of-n", 1.0, -0.1).peak is None and Fit("rl", 1.0, 0.0).peak is None
    assert Fit("best-of-n", -1.0, 0.1).peak is None and Fit("rl", 1.0, 1e-9).peak is None
    with pytest.raises(UserError, match="at least 3"):
        fit([0.1, 1, 2], gains_M=[0, 1, 2], form="rl", d_min=0.5)
    with pytest.raises(ValueError, match="no form"):
        fit([1, 2, 3], gains_M=[0, 1, 2], form="ppo", d_min=0)


def made_curve(prompts: int, noise: float) -> Curve:
    d = np.linspace(0.0, 3.0, 10)
    gold = d - 0.25 * d**2 + noise * np.random.default_rng(1).normal(size=(prompts, 1)) * d
    return Curve(d, gold, np.tile(d, (prompts, 1)))


def test_fit_intervals_run_over_prompts() -> None:
    found = fit_curve(made_curve(40, 0.2), form="best-of-n", d_min=0.1, draws=200)
    assert found.beta.estimate == pytest.approx(0.25) and found.alpha.n == 40 and found.points == 9
    assert found.alpha.low is not None and found.alpha.high is not None
    assert found.alpha.low < found.fit.alpha < found.alpha.high and found.alpha.high - found.alpha.low > 0.05
    assert found.peak is not None and not found.peak_beyond
    whole = made_curve(4, 0.0)
    early = Curve(whole.d_M[:5], whole.gold_PM[:, :5], whole.proxy_PM[:, :5])
    assert fit_curve(early, form="best-of-n", d_min=0.1, draws=20).peak_beyond


def test_a_curve_rises_in_d() -> None:
    with pytest.raises(ValueError, match="rising"):
        Curve(np.array([1.0, 1.0]), np.zeros((2, 2)), np.zeros((2, 2)))
