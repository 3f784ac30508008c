"""Fronts against brute force, hand-derived values and an exact environment. CPU, below a second."""

import itertools
import math

import numpy as np
import pytest

from align.functional import fronts

IN_DISTRIBUTION = [(0.9, 0.2), (0.7, 0.6), (0.3, 0.9)]
SHIFTED = [(0.8, 0.1), (0.6, 0.4), (0.2, 0.7)]


def test_nondominated_against_the_definition() -> None:
    rng = np.random.default_rng(0)
    for width in (2, 3):
        points = rng.integers(0, 5, size=(40, width)).astype(float)
        expected = [not any((q >= p).all() and (q > p).any() for q in points) for p in points]
        assert fronts.nondominated(points).tolist() == expected


def test_duplicates_of_a_front_point_all_stay() -> None:
    assert fronts.nondominated([[1, 2], [2, 1], [1, 2], [1, 1]]).tolist() == [True, True, True, False]


def test_hypervolume_golden() -> None:
    """.9*.2 + .7*.4 + .3*.3 = .18 + .28 + .09 = .55 and .08 + .18 + .06 = .32."""
    assert math.isclose(fronts.hypervolume(IN_DISTRIBUTION, ref_point=(0, 0)), 0.55)
    assert math.isclose(fronts.hypervolume(SHIFTED, ref_point=(0, 0)), 0.32)
    assert math.isclose(fronts.hypervolume([*IN_DISTRIBUTION, (0.2, 0.1), (-1, 5)], ref_point=(0, 0)), 0.55)
    assert fronts.hypervolume([(-0.9, -0.2)], ref_point=(0, 0)) == 0
    assert math.isclose(fronts.hypervolume([(-0.9, -0.2)], ref_point=(-1, -1)), 0.1 * 0.8)


@pytest.mark.parametrize("width", [2, 3])
def test_hypervolume_counts_the_dominated_cells_of_a_grid(width: int) -> None:
    """Integer points: the volume is the number of unit cells whose upper corner some point dominates."""
    points = np.random.default_rng(width).integers(0, 7, size=(6, width))
    cells = sum(any((p >= corner).all() for p in points) for corner in itertools.product(range(1, 7), repeat=width))
    assert fronts.hypervolume(points, ref_point=np.zeros(width)) == pytest.approx(cells)


def test_utilities_by_hand() -> None:
    """Points (2,0) and (0,1), asked for w = (1,0) and (.5,.5): best 2 and 1; obtained 2 and .5."""
    points, weights = [(2, 0), (0, 1)], [(1, 0), (0.5, 0.5)]
    assert fronts.expected_utility(points, weights_MK=weights) == pytest.approx(1.5)
    assert fronts.conditioned_utility(points, weights_NK=weights) == pytest.approx(1.25)
    with pytest.raises(ValueError, match="one preference per point"):
        fronts.conditioned_utility(points, weights_NK=weights[:1])


def test_kendall_tau_and_its_ties() -> None:
    assert fronts.kendall_tau([1, 2, 3], weights_N=[0, 0.5, 1]) == 1
    assert fronts.kendall_tau([3, 2, 1], weights_N=[0, 0.5, 1]) == -1
    assert fronts.kendall_tau([5, 5, 5], weights_N=[0, 0.5, 1]) == 0  # ignores the weights
    assert fronts.kendall_tau([1, 1, 2], weights_N=[0, 0.5, 1]) == pytest.approx(2 / 3)  # one tied value in three pairs
    assert fronts.kendall_tau([1, 9, 2], weights_N=[0, 0, 1]) == pytest.approx((1 - 1) / 2)  # equal weights left out
    assert fronts.kendall_tau([1, 2], weights_N=[0.3, 0.3]) is None
    assert fronts.kendall_tau([1, 1.01, 2], weights_N=[0, 0.5, 1], tie=0.1) == pytest.approx(2 / 3)
    points, weights = [(0, 1), (1, 1), (2, 0)], [(0, 1), (0.5, 0.5), (1, 0)]
    assert fronts.controllability(points, weights_NK=weights) == [1, pytest.approx(2 / 3)]


def tilted(ref_A: np.ndarray, rewards_AK: np.ndarray, weights_K: np.ndarray, beta: float) -> tuple[np.ndarray, float]:
    """(E[r], KL) of the exact optimum of one enumerated prompt."""
    logits_A = np.log(ref_A) + rewards_AK @ weights_K / beta
    p_A = np.exp(logits_A - logits_A.max())
    p_A /= p_A.sum()
    return p_A @ rewards_AK, float(p_A @ np.log(p_A / ref_A))


def at_kl(ref_A: np.ndarray, rewards_AK: np.ndarray, weights_K: np.ndarray, kl: float) -> np.ndarray:
    low, high = 1e-3, 1e3
    for _ in range(100):
        beta = math.sqrt(low * high)
        low, high = (beta, high) if tilted(ref_A, rewards_AK, weights_K, beta)[1] > kl else (low, beta)
    return tilted(ref_A, rewards_AK, weights_K, high)[0]


def test_exchange_rate_is_the_weight_ratio_at_fixed_kl_and_not_at_fixed_beta() -> None:
    rng = np.random.default_rng(0)
    ref_A, first_A = rng.dirichlet(np.ones(40)), rng.normal(size=40)
    rewards_A2 = np.stack([first_A, -0.6 * first_A + 0.8 * rng.normal(size=40)], axis=1)
    weights = [np.array([1 - t, t]) for t in np.linspace(0.3, 0.6, 201)]
    fixed_kl = np.array([at_kl(ref_A, rewards_A2, w, 0.3) for w in weights])
    rates = fronts.exchange_rate(fixed_kl, of=0, per=1)
    assert rates.order == tuple(range(201))
    expected = np.array([-w[1] / w[0] for w in weights])
    middle = (expected[1:] + expected[:-1]) / 2
    assert np.allclose(np.array(rates.slopes, dtype=float), middle, rtol=1e-3)
    fixed_beta = np.array([tilted(ref_A, rewards_A2, w, 0.5)[0] for w in weights])
    drifting = np.array(fronts.exchange_rate(fixed_beta, of=0, per=1).slopes, dtype=float)
    assert np.abs(drifting / middle - 1).max() > 0.02


def test_common_kl_is_exact_for_a_gaussian() -> None:
    """Tilting N(0, I) to mean m costs |m|^2 / 2, so a point at common KL lies on the circle of radius sqrt(2 KL)."""
    points = np.array([[3.0, 4.0], [0.0, 1.0], [2.0, 0.0]])
    moved = fronts.at_common_kl(points + 7, kl_N=(points**2).sum(1) / 2, reference_K=[7, 7])
    assert np.allclose(moved - 7, [[0.6, 0.8], [0, 1], [1, 0]])
    with pytest.raises(ValueError, match="KL <= 0"):
        fronts.at_common_kl(points, kl_N=[1, 0, 1], reference_K=[0, 0])


def test_exchange_rate_by_hand() -> None:
    rates = fronts.exchange_rate([(0, 3), (4, 0), (3, 2)], of=0, per=1)
    assert rates.order == (1, 2, 0)
    assert rates.slopes == (pytest.approx(-0.5), pytest.approx(-3.0)) and rates.overall == pytest.approx(-4 / 3)
    assert fronts.exchange_rate([(0, 1), (4, 1)], of=0, per=1).overall is None
    with pytest.raises(ValueError, match="two different"):
        fronts.exchange_rate([(0, 1), (4, 1)], of=1, per=1)


def test_the_share_of_regret() -> None:
    assert fronts.regret_share([0.1, 0.3], reference_regrets_M=[0.4, 0.6]) == pytest.approx(0.4)  # not mean of ratios
    with pytest.raises(ValueError, match="no regret"):
        fronts.regret_share([0.1], reference_regrets_M=[0.0])


@pytest.mark.parametrize("bad", [[], [1, 2], [[math.nan, 1]], [[]]])
def test_points_must_be_a_finite_table(bad: list) -> None:
    with pytest.raises(ValueError, match="points_NK"):
        fronts.nondominated(bad)


def test_reference_point_must_fit() -> None:
    with pytest.raises(ValueError, match="ref_point"):
        fronts.hypervolume([[1, 2]], ref_point=[0, 0, 0])
    with pytest.raises(TypeError):
        fronts.hypervolume([[1, 2]], [0, 0])  # type: ignore[misc]
