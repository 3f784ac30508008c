"""What methods make of their inputs: the annotator's labels, metered objectives, refusals that name the fix."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from align.data.comparisons import annotated_pairs, row_scores
from align.engines.on_policy import trainer as onpolicy
from align.engines.problem import Problem
from align.errors import UserError
from align.methods import METHODS, dpo, morlhf
from align.objectives.metered import Metered
from align.preferences import Weights
from align.runs import Ledger, Workspace
from factories.tiny_bandit import OBJECTIVES, PAIRS, PROMPT_ROWS, RL, fit, make_reference, pair_rows

# ------------------------------------------------------------------------------------------------ labelled pairs


def test_the_annotator_follows_the_weighted_rewards() -> None:
    # w.(ra - rb) = .25 * (1 - 0) + .75 * (0 - 1) = -0.5; / 0.25 = -2; sigmoid(-2) = 0.119203
    base = {"prompt": "x :", "a": " A", "b": " C", "scores_a": [1.0, 0.0], "scores_b": [0.0, 1.0]}
    rows = [{**base, "id": "under", "u": 0.1192}, {**base, "id": "over", "u": 0.1193}]
    under, over = annotated_pairs(rows, scores=row_scores(rows), weights=Weights((0.25, 0.75)), tau=0.25, seed=0)
    assert (under.chosen, under.rejected, under.swapped) == (" A", " C", False)
    assert (over.chosen, over.rejected, over.swapped) == (" C", " A", True)


def test_each_objective_may_have_its_own_draws() -> None:
    row = {"id": "r", "prompt": "x :", "a": " A", "b": " C", "scores_a": [0.0, 0.0], "scores_b": [0.0, 0.0]}
    rows = [{**row, "u": 0.9, "u_k": [0.1, 0.9]}]
    for weights, swapped in (((1.0, 0.0), False), ((0.0, 1.0), True), ((0.5, 0.5), True)):
        (pair,) = annotated_pairs(rows, scores=row_scores(rows), weights=Weights(weights), tau=1.0, seed=0)
        assert pair.swapped is swapped


def test_rows_without_a_draw_get_a_fixed_one_of_the_seed() -> None:
    rows = [{**row, "id": row["id"]} for row in pair_rows(400)]
    for row in rows:
        del row["u"]
        row["scores_a"] = row["scores_b"] = [0.0, 0.0]

    def swaps(seed: int) -> list[bool]:
        weights = Weights((0.5, 0.5))
        return [p.swapped for p in annotated_pairs(rows, scores=row_scores(rows), weights=weights, tau=1.0, seed=seed)]

    assert swaps(1) == swaps(1) != swaps(2)
    assert 140 < sum(swaps(1)) < 260  # six standard deviations around one half


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "ppo"}, "algorithm must be one of"),
        ({"algorithm": "rloo", "kl": "token"}, "rloo has sequence KL"),
        ({"algorithm": "rloo", "scale_rewards": "group"}, "rloo has sequence KL"),
        ({"algorithm": "grpo", "aggregation": "normalize_then_sum"}, "z-score a sequence KL"),
        ({"num_generations": 7}, "do not divide"),
        ({"num_generations": 1}, "do not divide"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_morlhf_refuses_what_it_cannot_mean(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = morlhf.Config(**{**RL, **changes})
    with pytest.raises(UserError, match=message):
        fit(morlhf, config, reference="none", weights=[Weights((0.5, 0.5))], out=tmp_path, prompts=PROMPT_ROWS)


def test_learned_positions_and_prompts_of_several_lengths_are_refused(tmp_path: Path) -> None:
    reference = make_reference(tmp_path / "gpt2", architecture="gpt2")
    config = morlhf.Config(**{**RL, "steps": 1})
    with pytest.raises(UserError, match="learned positions"):
        fit(morlhf, config, reference=reference, weights=[Weights((1.0, 0.0))], out=tmp_path / "a", prompts=PROMPT_ROWS)
    fit(morlhf, config, reference=reference, weights=[Weights((1.0, 0.0))], out=tmp_path / "b", prompts=PROMPT_ROWS[:1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "needs comparisons"),
        ([{"prompt": "x :"}], "no id"),
        ([{"id": "1", "prompt": "x :", "a": "A", "b": "B"}] * 2, "id of an earlier row"),
        ([{"id": "1", "prompt": "x :", "a": "A", "b": "B"}], "no scores_a"),
        ([{"id": "1", "prompt": "x :", "scores_a": [1, 0], "scores_b": [0, 0]}], "neither a and b"),
        ([{"id": "1", "prompt": "x :", "a": "A", "b": "B", "scores_a": [1], "scores_b": [0]}], "1 scores for 2"),
    ],
)
def test_dpo_refuses_rows_that_it_cannot_label(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        fit(dpo, dpo.Config(**PAIRS), reference="none", weights=[Weights((0.5, 0.5))], out=tmp_path, comparisons=rows)


def test_prompts_that_fill_the_length_are_refused(reference: str, tmp_path: Path) -> None:
    config = dpo.Config(**PAIRS, max_length=2)
    with pytest.raises(UserError, match="max_length = 2"):
        fit(dpo, config, reference=reference, weights=[Weights((0.5, 0.5))], out=tmp_path, comparisons=pair_rows(8))


def test_weights_must_match_the_objectives(tmp_path: Path) -> None:
    too_many = [Weights((0.5, 0.25, 0.25))]
    for module in METHODS.values():
        if Weights not in module.ASKED_BY:  # by thresholds: see test_lagrangian.py
            continue
        for preferences, message in ((too_many, "3 numbers, but there are 2 objectives"), ([], "no preference")):
            problem = Problem(reference="none", objectives=OBJECTIVES, preferences=preferences)
            with pytest.raises(UserError, match=message):
                module.fit(module.Config(), problem, Workspace(tmp_path, Ledger()))


def test_metered_objectives_count_and_check() -> None:
    ledger = Ledger()
    metered = Metered("mine", lambda prompts, completions, **_: [1, None, 2.5], ledger)
    assert metered(["p"] * 3, ["c"] * 3, other="column") == [1.0, None, 2.5]
    assert metered.__name__ == "mine" and ledger.scores_read == 2  # None is no score
    with pytest.raises(ValueError, match="3 scores for 2"):
        metered(["p"] * 2, ["c"] * 2)
    with pytest.raises(ValueError, match="not finite"):
        Metered("mine", lambda prompts, completions, **_: [math.nan], ledger)(["p"], ["c"])


def test_every_point_s_prompts_are_whole_passes() -> None:
    config = morlhf.Config(steps=5, batch_size=8, num_generations=4, gradient_accumulation=2)
    rows = [{"id": str(i), "prompt": f"p{i}"} for i in range(3)]
    planned = onpolicy.schedule(rows, config=config, ledger=Ledger())["prompt"]
    assert len(planned) == 5 * 4
    for start in range(0, 18, 3):
        assert set(planned[start : start + 3]) == {"p0", "p1", "p2"}
    with pytest.raises(UserError, match="other columns"):
        onpolicy.schedule([*rows, {"prompt": "p"}], config=config, ledger=Ledger())
