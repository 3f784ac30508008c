"""Diagnoses of trainers with a planted fault, and of right and idle ones; the faults' closed forms against training."""

from __future__ import annotations

import numpy as np
import pytest

from align.testbed.theory.diagnosis import Trained, diagnose, explanations
from align.testbed.theory.hypotheses import (
    LIBRARY,
    Asked,
    endless,
    leaf_tokens,
    log_normalise,
    mean_over_tokens,
    right,
    tilted,
)
from factories.planted_trainers import asked, train

PLANTED = (
    "none", "sign of the KL", "mean over tokens", "end token", "reward of another sample", "weights ignored",
    "group scaling",
)  # fmt: skip
ALSO = (
    "another beta", "no KL", "reward of another prompt", "weights reversed", "GDPO", "sign of the reward",
    "no reference",
)  # fmt: skip


@pytest.mark.parametrize("fault", [*PLANTED, *(pytest.param(name, marks=pytest.mark.slow) for name in ALSO)])
def test_a_planted_fault_is_named(fault: str) -> None:
    cases = (asked(), 120), (asked(beta=4.8), 40), (asked(), 40)
    run, probe, short = (Trained(case, train(case, fault, steps=steps)) for case, steps in cases)
    found = diagnose(run, probe=probe, short=short)
    assert found.fault == ("right" if fault == "none" else fault), found.words
    assert (found.kind == "right") == (fault == "none")
    if found.wrong is not None and found.unfinished is not None:
        assert found.wrong + found.unfinished == pytest.approx(found.regret)


def test_an_untrained_reference_learned_nothing() -> None:
    case = asked()
    found = diagnose(Trained(case, case.tree.leaf_logref), probe=Trained(asked(beta=4.8), case.tree.leaf_logref))
    assert found.kind == "learned nothing" and found.regret == pytest.approx(found.regret_reference)


@pytest.mark.slow
@pytest.mark.parametrize("hypothesis", LIBRARY, ids=lambda h: h.name)
def test_every_fixed_point_is_named_from_itself(hypothesis) -> None:  # type: ignore[no-untyped-def]
    """Closed forms of the library, held against the library: no two faults are mistaken for each other."""
    case, larger = asked(), asked(beta=4.8)
    logp = hypothesis.policy(case)
    assert np.exp(logp).sum(-1) == pytest.approx(1)
    run = Trained(case, np.maximum(logp, np.log(1e-12)))
    probe = Trained(larger, np.maximum(hypothesis.policy(larger), np.log(1e-12)))
    found = diagnose(run, probe=probe, short=run)
    assert found.fault == hypothesis.fault and found.distance == pytest.approx(0, abs=0.02)


def test_part_of_the_way_is_unfinished_while_it_moves_and_a_beta_too_small_is_not() -> None:
    case, larger = asked(), asked(beta=4.8)
    run, probe = (Trained(c, tilted(c, 0.75 * np.array(c.weights) / c.beta)) for c in (case, larger))
    short = Trained(case, tilted(case, 0.3 * np.array(case.weights) / case.beta))
    assert diagnose(run, probe=probe, short=short).kind == "unfinished"
    run, probe = (Trained(c, tilted(c, 1.6 * np.array(c.weights) / c.beta)) for c in (case, larger))
    found = diagnose(run, probe=probe, short=run)
    assert (found.kind, found.fault) == ("fault", "another beta") and "beta x 0.6" in found.words


def test_a_kl_that_cannot_show_yet_is_neither_called_missing_nor_called_right() -> None:
    """Tilts in closed form. The natural gradient goes from the reference to f = 1 - exp(-x) of the asked tilt, x the
    steps; at four times beta as fast, to a quarter of it, so at a quarter of the steps to (1 - exp(-x)) / 4.

    At x = .2 that is .181, .0453 and as asked .0488: a right trainer, whose KL falls by a seventh. Without a KL the
    tilt grows with the steps alone: .25 at both betas, and 1, where the asked optimum is, at the whole budget.
    """
    case, larger = asked(), asked(beta=4.8)

    def at(share: float, of: Asked) -> Trained:
        return Trained(of, tilted(of, share * np.array(case.weights) / case.beta))

    early = diagnose(at(0.181, case), probe=at(0.0453, larger), short=at(0.0488, case))
    assert early.kind == "cannot tell" and "whether it charges the KL cannot be seen yet" in early.words
    passing = diagnose(at(1.0, case), probe=at(0.25, larger), short=at(0.25, case))
    assert passing.kind == "cannot tell" and "four times beta did not hold it back" in passing.words
    beyond = diagnose(at(1.5, case), probe=at(0.375, larger), short=at(0.375, case))
    assert (beyond.kind, beyond.fault) == ("fault", "no KL")
    held = diagnose(at(1.0, case), probe=at(0.25, larger), short=at(0.7, case))
    assert held.kind == "right"


def test_noise_at_the_larger_beta_ranks_nothing() -> None:
    """A right trainer whose short run at four times beta learned its labels' errors is right, and no other rule."""
    case, larger = asked(), asked(beta=4.8)
    few = [one for one in LIBRARY if one.name in ("right", "mean over tokens", "no reference")]
    run, noise = Trained(case, right(case)), np.random.default_rng(1).normal(size=case.total.shape)
    noisy = Trained(larger, log_normalise(larger.tree.leaf_logref + 1.5 * noise))
    found = explanations(run, few, probe=noisy)
    assert found[0].name == "right" and all(one.rank == one.distance for one in found)
    told = explanations(run, few, probe=Trained(larger, right(larger)))
    assert told[0].name == "right" and all(one.rank > one.distance + 0.01 for one in told[1:])


def test_a_policy_of_nothing_known_cannot_be_told() -> None:
    """The optimum with as much noise in every logit as reward: along the reward, and nobody's fixed point."""
    case = asked()
    noise = 1.5 * np.random.default_rng(0).normal(size=case.total.shape)
    found = diagnose(Trained(case, log_normalise(right(case) + noise)))
    assert found.kind == "cannot tell" and "accounts for" in found.words


def test_the_mean_over_tokens_makes_the_reward_less_the_mean_log_ratio_constant() -> None:
    case = asked()
    logp = mean_over_tokens(case)
    left = case.total - case.beta * (logp - case.tree.leaf_logref) / leaf_tokens(case.tree)
    assert np.ptp(left, axis=-1).max() < 1e-6
    assert np.ptp(case.total - case.beta * (logp - case.tree.leaf_logref), axis=-1).max() > 1


def test_training_without_the_end_token_comes_closer_to_its_closed_form() -> None:
    case = asked()
    early, late = (Trained(case, train(case, "end token", steps=n)).distance(endless(case)) for n in (100, 300))
    assert late < 0.7 * early
