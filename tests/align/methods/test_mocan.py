"""MoCAN on the bandit: multipliers and policies of the constrained optimum, from samples that are drawn once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from align.engines.reference_samples import Sample, scored_groups
from align.errors import UserError
from align.methods import mocan
from align.methods.mocan import Config, pairs_of
from align.policies.load import load_family
from align.preferences import Thresholds, Weights
from align.runs import Ledger, open_run
from align.testbed.optimum import RewardClasses
from factories.oracles import constrained_optimum
from factories.tiny_bandit import BETA, OBJECTIVES, PROMPT_ROWS, PROMPTS, WORDS, fit, kl, next_distribution, reward

TRAINING: dict[str, Any] = {
    "beta": BETA, "n": 400, "max_completion_length": 1, "batch_size": 100, "epochs": 12.0, "learning_rate": 3e-3,
}  # fmt: skip
SHORT = {**TRAINING, "n": 8, "epochs": 1.0, "batch_size": 8}


def outcome(model: str, reference: str) -> tuple[float, float, float]:
    """E[one], E[two] and KL to the reference, averaged over prompts."""
    one = two = nats = 0.0
    for prompt in PROMPTS:
        ours, theirs = next_distribution(model, prompt), next_distribution(reference, prompt)
        one += sum(p * reward("one", prompt, word) for p, word in zip(ours, WORDS, strict=True)) / 2
        two += sum(p * reward("two", prompt, word) for p, word in zip(ours, WORDS, strict=True)) / 2
        nats += kl(ours, theirs) / 2
    return one, two, nats


def classes(reference: str) -> list[RewardClasses]:
    import numpy as np

    rewards = [np.array([[reward(name, p, word) for name in OBJECTIVES] for word in WORDS]) for p in PROMPTS]
    masses = [np.log(next_distribution(reference, p)) for p in PROMPTS]
    return [RewardClasses(table, mass) for table, mass in zip(rewards, masses, strict=True)]


def test_one_run_a_threshold_reaches_the_constrained_optimum(reference: str, tmp_path: Path) -> None:
    """A bound that binds and one that is slack; samples and scores are paid for once."""
    ledger = Ledger()
    asked = [Thresholds((None, d)) for d in (0.12, 0.4)]
    family = fit(
        mocan, Config(**TRAINING), reference=reference, weights=asked, out=tmp_path,
        prompts=PROMPT_ROWS, ledger=ledger,
    )  # fmt: skip
    assert ledger.samples_drawn == 2 * 400 and ledger.scores_read >= 2 * 2 * 400
    metrics = {p.label: open_run(tmp_path / "points" / p.label).metrics for p in asked}
    for thresholds, threshold in zip(asked, (0.12, 0.4), strict=True):
        best = constrained_optimum(classes(reference), maximise=0, constrain=1, threshold=threshold, beta=BETA)
        found = metrics[thresholds.label]
        assert found["multipliers"]["two"] == pytest.approx(best.multiplier, abs=0.2), "sampling error of 800 samples"
        one, two, nats = outcome(family.points[thresholds.label], reference)
        assert one - BETA * nats == pytest.approx(best.point.J, abs=0.03)
        assert two == pytest.approx(best.point.values[1], abs=0.05)
    assert metrics["thresholds=none,0.12"]["multipliers"] == {"two": 0.0}
    assert metrics["thresholds=none,0.4"]["multipliers"]["two"] > 1
    assert metrics["thresholds=none,0.4"]["short"]["two"] < 1e-6
    assert metrics["thresholds=none,0.4"]["effective_samples"]["fewest"] > 5
    claim = family.optimises["thresholds=none,0.4"]
    assert "E[one] - 0.5 KL(pi||ref) subject to E[two] >= 0.4" in claim and "400 reference samples" in claim
    family.save(tmp_path)
    assert load_family(tmp_path).preferences == asked


def test_missing_scores_are_left_out_and_unasked_objectives_are_not_asked(reference: str, tmp_path: Path) -> None:
    def never(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        raise AssertionError("an objective without a part was asked")

    def every_second(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float | None]:
        return [None if i % 2 else float(i % 4) for i in range(len(completions))]

    fit(
        mocan, Config(**SHORT, maximise="one"), reference=reference, weights=[Thresholds((None, 0.5, None))],
        out=tmp_path, prompts=PROMPT_ROWS, objectives={"one": OBJECTIVES["one"], "two": every_second, "three": never},
    )  # fmt: skip
    metrics = open_run(tmp_path / "points" / "thresholds=none,0.5,none").metrics
    assert metrics["samples_without_score"] == 8 and metrics["pairs"] == 4


def sample(row: int, number: int, **scores: float | None) -> Sample:
    return Sample(row, f"prompt {row}", [number, 1], f"text {number}", scores)


def test_pairs_hold_each_sample_once_with_its_drawn_ids_and_weighted_scores() -> None:
    groups = [[sample(0, 1, one=1.0, two=0.5), sample(0, 2, one=0.0, two=2.0), sample(0, 3, one=9.0, two=9.0)]]
    (pair,), values = pairs_of(groups, weights={"one": 1.0, "two": 3.0})
    assert (pair.chosen, pair.chosen_ids, pair.rejected_ids) == ("text 1", (1, 1), (2, 1))
    assert values == {"0-0": (2.5, 6.0)}


def test_a_bound_out_of_reach_is_reported_with_what_it_is_short_of() -> None:
    groups, asked = [[sample(0, 1, one=1.0, two=0.0), sample(0, 2, one=0.0, two=1.0)]], {"one": None, "two": 1.5}
    dual = mocan.solve(groups, asked=asked, config=Config(beta=0.1, max_multiplier=3.0))
    found = mocan.report(dual, asked=asked, maximum=3.0)
    assert found["multipliers"] == {"two": 3.0} and found["at_maximum"] == ["two"]
    assert found["short"] == {"two": pytest.approx(0.5, abs=1e-6)}  # all mass on the second: 1 of 1.5
    assert mocan.weights_of(asked, dual) == {"one": 1.0, "two": 3.0}


def test_a_prompt_of_one_scored_sample_is_left_out_and_none_at_all_is_refused() -> None:
    rows = [sample(0, 1, one=1.0), sample(0, 2, one=None), sample(1, 3, one=1.0), sample(1, 4, one=2.0)]
    groups, unscored = scored_groups(rows, names=["one"])
    assert [len(group) for group in groups] == [2] and unscored == 1
    with pytest.raises(UserError, match="no prompt has two samples that one all score; raise n"):
        scored_groups(rows[:2], names=["one"])


@pytest.mark.parametrize(
    ("changes", "weights", "message"),
    [
        ({"n": 1}, Thresholds((None, 0.4)), "n must be at least 2"),
        ({"max_multiplier": 0.0}, Thresholds((None, 0.4)), "max_multiplier must be above 0"),
        ({}, Thresholds((0.2, 0.4)), "leave 0 objectives without a threshold"),
        ({}, Weights((0.5, 0.5)), "asked by thresholds"),
    ],
)
def test_what_it_cannot_mean_is_refused(
    changes: dict[str, Any], weights: Any, message: str, reference: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        fit(
            mocan, Config(**{**SHORT, **changes}), reference=reference, weights=[weights], out=tmp_path,
            prompts=PROMPT_ROWS,
        )  # fmt: skip
