"""Gradient combiners on their Gram matrix: by hand, against vector forms, and against the optimum each one claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from align.functional.combine import (
    COMBINERS,
    FIXED_POINTS,
    cagrad,
    coefficients,
    cosines_of,
    mgda,
    nash_mtl,
    pcgrad,
    raco,
    square_root,
)

ALL = tuple(COMBINERS)
HALF = (0.5, 0.5)


def draw(rng: np.random.Generator, count: int, *, size: int = 8, conflict: bool = False) -> np.ndarray:
    """(K, D) random gradients of different lengths; with `conflict` the second is opposed to the first."""
    rows_KD = rng.normal(size=(count, size)) * rng.uniform(0.2, 3, (count, 1))
    if conflict:
        first, second = rows_KD[0], rows_KD[1]
        rows_KD[1] = second - (abs(second @ first) + 0.5 * first @ first) / (first @ first) * first
        assert rows_KD[0] @ rows_KD[1] < 0
    return rows_KD


def step(rows_KD: Any, *, combiner: str, weights: Sequence[float] = HALF, c: float = 0.5, seed: int = 0) -> np.ndarray:
    """The combined gradient itself."""
    rows_KD = np.asarray(rows_KD, dtype=float)
    rng = np.random.default_rng(seed)
    return coefficients(rows_KD @ rows_KD.T, combiner=combiner, weights=weights, c=c, rng=rng) @ rows_KD


def grid(count: int, steps: int) -> np.ndarray:
    """All points of the simplex whose entries are multiples of 1 / steps."""
    axes = np.meshgrid(*[np.arange(steps + 1)] * (count - 1), indexing="ij")
    first = np.stack([a.ravel() for a in axes], axis=1)
    first = first[first.sum(1) <= steps]
    return np.column_stack([first, steps - first.sum(1)]) / steps


# ------------------------------------------------------------------------------------------- what holds for all of them


@pytest.mark.parametrize("combiner", ALL)
def test_identical_gradients_keep_their_direction(combiner: str) -> None:
    one = np.array([3.0, -4.0])
    found = step([one, one, one], combiner=combiner, weights=(0.2, 0.3, 0.5))
    assert found / np.linalg.norm(found) == pytest.approx(one / 5)
    if combiner in ("sum", "mgda", "pcgrad"):  # the mean
        assert found == pytest.approx(one)


@pytest.mark.parametrize("combiner", ALL)
def test_all_weight_on_one_objective_is_its_gradient_bit_for_bit(combiner: str) -> None:
    rows_KD = draw(np.random.default_rng(1), 3, conflict=True)
    found = coefficients(rows_KD @ rows_KD.T, combiner=combiner, weights=(0, 1, 0), rng=np.random.default_rng(0))
    assert found.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("combiner", ALL)
def test_an_objective_of_weight_0_has_no_say(combiner: str) -> None:
    """K = 3 with w_3 = 0 is K = 2: the guard against code written for two objectives."""
    rows_KD = draw(np.random.default_rng(2), 3, conflict=True)
    three = step(rows_KD, combiner=combiner, weights=(0.3, 0.7, 0.0), seed=5)
    assert three == pytest.approx(step(rows_KD[:2], combiner=combiner, weights=(0.3, 0.7), seed=5), abs=1e-12)


@pytest.mark.parametrize("combiner", ALL)
def test_losses_and_what_is_maximised_give_opposite_steps(combiner: str) -> None:
    rows_KD = draw(np.random.default_rng(3), 3, conflict=True)
    weights = (0.2, 0.3, 0.5)
    up, down = step(rows_KD, combiner=combiner, weights=weights), step(-rows_KD, combiner=combiner, weights=weights)
    assert up == pytest.approx(-down)


@pytest.mark.parametrize("combiner", ALL)
def test_every_combiner_has_its_claim(combiner: str) -> None:
    assert "{" not in FIXED_POINTS[combiner].format(c=0.5)


# ---------------------------------------------------------------------------------------------------------------- MGDA


def test_mgda_of_two_by_the_closed_form() -> None:
    # g = (1, 0), (0, 2): share of the first (g2 - g1) . g2 / ||g1 - g2||^2 = 4 / 5
    assert mgda([[1.0, 0.0], [0.0, 4.0]], weights=HALF) == pytest.approx([0.8, 0.2])
    rng = np.random.default_rng(0)
    clipped = 0
    for _ in range(50):
        first, second = draw(rng, 2, size=2)
        share = (second - first) @ second / ((first - second) @ (first - second))
        clipped += not 0 < share < 1
        expected = np.clip(share, 0, 1) * first + (1 - np.clip(share, 0, 1)) * second
        assert step([first, second], combiner="mgda") == pytest.approx(expected, abs=1e-9)
    assert 5 < clipped < 45  # both cases were met


@pytest.mark.parametrize("count", [2, 3, 5])
def test_mgda_improves_all_objectives_and_those_it_mixes_alike(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(20):
        rows_KD = draw(rng, count, conflict=True)
        gram_KK = rows_KD @ rows_KD.T
        found_K = mgda(gram_KK, weights=[1 / count] * count)
        gains_K, length = gram_KK @ found_K, found_K @ gram_KK @ found_K
        assert found_K.sum() == pytest.approx(1) and found_K.min() >= 0
        assert (gains_K >= length - 1e-9).all() and length > 0  # common descent
        assert gains_K[found_K > 1e-9] == pytest.approx(length)


def test_mgda_of_three_is_the_shortest_mixture_on_a_grid() -> None:
    rows_KD = draw(np.random.default_rng(7), 3, size=2)
    lengths = np.linalg.norm(grid(3, 200) @ rows_KD, axis=1)
    assert np.linalg.norm(step(rows_KD, combiner="mgda", weights=(1 / 3,) * 3)) <= lengths.min() + 1e-9
    # three directions of the plane that surround 0: nothing improves all
    around = [[1.0, 0.0], [-1.0, 2.0], [-1.0, -1.0]]
    assert step(around, combiner="mgda", weights=(0.2, 0.3, 0.5)) == pytest.approx([0, 0], abs=1e-7)


def test_mgdas_weights_are_rates_of_improvement() -> None:
    """More weight is more of the objective; gradients times w would hand the larger coefficient to the smaller w."""
    assert mgda(np.eye(3), weights=(0.2, 0.3, 0.5)) == pytest.approx([0.2, 0.3, 0.5])
    rng = np.random.default_rng(4)
    all_mixed = 0
    for _ in range(20):
        rows_KD, weights_K = draw(rng, 3, conflict=True), rng.dirichlet([2, 2, 2])
        found_K = mgda(rows_KD @ rows_KD.T, weights=weights_K)
        rates_K = rows_KD @ (found_K @ rows_KD) / weights_K
        assert rates_K.min() == pytest.approx(rates_K[found_K > 1e-9].max())  # equal where mixed, not less elsewhere
        all_mixed += (found_K > 1e-9).all()
    assert all_mixed > 3


def test_mgda_follows_the_smaller_gradient() -> None:
    assert step([[10.0, 1.0], [0.0, 1.0]], combiner="mgda") == pytest.approx([0, 1])


def test_mgda_stands_still_at_a_gradient_of_0() -> None:
    assert step([[0.0, 0.0], [1.0, 2.0]], combiner="mgda") == pytest.approx([0, 0], abs=1e-9)


# -------------------------------------------------------------------------------------------------------------- PCGrad


def test_pcgrad_by_hand() -> None:
    # g1 = (1, 0), g2 = (-1, 1): g1 off g2 is (.5, .5), g2 off g1 is (0, 1)
    rows = [[1.0, 0.0], [-1.0, 1.0]]
    assert step(rows, combiner="pcgrad") == pytest.approx([0.25, 0.75])
    assert step(rows, combiner="pcgrad", weights=(0.2, 0.8)) == pytest.approx([0.1, 0.9])
    assert step([[1.0, 0.0], [1.0, 1.0]], combiner="pcgrad", weights=(0.2, 0.8)) == pytest.approx([1.0, 0.8])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_pcgrad_on_coefficients_is_pcgrad_on_vectors(count: int) -> None:
    for seed in range(20):
        rows_KD = draw(np.random.default_rng(seed), count, size=3, conflict=True)
        weights_K = np.random.default_rng(seed).dirichlet(np.ones(count))
        rng, total = np.random.default_rng(seed), np.zeros(3)
        for i in range(count):
            vector = rows_KD[i].copy()
            for j in rng.permutation(count):
                if j != i and vector @ rows_KD[j] < 0:  # off the original gradient, not the projected one
                    vector = vector - vector @ rows_KD[j] / (rows_KD[j] @ rows_KD[j]) * rows_KD[j]
            total += weights_K[i] * vector
        assert step(rows_KD, combiner="pcgrad", weights=weights_K, seed=seed) == pytest.approx(total, abs=1e-12)


def test_pcgrads_order_is_random_but_given() -> None:
    rows_KD = draw(np.random.default_rng(1), 4, size=3, conflict=True)
    found = {tuple(step(rows_KD, combiner="pcgrad", weights=(0.25,) * 4, seed=s).round(9)) for s in range(20)}
    assert len(found) > 1
    with pytest.raises(ValueError, match="random order; pass rng"):
        pcgrad(rows_KD @ rows_KD.T, weights=(0.25,) * 4)


# ------------------------------------------------------------------------------------------------------ CAGrad and RACO


@pytest.mark.parametrize("combiner", ["cagrad", "raco"])
def test_a_radius_of_0_is_the_weighted_mean(combiner: str) -> None:
    rows_KD = draw(np.random.default_rng(0), 3, conflict=True)
    assert step(rows_KD, combiner=combiner, weights=(1 / 3,) * 3, c=0) == pytest.approx(rows_KD.mean(0))
    assert step(rows_KD, combiner=combiner, weights=(0.1, 0.2, 0.7), c=0) == pytest.approx(
        0.1 * rows_KD[0] + 0.2 * rows_KD[1] + 0.7 * rows_KD[2]
    )


@pytest.mark.parametrize("count", [2, 3, 4])
def test_cagrad_is_the_best_step_of_its_ball_for_the_worst_objective(count: int) -> None:
    """The primal problem, with no dual: no other step of the ball does better."""
    rng = np.random.default_rng(count)
    for _ in range(10):
        rows_KD, weights_K = draw(rng, count, size=4, conflict=True), rng.dirichlet(np.ones(count))
        c = rng.uniform(0.1, 0.9)
        target_D = weights_K @ rows_KD
        radius = c * np.linalg.norm(target_D)
        found_D = step(rows_KD, combiner="cagrad", weights=weights_K, c=c)
        assert np.linalg.norm(found_D - target_D) == pytest.approx(radius)
        worst = (rows_KD @ found_D).min()
        others = [rng.normal(size=(2000, 4)), found_D - target_D + 0.05 * radius * rng.normal(size=(2000, 4))]
        for directions in others:
            around = target_D + radius * directions / np.linalg.norm(directions, axis=1, keepdims=True)
            assert (around @ rows_KD.T).min(1).max() <= worst + 1e-9


def mixture_on_a_grid(rows_2D: np.ndarray, weights_2: Sequence[float], c: float) -> np.ndarray:
    target_D = np.asarray(weights_2) @ rows_2D
    mixtures = grid(2, 20000)
    vectors = mixtures @ rows_2D
    return mixtures[(vectors @ target_D + c * np.linalg.norm(target_D) * np.linalg.norm(vectors, axis=1)).argmin()]


def test_raco_clips_the_mixture_by_the_weights() -> None:
    rng = np.random.default_rng(0)
    clipped = 0
    for _ in range(20):
        rows_2D, weights_2, c = draw(rng, 2, conflict=True), rng.dirichlet([1, 1]), rng.uniform(0.1, 0.9)
        free_2 = mixture_on_a_grid(rows_2D, weights_2, c)
        held_2 = np.minimum(free_2, weights_2)
        clipped += bool((held_2 < free_2 - 1e-3).any())
        target_D, vector_D = weights_2 @ rows_2D, held_2 @ rows_2D
        expected = target_D + c * np.linalg.norm(target_D) * vector_D / np.linalg.norm(vector_D)
        found = step(rows_2D, combiner="raco", weights=weights_2, c=c)
        assert found == pytest.approx(expected, abs=2e-3 * np.linalg.norm(target_D))
    assert clipped > 5


def test_raco_at_a_vertex_points_along_that_gradient_and_cagrad_does_not() -> None:
    """What clipping is for, seen without the shortcut for objectives of weight 0."""
    rows_KD = draw(np.random.default_rng(3), 3, conflict=True)
    gram_KK = rows_KD @ rows_KD.T
    found_D = raco(gram_KK, weights=(1, 0, 0), c=0.5) @ rows_KD
    assert found_D @ rows_KD[0] == pytest.approx(np.linalg.norm(found_D) * np.linalg.norm(rows_KD[0]))
    assert cagrad(gram_KK, weights=(1, 0, 0), c=0.5)[1] > 0.05


@pytest.mark.parametrize("combiner", ["cagrad", "raco"])
def test_with_c_below_1_only_the_stationary_points_of_the_sum_stop_it(combiner: str) -> None:
    opposed = [[1.0, 0.0], [-1.0, 0.0]]  # Pareto-stationary, and stationary for equal weights only
    assert step(opposed, combiner=combiner) == pytest.approx([0, 0], abs=1e-12)
    # g_0 = -.4: the ball of radius .2 around it ends at -.2
    assert step(opposed, combiner=combiner, weights=(0.3, 0.7)) == pytest.approx([-0.2, 0], abs=1e-6)
    assert step(opposed, combiner="mgda", weights=(0.3, 0.7)) == pytest.approx([0, 0], abs=1e-7)
    for c in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="c must be in"):
            step(opposed, combiner=combiner, c=c)


# ------------------------------------------------------------------------------------------------------------ Nash-MTL


def test_nash_of_orthogonal_gradients() -> None:
    lengths = np.array([0.1, 2.0, 30.0])
    assert nash_mtl(np.diag(lengths**2), weights=(1 / 3,) * 3) == pytest.approx(math.sqrt(1 / 3) / lengths)
    found = nash_mtl(np.diag(lengths**2), weights=(0.2, 0.3, 0.5))
    assert found == pytest.approx(np.sqrt([0.2, 0.3, 0.5]) / lengths)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_nash_solves_its_equation_and_sees_no_scale(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(20):
        rows_KD, weights_K = draw(rng, count, conflict=True), rng.dirichlet(np.ones(count))
        gram_KK = rows_KD @ rows_KD.T
        found_K = nash_mtl(gram_KK, weights=weights_K)
        assert found_K.min() > 0
        assert found_K * (gram_KK @ found_K) == pytest.approx(weights_K, abs=1e-6)
        found_D = found_K @ rows_KD
        assert np.linalg.norm(found_D) == pytest.approx(1, abs=1e-6)
        scaled_KD = rows_KD * 10.0 ** rng.integers(-4, 5, (count, 1))
        assert step(scaled_KD, combiner="nash_mtl", weights=weights_K) == pytest.approx(found_D, abs=1e-6)


def test_nash_is_the_best_bargain_of_the_unit_ball() -> None:
    rng = np.random.default_rng(0)
    rows_KD, weights_K = draw(rng, 3, size=4, conflict=True), np.array([0.2, 0.3, 0.5])

    def bargain(steps: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(np.log(steps @ rows_KD.T), nan=-np.inf) @ weights_K

    found_D = step(rows_KD, combiner="nash_mtl", weights=weights_K)
    others = np.concatenate([rng.normal(size=(5000, 4)), found_D + 0.02 * rng.normal(size=(5000, 4))])
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    assert bargain(others).max() <= bargain(found_D[None])[0] + 1e-9
    assert bargain(others).max() > bargain(found_D[None])[0] - 0.01  # the search came near


def test_nash_vanishes_where_nothing_improves_all_and_leaves_out_a_gradient_of_0() -> None:
    opposed = [[1.0, 2.0], [-2.0, -4.0]]
    assert step(opposed, combiner="nash_mtl", weights=(0.3, 0.7)) == pytest.approx([0, 0], abs=1e-3)
    assert nash_mtl([[0.0, 0.0], [0.0, 4.0]], weights=HALF) == pytest.approx([0, math.sqrt(0.5) / 2])
    assert nash_mtl(np.zeros((2, 2)), weights=HALF).tolist() == [0, 0]


# ----------------------------------------------------------------------------------- quadratics with a known Pareto set

CENTRES_K2 = np.array([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0]])
STEEPNESS_K = np.array([1.0, 3.0, 0.5])


def descend(combiner: str, *, count: int, weights: Sequence[float], start: Sequence[float]) -> np.ndarray:
    """Gradient descent on `f_k = s_k |x - a_k|^2 / 2`, whose Pareto set is the convex hull of the a_k."""
    x, rng = np.array(start, dtype=float), np.random.default_rng(0)
    for i in range(1500 if combiner == "nash_mtl" else 200):
        rows_KD = STEEPNESS_K[:count, None] * (x - CENTRES_K2[:count])
        size = 0.1 if combiner != "nash_mtl" else 0.1 / (1 + i / 20)  # Nash's step has norm 1 wherever it can improve
        x = x - size * coefficients(rows_KD @ rows_KD.T, combiner=combiner, weights=weights, rng=rng) @ rows_KD
    return x


@pytest.mark.parametrize("combiner", ALL)
def test_two_quadratics_end_on_the_segment_between_their_minima(combiner: str) -> None:
    weights, start = (0.4, 0.6), (1.0, 2.0)
    end = descend(combiner, count=2, weights=weights, start=start)
    assert abs(end[1]) < 0.02 and -0.02 < end[0] < 4.02
    optimum = 0.6 * 3 * 4 / (0.4 * 1 + 0.6 * 3)  # of the weighted sum: w_2 s_2 a_2 / (w_1 s_1 + w_2 s_2)
    if combiner in ("sum", "cagrad", "raco"):
        assert end == pytest.approx([optimum, 0], abs=1e-3)
    else:  # on the front, but not at w
        assert abs(end[0] - optimum) > 0.2


@pytest.mark.parametrize("combiner", ["sum", "cagrad", "raco", "mgda", "nash_mtl"])
def test_three_quadratics_end_in_the_triangle_of_their_minima(combiner: str) -> None:
    end = descend(combiner, count=3, weights=(0.5, 0.2, 0.3), start=(6.0, 5.0))
    corners = np.vstack([CENTRES_K2.T, np.ones(3)])
    inside = np.linalg.solve(corners, [*end, 1.0])  # barycentric coordinates
    assert inside.min() > -0.02
    pull_K = np.array([0.5, 0.2, 0.3]) * STEEPNESS_K
    if combiner in ("sum", "cagrad", "raco"):
        assert end == pytest.approx(pull_K @ CENTRES_K2 / pull_K.sum(), abs=1e-3)


def test_mgda_raises_no_loss_on_the_way() -> None:
    x = np.array([6.0, 5.0])
    losses = []
    for _ in range(300):
        rows_KD = STEEPNESS_K[:, None] * (x - CENTRES_K2)
        losses.append(STEEPNESS_K / 2 * ((x - CENTRES_K2) ** 2).sum(1))
        x = x - 0.05 * coefficients(rows_KD @ rows_KD.T, combiner="mgda", weights=(1 / 3,) * 3) @ rows_KD
    assert np.diff(losses, axis=0).max() < 1e-9
    assert (losses[-1] < losses[0] - 1).all()


# ---------------------------------------------------------------------------------------------------- tables and errors


def test_the_square_root_stands_for_the_gradients() -> None:
    rows_KD = draw(np.random.default_rng(0), 4, size=2)  # fewer dimensions than gradients: a singular matrix
    rows_KD[2] = 0
    found_KK = square_root(rows_KD @ rows_KD.T)
    assert found_KK @ found_KK.T == pytest.approx(rows_KD @ rows_KD.T, abs=1e-9)
    assert found_KK[2].tolist() == [0] * 4


def test_cosines_from_the_gram_matrix() -> None:
    found = cosines_of([[4.0, -3.0, 0.0], [-3.0, 9.0, 0.0], [0.0, 0.0, 0.0]])
    assert found[:2, :2] == pytest.approx(np.array([[1, -0.5], [-0.5, 1]]))
    assert np.isnan(found[2]).all() and np.isnan(found[:, 2]).all()


@pytest.mark.parametrize(
    ("gram", "weights", "message"),
    [
        ([[1.0, math.nan], [math.nan, 1.0]], HALF, "square and finite"),
        ([[1.0, 0.0]], HALF, "square and finite"),
        (np.eye(3), HALF, "square and finite"),
        (np.eye(2), (0.0, 0.0), "nor all 0"),
        (np.eye(2), (1.5, -0.5), "not be negative"),
    ],
)
def test_what_is_no_problem_is_refused(gram: Any, weights: Sequence[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coefficients(gram, combiner="sum", weights=weights)


def test_weights_of_0_and_unknown_names_are_refused() -> None:
    for combiner in (mgda, nash_mtl):
        with pytest.raises(ValueError, match="all be above 0"):
            combiner(np.eye(2), weights=(1, 0))
    with pytest.raises(ValueError, match="combiner must be one of sum, mgda, pcgrad, cagrad, nash_mtl, raco"):
        coefficients(np.eye(2), combiner="mean", weights=HALF)
