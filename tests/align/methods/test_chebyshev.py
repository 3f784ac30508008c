"""The Chebyshev utility and its gradient by hand, and training towards its optimum on an enumerated bandit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.engines.on_policy.weight_control import Observed
from align.methods import chebyshev
from align.methods.chebyshev import UtilityGradient, chebyshev_utility, utility_gradient
from align.preferences import Weights
from align.runs import open_run
from factories.tiny_bandit import (
    OBJECTIVES,
    PROMPT_ROWS,
    PROMPTS,
    RL,
    WORDS,
    fit,
    next_distribution,
    reward,
)

HALF, ONES = (0.5, 0.5), (1.0, 1.0)


def train(config: Any, *, reference: str, out: Path, weights: Weights, **data: Any) -> tuple[str, dict[str, Any]]:
    """The trained model and its metrics."""
    family = fit(chebyshev, config, reference=reference, weights=[weights], out=out, prompts=PROMPT_ROWS, **data)
    return family.points[weights.label], open_run(out / "points" / weights.label).metrics


def test_chebyshev_by_hand() -> None:
    # terms .5 (.4 - 1) = -.3 and .5 (.7 - 1) = -.15
    assert chebyshev_utility([0.4, 0.7], weights=HALF, ideal=ONES) == pytest.approx(-0.3)
    assert utility_gradient([0.4, 0.7], weights=HALF, ideal=ONES).tolist() == [0.5, 0.0]
    # the priority is on the worst *weighted shortfall*, not on the worst value: .9 (.7 - 1) = -.27, .1 (.4 - 1) = -.06
    assert utility_gradient([0.7, 0.4], weights=(0.9, 0.1), ideal=ONES).tolist() == [0.9, 0.0]
    # mu .1: -.1 log(e^3 + e^1.5) = -.1 (3 + log(1 + e^-1.5)) = -.3201413; softmax(3, 1.5) = .8175745, .1824255
    smooth = {"weights": HALF, "ideal": ONES, "smooth": 0.1}
    assert chebyshev_utility([0.4, 0.7], **smooth) == pytest.approx(-0.3201413, abs=1e-7)
    assert utility_gradient([0.4, 0.7], **smooth) == pytest.approx([0.4087872, 0.0912128], abs=1e-7)


def test_equal_worst_terms_share_the_subgradient() -> None:
    assert utility_gradient([0.5, 0.5, 0.9], weights=(0.4, 0.4, 0.2), ideal=(1.0,) * 3) == pytest.approx(
        [0.2, 0.2, 0.0]
    )


def test_utilities_of_a_front_are_one_number_a_point() -> None:
    values_NK = [[0.4, 0.7], [0.9, 0.1], [1.0, 1.0]]
    assert chebyshev_utility(values_NK, weights=HALF, ideal=ONES) == pytest.approx([-0.3, -0.45, 0.0])
    for smooth in (0.0, 0.2):
        together = chebyshev_utility(values_NK, weights=(0.3, 0.7), ideal=(1.2, 2.0), smooth=smooth)
        apart = [chebyshev_utility(v, weights=(0.3, 0.7), ideal=(1.2, 2.0), smooth=smooth) for v in values_NK]
        assert together == pytest.approx(apart)


def test_the_smooth_utility_falls_to_the_plain_one_with_mu() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        values, weights = rng.normal(size=4), rng.dirichlet(np.ones(4))
        plain = chebyshev_utility(values, weights=weights, ideal=np.full(4, 3.0))
        gaps = []
        for mu in (1.0, 0.1, 1e-2, 1e-5):
            gap = plain - chebyshev_utility(values, weights=weights, ideal=np.full(4, 3.0), smooth=mu)
            assert 0 <= gap <= mu * math.log(4) + 1e-12  # Lin et al. 2024: within mu log K
            gaps.append(gap)
        assert gaps == sorted(gaps, reverse=True)
        near = utility_gradient(values, weights=weights, ideal=np.full(4, 3.0), smooth=1e-5)
        assert near == pytest.approx(utility_gradient(values, weights=weights, ideal=np.full(4, 3.0)), abs=1e-6)


@pytest.mark.parametrize("smooth", [0.0, 0.05, 1.0])
def test_the_gradient_is_that_of_the_utility(smooth: float) -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        values, settings = rng.normal(size=3), {"weights": (0.2, 0.5, 0.3), "ideal": (2.0, 2.5, 3.0), "smooth": smooth}
        slope = [
            (chebyshev_utility(values + d, **settings) - chebyshev_utility(values - d, **settings)) / 2e-6
            for d in np.eye(3) * 1e-6
        ]
        assert utility_gradient(values, **settings) == pytest.approx(slope, abs=1e-5)


@pytest.mark.parametrize("smooth", [0.0, 0.3])
def test_objectives_of_weight_zero_do_not_count(smooth: float) -> None:
    """A term of 0 would be the minimum above the ideal, and would take its share of a softmax below it."""
    for third in (-100.0, 0.5, 100.0):
        settings = {"weights": (*HALF, 0.0), "ideal": (*ONES, 1.0), "smooth": smooth}
        two = {"weights": HALF, "ideal": ONES, "smooth": smooth}
        assert chebyshev_utility([0.4, 0.7, third], **settings) == chebyshev_utility([0.4, 0.7], **two)
        expected = [*utility_gradient([0.4, 0.7], **two), 0.0]
        assert utility_gradient([0.4, 0.7, third], **settings).tolist() == expected
    for value in (-3.0, 0.5, 9.0):  # w = e_k is objective k itself
        vertex = {"weights": (0.0, 1.0), "ideal": ONES, "smooth": smooth}
        assert chebyshev_utility([7.0, value], **vertex) == pytest.approx(value - 1)
        assert utility_gradient([7.0, value], **vertex).tolist() == [0.0, 1.0]


def test_shapes_that_do_not_fit_are_refused() -> None:
    for values, weights, ideal, smooth in (
        ([0.1, 0.2], (1.0,), (1.0,), 0.0),
        ([0.1, 0.2], HALF, (1.0,), 0.0),
        ([0.1, 0.2], (0.0, 0.0), ONES, 0.0),
        ([0.1, 0.2], HALF, ONES, -1.0),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            chebyshev_utility(values, weights=weights, ideal=ideal, smooth=smooth)


def test_the_utility_is_of_the_mean_not_the_mean_of_utilities() -> None:
    """ESR, as in CTWA's Tchebycheff trainer, sees a worst objective in every single response; the means are equal."""
    rule = UtilityGradient(HALF, ONES, smooth=0.0, decay=0.0)
    memory = rule.step(rule.start(), Observed(np.array([[1.0, 0.0], [0.0, 1.0]]), group=2))
    assert rule.weights(memory) == [0.25, 0.25]
    assert rule.report(memory)["utility"] == pytest.approx(-0.25)  # ESR: -0.5


def test_chebyshev_weights_follow_the_moving_average() -> None:
    rule = UtilityGradient(HALF, ONES, smooth=0.0, decay=0.75)
    assert rule.weights(rule.start()) == [0.25, 0.25]
    memory = rule.step(rule.start(), Observed(np.array([[0.2, 0.4]]), group=1))
    assert rule.weights(memory) == [0.5, 0.0]
    memory = rule.step(memory, Observed(np.array([[0.9, 0.1]]), group=1))  # averages .375 and .325
    assert memory == {"means": [pytest.approx(0.375), pytest.approx(0.325)]}
    assert rule.weights(memory) == [0.0, 0.5]
    assert rule.report(memory)["beyond_ideal"] == 0.0
    passed = rule.step(rule.start(), Observed(np.array([[1.5, 0.1]]), group=1))
    assert rule.report(passed)["beyond_ideal"] == pytest.approx(0.5)
    assert rule.weights(rule.step(rule.start(), Observed(np.array([[math.nan, 0.1]]), group=1))) == [0.25, 0.25]


def enumerated(reference: str) -> tuple[np.ndarray, np.ndarray]:
    """The reference's distributions (P, V) and the rewards (P, V, K) of the bandit."""
    ref_PV = np.array([next_distribution(reference, p) for p in PROMPTS])
    return ref_PV, np.array([[[reward(n, p, word) for n in OBJECTIVES] for word in WORDS] for p in PROMPTS])


def chebyshev_j(pi_PV: np.ndarray, reference: str, *, weights: Any, smooth: float, beta: float) -> float:
    """Utility of the means minus beta KL, written out once more; ideal 1."""
    ref_PV, rewards_PVK = enumerated(reference)
    shortfall_K = np.array(weights) * (1 - (pi_PV[:, :, None] * rewards_PVK).sum((0, 1)) / len(PROMPTS))
    utility = -shortfall_K.max() if smooth == 0 else -smooth * np.log(np.exp(shortfall_K / smooth).sum())
    return float(utility - beta * (pi_PV * np.log(pi_PV / ref_PV)).sum() / len(PROMPTS))


def best_chebyshev_j(reference: str, *, weights: Any, smooth: float, beta: float) -> float:
    """scipy over the logits of every prompt's distribution: no tilting, no weights, no gradient of ours."""
    from scipy.optimize import minimize

    ref_PV, _ = enumerated(reference)

    def loss(logits: np.ndarray) -> float:
        table = np.exp(logits.reshape(ref_PV.shape) - logits.max())
        return -chebyshev_j(table / table.sum(1, keepdims=True), reference, weights=weights, smooth=smooth, beta=beta)

    return -float(minimize(loss, np.log(ref_PV).ravel(), method="BFGS").fun)


def chebyshev_share(reference: str, out: Path, *, smooth: float, decay: float, **changes: Any) -> tuple[float, dict]:
    """The share of the way from the optimum to the reference that is left in J_U, and the run's metrics."""
    weights, beta = Weights((0.6, 0.4)), 0.15
    settings = {**RL, "beta": beta, "steps": 60, "logging_steps": 2, "scheduler": "linear", **changes}
    config = chebyshev.Config(**settings, ideal=ONES, smooth=smooth, decay=decay)
    model, metrics = train(config, reference=reference, out=out, weights=weights)
    facts = {"weights": weights.values, "smooth": smooth, "beta": beta}
    # BFGS cannot cross a corner: its optimum is that of a nearly plain utility, at most mu log 2 = .0007 lower
    best = best_chebyshev_j(reference, weights=weights.values, smooth=smooth or 0.001, beta=beta)
    ours, theirs = (
        chebyshev_j(np.array([next_distribution(m, p) for p in PROMPTS]), reference, **facts)
        for m in (model, reference)
    )
    assert best - theirs > 0.05  # there is something to gain
    return (best - ours) / (best - theirs), metrics


def test_training_finds_the_smooth_chebyshev_optimum(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = enumerated(reference)
    monkeypatch.setattr(f"{__name__}.enumerated", lambda _: cached)
    share, metrics = chebyshev_share(reference, tmp_path, smooth=0.1, decay=0.9)
    assert -0.005 < share < 0.03
    late = [sum(point["weights"]) for point in metrics["trace"][-10:]]
    assert min(late) > 0.4 and max(late) < 0.6  # between w_2 and w_1: another total is another trade with beta
    one = [point["weights"][0] for point in metrics["trace"][-10:]]
    assert max(one) - min(one) < 0.12 and min(one) > 0.1 and max(one) < 0.5  # settled, at a mixture


def test_the_plain_utility_gets_near_its_optimum_and_oscillates(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = enumerated(reference)
    monkeypatch.setattr(f"{__name__}.enumerated", lambda _: cached)
    share, metrics = chebyshev_share(reference, tmp_path, smooth=0.0, decay=0.3)
    assert share < 0.25
    late = [tuple(point["weights"]) for point in metrics["trace"][-15:]]
    assert set(late) == {(0.6, 0.0), (0.0, 0.4)}  # to and fro


def test_chebyshev_says_what_it_optimises() -> None:
    smooth = chebyshev.describe(chebyshev.Config(ideal=ONES, smooth=0.2, beta=0.5), weights=Weights(HALF))
    assert "-0.2 log sum_k exp(-w_k (E[r_k] - z_k) / 0.2) - 0.5 KL(pi||ref) at w = 0.5,0.5, z = 1,1" in smooth
    plain = chebyshev.describe(chebyshev.Config(ideal=ONES, smooth=0.0), weights=Weights(HALF))
    assert "min_k w_k (E[r_k] - z_k)" in plain and "oscillate" in plain
