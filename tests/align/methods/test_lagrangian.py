"""Constrained training: the constrained optimum of a bandit, several constraints, and what is refused.

The oracle is an own bisection on the multiplier over tilted reference distributions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.errors import UserError
from align.methods import lagrangian, morlhf
from align.methods.lagrangian import Config
from align.policies.load import load_family
from align.preferences import Thresholds, Weights
from align.runs import open_run
from align.testbed.optimum import RewardClasses
from factories.oracles import constrained_optimum
from factories.tiny_bandit import (
    BETA,
    OBJECTIVES,
    PROMPT_ROWS,
    PROMPTS,
    RL,
    WORDS,
    fit,
    kl,
    next_distribution,
    optimum,
    reward,
    same_weights,
    scalarised,
)

TRAINING = {**RL, "batch_size": 192, "scheduler": "linear", "logging_steps": 5}


def exact(model: str, reference: str) -> tuple[float, float, float]:
    """E[one], E[two] and KL to the reference of a model, averaged over prompts."""
    pairs = [(next_distribution(model, p), next_distribution(reference, p)) for p in PROMPTS]
    return outcome([ours for ours, _ in pairs], [theirs for _, theirs in pairs])


def outcome(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    one, two = (
        sum(
            q * reward(name, p, word)
            for p, d in zip(PROMPTS, ours, strict=True)
            for q, word in zip(d, WORDS, strict=True)
        )
        for name in OBJECTIVES
    )
    return one / 2, two / 2, sum(kl(a, b) for a, b in zip(ours, theirs, strict=True)) / 2


def tilted(reference: str, weights: tuple[float, float]) -> tuple[float, float, float]:
    """The same of the policy that is optimal for fixed weights of the rewards, beta being BETA."""
    theirs = [next_distribution(reference, p) for p in PROMPTS]
    ours = [optimum(ref, scalarised(p, weights), beta=BETA) for p, ref in zip(PROMPTS, theirs, strict=True)]
    return outcome(ours, theirs)


def bisected(threshold: float, value: Any) -> float:
    """The multiplier at which the rising `value(multiplier)` is the threshold."""
    low, high = 0.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if value(middle) < threshold else (low, middle)
    return low


def reward_classes(reference: str) -> list[RewardClasses]:
    """The bandit's prompts as the testbed's exact optimum takes them: one class for each word."""
    rewards = [np.array([[reward(name, p, word) for name in OBJECTIVES] for word in WORDS]) for p in PROMPTS]
    masses = [np.log(next_distribution(reference, p)) for p in PROMPTS]
    return [RewardClasses(table, mass) for table, mass in zip(rewards, masses, strict=True)]


def train(reference: str, out: Path, thresholds: Thresholds, **changes: Any) -> tuple[str, dict[str, Any], Any]:
    """The trained model, its metrics and the family."""
    config = Config(**{**TRAINING, **changes})
    family = fit(lagrangian, config, reference=reference, weights=[thresholds], out=out, prompts=PROMPT_ROWS)
    metrics = open_run(out / "points" / thresholds.label).metrics
    return family.points[thresholds.label], metrics, family


def settled(metrics: dict[str, Any], *, entry: int = 1) -> float:
    """The mean weight over the second half of the run."""
    late = metrics["trace"][len(metrics["trace"]) // 2 :]
    return sum(point["weights"][entry] for point in late) / len(late)


# ------------------------------------------------------------------------------------------------ inside the trainer


def test_training_finds_the_constrained_optimum(reference: str, tmp_path: Path) -> None:
    """From a multiplier far too large; methods.md 2.6: complementary slackness, the multiplier of a root find."""
    threshold = 0.4
    best = bisected(threshold, lambda m: tilted(reference, (1.0, m))[1])
    assert 1.0 < best < 1.5
    by_root = constrained_optimum(reward_classes(reference), maximise=0, constrain=1, threshold=threshold, beta=BETA)
    assert by_root.multiplier == pytest.approx(best, abs=1e-6)  # the row that a report compares this method with
    model, metrics, family = train(
        reference, tmp_path, Thresholds((None, threshold)), steps=110, dual_rate=0.3, initial_multiplier=3.0
    )
    assert settled(metrics) == pytest.approx(best, abs=0.12)
    one, two, nats = exact(model, reference)
    at_best = tilted(reference, (1.0, best))
    assert two == pytest.approx(threshold, abs=0.025)
    assert abs(metrics["multipliers"]["two"] * (two - threshold)) < 0.04
    value, best_value = one - BETA * nats, at_best[0] - BETA * at_best[2]
    free = tilted(reference, (1.0, 0.0))
    assert free[1] < threshold - 0.2 and free[0] - BETA * free[2] > best_value + 0.1  # the bound costs something
    assert value == pytest.approx(best_value, abs=0.02)
    assert metrics["constraint_means"]["two"] == pytest.approx(two, abs=0.04)
    claim = family.optimises["thresholds=none,0.4"]
    assert "E[one] - 0.5 KL(pi||ref) subject to E[two] >= 0.4" in claim and "last iterate" in claim


@pytest.mark.parametrize(("dual", "rate"), [("exp", 2.0), ("linear", 0.5)])
def test_a_slack_constraint_leaves_the_unconstrained_optimum(
    dual: str, rate: float, reference: str, tmp_path: Path
) -> None:
    model, metrics, _ = train(
        reference, tmp_path, Thresholds((None, 0.12)), steps=50, batch_size=96, dual=dual, dual_rate=rate
    )
    assert metrics["multipliers"]["two"] < 0.01 and metrics["violations"]["two"] == 0.0
    ours, free = exact(model, reference), tilted(reference, (1.0, 0.0))
    assert free[1] > 0.12  # slack indeed
    assert ours[0] - BETA * ours[2] == pytest.approx(free[0] - BETA * free[2], abs=0.005)


def test_official_normalisation_spends_less_kl_than_the_constrained_optimum(reference: str, tmp_path: Path) -> None:
    """Rewards over 1 + lambda beside a fixed beta: the fixed point is the optimum at beta (1 + lambda)."""
    threshold = 0.3
    proper = bisected(threshold, lambda m: tilted(reference, (1.0, m))[1])
    official = bisected(threshold, lambda m: tilted(reference, (1 / (1 + m), m / (1 + m)))[1])
    fixed = tilted(reference, (1 / (1 + official), official / (1 + official)))
    assert fixed[2] < 0.6 * tilted(reference, (1.0, proper))[2]
    model, metrics, family = train(
        reference, tmp_path, Thresholds((None, threshold)), steps=60, batch_size=96, dual_rate=0.5, normalise="official"
    )
    one, two, nats = exact(model, reference)
    assert two == pytest.approx(threshold, abs=0.03)
    assert nats == pytest.approx(fixed[2], abs=0.04) and one == pytest.approx(fixed[0], abs=0.03)
    assert "0.5 (1 + sum lambda) KL" in family.optimises["thresholds=none,0.3"]


# -------------------------------------------------------------------------------------------------- three objectives


class Third:
    """An objective that pays for word B alone."""

    __name__ = "three"

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        return [float(WORDS[ids[0]] == "B") for ids in columns["completion_ids"]]


def test_two_constraints_are_met_together(reference: str, tmp_path: Path) -> None:
    """Max E[one] with E[two] and P(B) bounded, against scipy on the dual function over the enumerated policies."""
    from scipy.optimize import minimize

    bounds = (0.35, 0.3)
    theirs = np.array([next_distribution(reference, p) for p in PROMPTS])
    table_PVK = np.array(
        [[[reward("one", p, w), reward("two", p, w), float(w == "B")] for w in WORDS] for p in PROMPTS]
    )

    def policy(multipliers: np.ndarray) -> np.ndarray:
        tilt = np.log(theirs) + table_PVK @ np.array([1.0, *multipliers]) / BETA
        return np.exp(tilt - np.logaddexp.reduce(tilt, axis=1, keepdims=True))

    def dual(multipliers: np.ndarray) -> float:
        tilt = np.log(theirs) + table_PVK @ np.array([1.0, *multipliers]) / BETA
        return BETA * float(np.logaddexp.reduce(tilt, axis=1).mean()) - float(np.dot(multipliers, bounds))

    best = minimize(dual, np.ones(2), bounds=[(0, 20)] * 2).x
    values_K = np.einsum("pv,pvk->k", policy(best), table_PVK) / 2
    assert best.min() > 0.2 and values_K[1:] == pytest.approx(bounds, abs=1e-3)  # both bind
    config = Config(**{**TRAINING, "steps": 90, "dual_rate": 0.4})
    thresholds = Thresholds((None, *bounds))
    family = fit(
        lagrangian, config, reference=reference, weights=[thresholds], out=tmp_path, prompts=PROMPT_ROWS,
        objectives={**OBJECTIVES, "three": Third()},
    )  # fmt: skip
    metrics = open_run(tmp_path / "points" / thresholds.label).metrics
    ours = np.array([next_distribution(family.points[thresholds.label], p) for p in PROMPTS])
    reached_K = np.einsum("pv,pvk->k", ours, table_PVK) / 2
    assert reached_K == pytest.approx(values_K, abs=0.04)
    assert [settled(metrics, entry=k) for k in (1, 2)] == pytest.approx(best, abs=0.25)
    family.save(tmp_path)
    assert load_family(tmp_path).preferences == [thresholds]  # found again by its label


def test_an_objective_without_a_part_is_not_asked(reference: str, tmp_path: Path) -> None:
    """Three objectives of which one is neither maximised nor bounded: the run of two, bit for bit."""

    def never(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        raise AssertionError("an objective without a part was asked")

    settings = {**RL, "steps": 4, "batch_size": 24}
    two = fit(
        lagrangian, Config(**settings), reference=reference, weights=[Thresholds((None, 0.5))], out=tmp_path / "2",
        prompts=PROMPT_ROWS,
    )  # fmt: skip
    three = fit(
        lagrangian, Config(**settings, maximise="one"), reference=reference, weights=[Thresholds((None, 0.5, None))],
        out=tmp_path / "3", prompts=PROMPT_ROWS, objectives={**OBJECTIVES, "three": never},
    )  # fmt: skip
    assert same_weights(two.points["thresholds=none,0.5"], three.points["thresholds=none,0.5,none"])


def test_multipliers_held_still_are_a_fixed_weighted_sum(reference: str, tmp_path: Path) -> None:
    """lambda = 1 that cannot move is MORLHF on r_1 + r_2 at the same beta, here as .5 (2 r_1) + .5 (2 r_2)."""

    class Doubled:
        def __init__(self, name: str) -> None:
            self.__name__ = name

        def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
            return [None if s is None else 2 * s for s in OBJECTIVES[self.__name__](prompts, completions, **columns)]

    settings = {**RL, "steps": 4, "batch_size": 24}
    held = fit(
        lagrangian, Config(**settings, max_multiplier=1.0), reference=reference, weights=[Thresholds((None, 2.0))],
        out=tmp_path / "held", prompts=PROMPT_ROWS,
    )  # fmt: skip
    summed = fit(
        morlhf, morlhf.Config(**settings), reference=reference, weights=[Weights((0.5, 0.5))], out=tmp_path / "summed",
        prompts=PROMPT_ROWS, objectives={name: Doubled(name) for name in OBJECTIVES},
    )  # fmt: skip
    assert same_weights(held.points["thresholds=none,2"], summed.points["0.5,0.5"])


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("thresholds", "maximise", "message"),
    [
        ((0.1, 0.2), "auto", "leave 0 objectives without a threshold"),
        ((None, None, 0.2), "auto", "leave 2 objectives without a threshold"),
        ((None, 0.2), "two", "maximise must be auto or an objective without a threshold"),
        ((None, 0.2), "four", "maximise must be auto or an objective without a threshold"),
    ],
)
def test_what_is_maximised_must_be_clear(thresholds: Any, maximise: str, message: str) -> None:
    names = ("one", "two", "three")[: len(thresholds)]
    with pytest.raises(UserError, match=message):
        Thresholds(thresholds).asked(names, maximise=maximise)


def test_which_objectives_take_part() -> None:
    names = ("one", "two", "three")
    assert Thresholds((0.3, None, 0.0)).asked(names) == {
        "one": 0.3, "two": None, "three": 0.0,
    }  # fmt: skip
    chosen = Thresholds((None, 0.2, None)).asked(names, maximise="three")
    assert chosen == {"two": 0.2, "three": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dual": "log"}, "dual must be one of"),
        ({"normalise": "yes"}, "normalise must be one of"),
        ({"algorithm": "ppo"}, "algorithm must be one of"),
        ({"dual_rate": 0.0}, "dual_rate must be above 0"),
        ({"window": 0}, "window must be above 0"),
        ({"initial_multiplier": 0.0}, "never moves"),
        ({"initial_multiplier": 30.0}, "above max_multiplier"),
        ({"num_generations": 7}, "do not divide"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    config, thresholds = Config(**{**RL, **changes}), [Thresholds((None, 0.5))]
    with pytest.raises(UserError, match=message):
        fit(lagrangian, config, reference="none", weights=thresholds, out=tmp_path, prompts=PROMPT_ROWS)


def test_the_method_is_asked_by_thresholds(tmp_path: Path) -> None:
    for preference, message in (
        (Weights((0.5, 0.5)), "asked by thresholds, not by 0.5,0.5"),
        (Thresholds((None, 0.5, 0.5)), "3 numbers, but there are 2 objectives"),
    ):
        with pytest.raises(UserError, match=message):
            fit(lagrangian, Config(), reference="none", weights=[preference], out=tmp_path, prompts=PROMPT_ROWS)
    with pytest.raises(UserError, match="needs prompts"):
        fit(lagrangian, Config(), reference="none", weights=[Thresholds((None, 0.5))], out=tmp_path)


def test_thresholds_of_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="at least one"):
        Thresholds((None, None))
