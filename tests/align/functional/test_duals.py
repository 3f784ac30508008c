"""The dual of the constrained problem: by hand on two responses, against a root finder, and at its edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from align.functional.duals import solved
from align.testbed.optimum import RewardClasses
from factories.oracles import constrained_optimum


def coin(threshold: float, *, beta: float = 1.0, maximum: float = 50.0, reward: float = 0.0):  # type: ignore[no-untyped-def]
    """Two responses of equal mass, the second with g = 1, the first with r = `reward`."""
    return solved(
        np.array([[reward, 0.0]]), np.array([[[0.0], [1.0]]]), np.array([threshold]), beta=beta, maximum=maximum
    )


@pytest.mark.parametrize("beta", [0.5, 2.0])
@pytest.mark.parametrize("threshold", [0.6, 0.9])
def test_by_hand(beta: float, threshold: float) -> None:
    """P(second) is sigmoid(lambda / beta) = d, so lambda = beta logit(d); the value is -beta KL(d || 1/2)."""
    dual = coin(threshold, beta=beta)
    assert dual.multipliers[0] == pytest.approx(beta * math.log(threshold / (1 - threshold)), abs=1e-6)
    assert dual.expected[0] == pytest.approx(threshold, abs=1e-7)
    nats = threshold * math.log(2 * threshold) + (1 - threshold) * math.log(2 * (1 - threshold))
    assert dual.value == pytest.approx(-beta * nats, abs=1e-9)
    assert dual.effective[0] == pytest.approx(1 / (threshold**2 + (1 - threshold) ** 2), abs=1e-6)


def test_a_reward_against_the_constraint_raises_the_multiplier_by_itself() -> None:
    """With r = 1 on the first response lambda is 1 larger: only r and lambda g together tilt."""
    assert coin(0.6, reward=1.0).multipliers[0] == pytest.approx(1 + math.log(1.5), abs=1e-6)


def test_a_slack_constraint_has_no_multiplier_and_one_out_of_reach_the_largest() -> None:
    slack, beyond = coin(0.4), coin(1.5, maximum=7.0)
    assert slack.multipliers == (0.0,) and slack.expected[0] == pytest.approx(0.5)
    assert beyond.multipliers == (7.0,) and beyond.expected[0] < 1


def test_samples_left_out_change_nothing() -> None:
    """-inf as log-mass: the same as without them, whatever their rewards."""
    with_one = solved(
        np.array([[0.0, 0.0, 9.0]]), np.array([[[0.0], [1.0], [9.0]]]), np.array([0.6]), beta=1.0, maximum=50.0,
        log_mass_PN=np.array([[0.0, 0.0, -np.inf]]),
    )  # fmt: skip
    assert with_one == coin(0.6)


def test_expectations_are_over_prompts_first() -> None:
    """Two prompts, one of which cannot move: lambda lifts the mean of both, (sigmoid(lambda) + 0) / 2 = .4."""
    both = solved(np.zeros((2, 2)), np.array([[[0.0], [1.0]], [[0.0], [0.0]]]), np.array([0.4]), beta=1.0, maximum=50.0)
    assert both.multipliers[0] == pytest.approx(math.log(4), abs=1e-6)


def test_against_root_finding_and_against_the_primal() -> None:
    """Random prompts of listed responses: one constraint by a root finder; two by complementary slackness."""
    rng = np.random.default_rng(3)
    rewards, masses = rng.normal(size=(5, 7, 3)), rng.normal(size=(5, 7))
    masses -= np.log(np.exp(masses).sum(1, keepdims=True))
    one = solved(rewards[..., 0], rewards[..., 1:2], np.array([0.5]), beta=0.7, maximum=99.0, log_mass_PN=masses)
    classes = [RewardClasses(table, mass) for table, mass in zip(rewards, masses, strict=True)]
    oracle = constrained_optimum(classes, maximise=0, constrain=1, threshold=0.5, beta=0.7)
    assert oracle.multiplier > 0.1
    assert one.multipliers[0] == pytest.approx(oracle.multiplier, abs=1e-5)
    assert one.value == pytest.approx(oracle.point.J, abs=1e-9)
    two = solved(rewards[..., 0], rewards[..., 1:], np.array([0.4, 0.3]), beta=0.7, maximum=99.0, log_mass_PN=masses)
    for multiplier, expected, threshold in zip(two.multipliers, two.expected, (0.4, 0.3), strict=True):
        assert expected >= threshold - 1e-6 and multiplier * (expected - threshold) == pytest.approx(0, abs=1e-5)
    assert two.value <= one.value + 1 and max(two.multipliers) > 0


def test_many_samples_find_the_multiplier_of_the_law_they_were_drawn_from() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.random((1, 40_000)) < 0.2  # P(g = 1) = .2; logit(.6) - logit(.2) = log 6
    dual = solved(np.zeros(drawn.shape), drawn[..., None].astype(float), np.array([0.6]), beta=1.0, maximum=50.0)
    assert dual.multipliers[0] == pytest.approx(math.log(6), abs=0.05)


@pytest.mark.parametrize("change", [{"beta": 0.0}, {"maximum": 0.0}, {"reward": math.nan}])
def test_what_cannot_be_solved_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0|finite"):
        coin(0.6, **change)
