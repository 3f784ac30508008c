"""CTWA: correlations with the advantage and growing weights by hand, and what leaves them alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.engines.on_policy.weight_control import Observed
from align.methods import ctwa
from align.methods.ctwa import Growth, advantage_association
from align.preferences import Weights
from align.runs import open_run
from factories.tiny_bandit import (
    OBJECTIVES,
    PROMPT_ROWS,
    RL,
    fit,
    same_weights,
)

SHORT = {**RL, "steps": 3, "batch_size": 24, "num_generations": 4, "logging_steps": 1}


def train(config: Any, *, reference: str, out: Path, weights: Weights, **data: Any) -> tuple[str, dict[str, Any]]:
    """The trained model and its metrics."""
    family = fit(ctwa, config, reference=reference, weights=[weights], out=out, prompts=PROMPT_ROWS, **data)
    return family.points[weights.label], open_run(out / "points" / weights.label).metrics


def test_associations_by_hand() -> None:
    # prompt 1: advantages -1, 0, 1 (centred); r = 0, 0, 3: centred -1, -1, 2; cov 3 / 2, corr 3 / sqrt(2 * 6)
    # prompt 2: advantages 2, 0, 1: centred 1, -1, 0; r = 1, 5, 3: centred -2, 2, 0; cov -4 / 2, corr -1
    scores_BK = np.array([[0.0], [0.0], [3.0], [1.0], [5.0], [3.0]])
    facts = {"advantages_B": [-1.0, 0.0, 1.0, 2.0, 0.0, 1.0], "group": 3}
    assert advantage_association(scores_BK, **facts) == [pytest.approx((3 / math.sqrt(12) - 1) / 2)]
    assert advantage_association(scores_BK, measure="covariance", **facts) == [pytest.approx((1.5 - 2) / 2)]


def test_the_covariance_is_that_of_the_conflict_module() -> None:
    from factories.oracles import advantage_covariance

    rng = np.random.default_rng(0)
    scores_BK, advantages_B = rng.normal(size=(20, 3)), rng.normal(size=20)
    expected = advantage_covariance(scores_BK.reshape(4, 5, 3), advantages_PS=advantages_B.reshape(4, 5))
    ours = advantage_association(scores_BK, advantages_B=advantages_B, group=5, measure="covariance")
    assert ours == pytest.approx(expected.tolist())


def test_correlations_of_constants_and_missing_scores() -> None:
    nan = math.nan
    flat = [0.7] * 3
    up = [0.0, 1.0, 2.0]
    assert advantage_association(np.array([[x] for x in up]), advantages_B=flat, group=3) == [None]
    assert advantage_association(np.array([[x] for x in flat]), advantages_B=up, group=3) == [None]
    noise = [1e-8, -2e-8, 1e-8]  # what rounding leaves of equal rewards
    assert advantage_association(np.array([[x] for x in up]), advantages_B=noise, group=3) == [None]
    assert advantage_association(np.array([[x] for x in up]), advantages_B=flat, group=3, measure="covariance") == [
        None
    ]
    small = [1e-5 * x for x in up]  # small but no rounding, beside large scores of another objective
    both = np.array([[x, 10.0 * y] for x, y in zip(small, up, strict=True)])
    assert advantage_association(both, advantages_B=up, group=3) == pytest.approx([1.0, 1.0])
    # a prompt of two scores is used, one of one score is not
    scores_BK = np.array([[0.0, nan], [1.0, nan], [nan, 4.0]])
    assert advantage_association(scores_BK, advantages_B=[3.0, 1.0, 2.0], group=3) == [pytest.approx(-1.0), None]
    with pytest.raises(ValueError, match="do not fit"):
        advantage_association(scores_BK, advantages_B=[3.0, 1.0, 2.0], group=2)


def growth(**changes: Any) -> Growth:
    settings = {"preference": (0.25, 0.75), "targets": (0.5, 0.1), "rate": 0.2, "decay": 0.5, **changes}
    return Growth(**{"measure": "correlation", "renormalise": False, **settings})


# the first objective's correlation is -1, the second's 1
OPPOSED = Observed(np.array([[1.0, 0.0], [0.0, 1.0]]), group=2, advantages_B=np.array([-1.0, 1.0]))


def test_ctwa_weights_by_hand() -> None:
    rule = growth()
    memory = rule.step(rule.start(), OPPOSED)
    assert memory["association"] == pytest.approx([-1.0, 1.0])
    # log w_1 += .2 (.5 - -1) = .3; the second is above its target and stays
    assert rule.weights(memory) == pytest.approx([0.25 * math.exp(0.3), 0.75])
    turned = Observed(OPPOSED.scores_BK, group=2, advantages_B=np.array([1.0, -1.0]))
    memory = rule.step(memory, turned)  # averages 0 and 0: log w_1 += .2 * .5, log w_2 += .2 * .1
    assert rule.weights(memory) == pytest.approx([0.25 * math.exp(0.4), 0.75 * math.exp(0.02)])
    assert rule.report(memory)["sum_of_weights"] == pytest.approx(sum(rule.weights(memory)))


def test_renormalised_weights_stay_on_the_simplex_in_the_same_ratio() -> None:
    official, ours = growth(), growth(renormalise=True)
    grown, kept = official.start(), ours.start()
    for _ in range(5):
        grown, kept = official.step(grown, OPPOSED), ours.step(kept, OPPOSED)
        a, b = official.weights(grown), ours.weights(kept)
        assert sum(b) == pytest.approx(1.0, abs=1e-12) and a[0] / a[1] == pytest.approx(b[0] / b[1])
    assert sum(official.weights(grown)) > 1.5  # the official ones only grow
    assert ours.weights(kept)[0] > 0.5


def test_where_nothing_correlates_unequal_targets_drift_and_equal_ones_stand() -> None:
    """What the module says of the neighbourhood of an optimum, where the advantage is noise."""
    square = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    noise = Observed(square, group=4, advantages_B=np.array([1.0, -1.0, -1.0, 1.0]))  # uncorrelated with both
    equal, unequal = growth(targets=(0.1, 0.1), renormalise=True), growth(targets=(0.1, 0.3), renormalise=True)
    one, other = equal.start(), unequal.start()
    for _ in range(50):
        one, other = equal.step(one, noise), unequal.step(other, noise)
    assert equal.weights(one) == pytest.approx([0.25, 0.75])
    a, b = unequal.weights(other)
    assert b / a == pytest.approx(3 * math.exp(50 * 0.2 * (0.3 - 0.1)))


def test_a_constant_advantage_moves_nothing() -> None:
    """The PAMA of CTWA's code trains on a batch constant."""
    rule = growth()
    flat = Observed(OPPOSED.scores_BK, group=2, advantages_B=np.array([0.3, 0.3]))
    assert rule.weights(rule.step(rule.start(), flat)) == [0.25, 0.75]
    later = rule.step(rule.start(), OPPOSED)
    assert rule.step(later, flat) == later


def test_constant_rewards_leave_weights_and_policy_alone(reference: str, tmp_path: Path) -> None:
    constants = {"one": lambda prompts, completions, **_: [3.0] * len(prompts)}
    constants["two"] = lambda prompts, completions, **_: [-1.0] * len(prompts)
    config = ctwa.Config(**SHORT, weight_rate=5.0, targets=(0.9,))
    model, metrics = train(config, reference=reference, out=tmp_path, weights=Weights((0.3, 0.7)), objectives=constants)
    assert metrics["weights"] == {"one": 0.3, "two": 0.7} and metrics["association"] == [None, None]
    assert same_weights(model, reference)


def test_ctwa_raises_the_objective_that_the_advantage_trains_down(reference: str, tmp_path: Path) -> None:
    """Two opposed objectives: starting at .8 / .2, the second one's correlation is negative and its weight grows."""

    class Minus:
        def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
            return [None if s is None else -s for s in OBJECTIVES["one"](prompts, completions, **columns)]

    start = Weights((0.8, 0.2))
    objectives = {"one": OBJECTIVES["one"], "minus": Minus()}
    config = ctwa.Config(**{**SHORT, "num_generations": 12, "steps": 1}, weight_rate=0.2)
    _, metrics = train(config, reference=reference, out=tmp_path, weights=start, objectives=objectives)
    # before the first step there is no KL: the advantage is .8 r - .2 r above its baseline
    assert metrics["association"] == pytest.approx([1.0, -1.0], abs=1e-5)
    ratio = metrics["weights"]["minus"] / metrics["weights"]["one"]
    assert ratio == pytest.approx(0.25 * math.exp(0.2 * (0.1 + 1)), rel=1e-4)
    assert sum(metrics["weights"].values()) == pytest.approx(1.0)


def test_ctwa_says_that_it_optimises_no_fixed_j() -> None:
    claim = ctwa.describe(ctwa.Config(beta=0.5, renormalise=False), weights=Weights((0.8, 0.2)))
    assert "no fixed J: E[w.r] - 0.5 KL(pi||ref) starting at w = 0.8,0.2" in claim
    assert "beta counts ever less" in claim and "while their correlation with the advantage is below 0.1" in claim
    assert "renormalised" in ctwa.describe(ctwa.Config(), weights=Weights((0.8, 0.2)))
