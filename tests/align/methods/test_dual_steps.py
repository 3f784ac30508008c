"""Multipliers of constraints: each dual step by hand, and a KL coefficient that does not move with them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.engines.on_policy.weight_control import Observed, controlled_trainer
from align.methods import lagrangian
from align.methods.lagrangian import Config, Multipliers, dual_step
from factories.tiny_bandit import BETA, RL, problem_of, workspace

# ----------------------------------------------------------------------------------------------------- the dual step


def test_dual_steps_by_hand() -> None:
    step = {"rate": 0.5, "maximum": 20.0}
    assert dual_step(2.0, violation=0.4, dual="exp", **step) == pytest.approx(2 * math.exp(0.2))
    # Safe RLHF: SGD on log lambda of -(J_C - d) e^{log lambda}, whose gradient carries lambda itself
    assert dual_step(2.0, violation=0.4, dual="official", **step) == pytest.approx(2 * math.exp(0.4))
    assert dual_step(2.0, violation=0.4, dual="linear", **step) == pytest.approx(2.2)
    assert dual_step(0.1, violation=-0.4, dual="linear", **step) == 0.0


@pytest.mark.parametrize("dual", lagrangian.DUALS)
def test_the_multiplier_rises_iff_the_constraint_is_violated_and_stays_in_bounds(dual: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        before, violation = float(np.exp(rng.uniform(-4, 2))), float(rng.normal())
        after = dual_step(before, violation=violation, rate=0.3, dual=dual, maximum=10.0)
        assert (after > before) == (violation > 0)
        assert 0 <= after <= 10 and (after > 0 or dual == "linear")
    for violation in (1e6, -1e6):  # neither overflows nor is lost at 0
        after = dual_step(1.0, violation=violation, rate=1.0, dual=dual, maximum=10.0)
        assert after == 10.0 if violation > 0 else 0 <= after < 1e-9
        assert after > 0 or dual == "linear"
    with pytest.raises(ValueError, match="dual must be one of"):
        dual_step(1.0, violation=0.0, rate=1.0, dual="log", maximum=1.0)


def rule_of(thresholds: tuple[float | None, ...], **changes: Any) -> Multipliers:
    settings = {
        "dual": "exp",
        "rate": 0.5,
        "window": 2,
        "initial": 1.0,
        "maximum": 20.0,
        "normalise": "none",
        **changes,
    }
    return Multipliers(names=("one", "two", "three")[: len(thresholds)], thresholds=thresholds, **settings)


def seen(*means: float | None) -> Observed:
    """A batch of two completions with these means."""
    return Observed(np.array([[np.nan if m is None else m + d for m in means] for d in (-0.1, 0.1)]), group=2)


def test_the_constraint_is_averaged_over_the_window_and_compared_with_a_lower_bound() -> None:
    rule = rule_of((None, 0.5))
    memory = rule.step(rule.start(), seen(9.0, 0.1))
    assert memory["multipliers"] == {"two": pytest.approx(math.exp(0.5 * 0.4))}  # 0.1 is 0.4 below the bound
    memory = rule.step(memory, seen(9.0, 0.7))  # the window's mean is 0.4: still 0.1 below
    assert memory["multipliers"]["two"] == pytest.approx(math.exp(0.5 * 0.4 + 0.5 * 0.1))
    memory = rule.step(memory, seen(9.0, 0.7))  # the first has left the window of 2: 0.2 above
    assert memory["multipliers"]["two"] == pytest.approx(math.exp(0.5 * (0.4 + 0.1 - 0.2)))
    report = rule.report(memory)
    assert report["constraint_means"] == {"two": pytest.approx(0.7)} and report["violations"] == {"two": 0.0}
    short = rule.report(rule.step(rule.start(), seen(9.0, 0.1)))
    assert short["violations"] == {"two": pytest.approx(0.4)} and short["at_maximum"] == []


def test_each_constraint_has_its_own_multiplier() -> None:
    rule = rule_of((0.5, None, 0.2), window=1)
    memory = rule.step(rule.start(), seen(0.3, 7.0, 0.6))
    first, third = math.exp(0.5 * 0.2), math.exp(-0.5 * 0.4)
    assert rule.weights(memory) == pytest.approx([first, 1.0, third])
    official = rule_of((0.5, None, 0.2), window=1, normalise="official")
    total = 1 + first + third
    assert official.weights(memory) == pytest.approx([first / total, 1 / total, third / total])
    assert rule.step(rule.start(), seen(None, 7.0, 0.6))["multipliers"]["one"] == 1.0  # nothing seen, nothing moved


def test_a_constraint_out_of_reach_ends_at_the_maximum_and_says_so() -> None:
    rule, memory = rule_of((None, 5.0), rate=3.0), rule_of((None, 5.0)).start()
    for _ in range(10):
        memory = rule.step(memory, seen(0.0, 1.0))
    assert memory["multipliers"] == {"two": 20.0} and rule.report(memory)["at_maximum"] == ["two"]


# ------------------------------------------------------------------------------------------------ inside the trainer


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
@pytest.mark.parametrize("normalise", ["none", "official"])
def test_the_kl_coefficient_does_not_move_with_the_multiplier(
    algorithm: str, normalise: str, reference: str, tmp_path: Path
) -> None:
    config = Config(**{**RL, "steps": 3, "batch_size": 24}, algorithm=algorithm, normalise=normalise, dual_rate=5.0)
    rule = rule_of((None, 0.9), rate=5.0, normalise=normalise)
    trainer, control = controlled_trainer(config, problem_of(reference), workspace(tmp_path), rule=rule)
    trainer.train()
    multiplier = control.memory["rule"]["multipliers"]["two"]
    assert multiplier > 5.0  # it has moved far
    scale = 1 + multiplier if normalise == "official" else 1.0
    assert trainer.reward_weights[:2].tolist() == pytest.approx([1 / scale, multiplier / scale])
    if algorithm == "rloo":
        assert trainer.beta == BETA and len(trainer.reward_weights) == 2
    else:
        assert trainer.beta == 0.0 and trainer.reward_weights[2:].tolist() == [-BETA]
