"""Training methods on a world of one-token responses: each moves to the optimum that it claims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from align.data.comparisons import annotated_pairs, row_scores
from align.errors import UserError
from align.methods import dpo, modpo, morlhf
from align.policies.base import ModelPolicy
from align.preferences import Weights
from align.runs import Ledger
from factories.tiny_bandit import (
    BETA,
    OBJECTIVES,
    PAIRS,
    PROMPT_ROWS,
    PROMPTS,
    RESPONSES,
    RL,
    fit,
    kl,
    next_distribution,
    optimum,
    pair_rows,
    reward,
    same_weights,
    scalarised,
)


def regrets(model: str, reference: str, weights: Sequence[float]) -> tuple[float, float]:
    """Mean `beta KL(pi || pi*)` over prompts of a model, and of the reference."""
    ours, theirs = [], []
    for prompt in PROMPTS:
        ref = next_distribution(reference, prompt)
        best = optimum(ref, scalarised(prompt, weights), beta=BETA)
        ours.append(BETA * kl(next_distribution(model, prompt), best))
        theirs.append(BETA * kl(ref, best))
    return sum(ours) / len(ours), sum(theirs) / len(theirs)


def pair_regrets(
    model: str, reference: str, weights: Sequence[float], *, objectives: Mapping[str, Any] = OBJECTIVES
) -> tuple[float, float]:
    """The same among the four responses that pairs hold, with their end token: what pairs can identify."""
    ours, theirs = [], []
    for prompt in PROMPTS:
        tables = []
        for path in (model, reference):
            logp = ModelPolicy(path).sequence_logprobs([prompt] * 4, [f" {word}" for word in RESPONSES])
            total = math.log(sum(math.exp(x) for x in logp))
            tables.append([math.exp(x - total) for x in logp])
        scores_KB = [objective([prompt] * 4, list(RESPONSES)) for objective in objectives.values()]
        rewards = [sum(w * r for w, r in zip(weights, scores, strict=True)) for scores in zip(*scores_KB, strict=True)]
        best = optimum(tables[1], rewards, beta=BETA)
        ours.append(BETA * kl(tables[0], best))
        theirs.append(BETA * kl(tables[1], best))
    return sum(ours) / len(ours), sum(theirs) / len(theirs)


# ------------------------------------------------------------------------------------------- towards the optimum


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_morlhf_moves_to_the_optimum_of_j(algorithm: str, reference: str, tmp_path: Path) -> None:
    weights = Weights((0.3, 0.7))
    ledger = Ledger()
    config = morlhf.Config(algorithm=algorithm, **RL)
    family = fit(
        morlhf, config, reference=reference, weights=[weights], out=tmp_path, prompts=PROMPT_ROWS, ledger=ledger
    )
    regret, of_reference = regrets(family.points[weights.label], reference, weights)
    assert of_reference > 0.02  # there is something to gain
    assert regret < 0.02 * of_reference
    # Not merely "better": the optima of swapped weights, of the negated reward and of another beta are farther.
    swapped, _ = regrets(family.points[weights.label], reference, (0.7, 0.3))
    assert regret < swapped
    assert ledger.samples_drawn == 40 * 96
    assert ledger.scores_read == 2 * 40 * 96
    assert ledger.tokens > 40 * 96 and ledger.flops > 0
    assert (
        "sequence KL in the reward" in family.optimises[weights.label] and "0.3,0.7" in family.optimises[weights.label]
    )


def test_grpo_with_token_kl_says_that_it_optimises_something_else(reference: str, tmp_path: Path) -> None:
    weights = Weights((0.5, 0.5))
    config = morlhf.Config(**{**RL, "algorithm": "grpo", "kl": "token", "scale_rewards": "group", "steps": 2})
    family = fit(morlhf, config, reference=reference, weights=[weights], out=tmp_path, prompts=PROMPT_ROWS)
    claim = family.optimises[weights.label]
    assert "which is not this J" in claim and "spread" in claim


def test_gdpo_aggregation_says_that_weights_are_no_exchange_rates(reference: str, tmp_path: Path) -> None:
    weights = Weights((0.5, 0.5))
    settings = {**RL, "algorithm": "grpo", "kl": "token", "aggregation": "normalize_then_sum", "steps": 2}
    family = fit(
        morlhf, morlhf.Config(**settings), reference=reference, weights=[weights], out=tmp_path, prompts=PROMPT_ROWS
    )
    assert "no exchange rates" in family.optimises[weights.label]


def test_dpo_on_scalarised_labels_moves_to_the_optimum(reference: str, tmp_path: Path) -> None:
    weights, ledger, rows = Weights((0.3, 0.7)), Ledger(), pair_rows(2000)
    family = fit(
        dpo, dpo.Config(**PAIRS), reference=reference, weights=[weights], out=tmp_path, comparisons=rows, ledger=ledger
    )
    regret, of_reference = pair_regrets(family.points[weights.label], reference, weights)
    assert of_reference > 0.005
    assert regret < 0.15 * of_reference
    assert regret < pair_regrets(family.points[weights.label], reference, (0.7, 0.3))[0]
    assert ledger.scores_read == 2000 and ledger.tokens > 0
    assert ledger.samples_drawn == 0  # the stage that drew the pairs is charged for them, once


@pytest.mark.parametrize("margins", ["explicit", "implicit"])
def test_modpo_moves_to_the_optimum(margins: str, reference: str, tmp_path: Path) -> None:
    weights, rows = Weights((0.6, 0.4)), pair_rows(2000)
    config = modpo.Config(**PAIRS, margins=margins)
    family = fit(modpo, config, reference=reference, weights=[weights], out=tmp_path, comparisons=rows)
    regret, of_reference = pair_regrets(family.points[weights.label], reference, weights)
    assert of_reference > 0.005
    assert regret < 0.15 * of_reference
    assert margins in family.optimises[weights.label]


# ------------------------------------------------------------------------------------------------------- MODPO


def test_modpo_at_a_vertex_is_dpo_bit_for_bit(reference: str, tmp_path: Path) -> None:
    settings = {**PAIRS, "epochs": 1.0}
    vertex, rows = Weights((0.0, 1.0)), pair_rows(128)
    one = fit(dpo, dpo.Config(**settings), reference=reference, weights=[vertex], out=tmp_path / "d", comparisons=rows)
    two = fit(
        modpo, modpo.Config(**settings), reference=reference, weights=[vertex], out=tmp_path / "m", comparisons=rows
    )
    assert same_weights(one.points["0,1"], two.points["0,1"])
    assert not same_weights(one.points["0,1"], reference)


def never(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    raise AssertionError("an objective of weight 0 was asked")


@pytest.mark.parametrize("kind", ["dpo", "explicit", "implicit"])
def test_three_objectives_with_one_unused_are_two(kind: str, reference: str, tmp_path: Path) -> None:
    """Published code fixed the number of objectives at two (MOD's cache index, RiC's weights)."""
    rows = pair_rows(96)
    wide = [{**r, "scores_a": [*r["scores_a"], 5.0], "scores_b": [*r["scores_b"], -5.0]} for r in rows]
    settings = {**PAIRS, "epochs": 1.0}
    module, config = (dpo, dpo.Config(**settings)) if kind == "dpo" else (modpo, modpo.Config(**settings, margins=kind))
    two = fit(module, config, reference=reference, weights=[Weights((0.6, 0.4))], out=tmp_path / "2", comparisons=rows)
    three = fit(
        module, config, reference=reference, weights=[Weights((0.6, 0.4, 0.0))], out=tmp_path / "3",
        comparisons=wide, objectives={**OBJECTIVES, "three": never},
    )  # fmt: skip
    assert same_weights(two.points["0.6,0.4"], three.points["0.6,0.4,0"])
    trained = [folder.name for folder in (tmp_path / "3").glob("margins/points/*")]
    assert trained == (["0,1,0"] if kind == "implicit" else [])  # no margin model for an objective without weight


THIRD = {"A": 0.0, "B": 0.3, "C": 0.6, "D": 1.5}
TRIO = {**OBJECTIVES, "three": lambda prompts, completions, **_: [THIRD.get(c.strip(), 0.0) for c in completions]}


@pytest.mark.parametrize("kind", ["dpo", "explicit", "implicit"])
def test_three_objectives_move_to_their_optimum(kind: str, reference: str, tmp_path: Path) -> None:
    """And not to that of the same weights in another order, nor of the first two objectives alone."""
    rows = [
        {**r, **{f"scores_{side}": [*r[f"scores_{side}"], THIRD[r[side].strip()]] for side in "ab"}}
        for r in pair_rows(1000)
    ]
    weights, ledger = Weights((0.1, 0.5, 0.4)), Ledger()
    module, config = (dpo, dpo.Config(**PAIRS)) if kind == "dpo" else (modpo, modpo.Config(**PAIRS, margins=kind))
    family = fit(
        module, config, reference=reference, weights=[weights], out=tmp_path, comparisons=rows, objectives=TRIO,
        ledger=ledger,
    )  # fmt: skip
    model = family.points[weights.label]
    regret, of_reference = pair_regrets(model, reference, weights, objectives=TRIO)
    assert of_reference > 0.05 and regret < 0.15 * of_reference
    for other in ((0.4, 0.5, 0.1), (0.5, 0.1, 0.4), (0.2, 0.8, 0.0)):
        assert regret < 0.5 * pair_regrets(model, reference, other, objectives=TRIO)[0]
    # labels: one score a pair; explicit margins: both responses under two objectives; implicit: labels of two models
    assert ledger.scores_read == 1000 * {"dpo": 1, "explicit": 1 + 2 * 2, "implicit": 1 + 2}[kind]
    if kind != "dpo":
        assert "labelled for two" in family.optimises[weights.label]


def test_implicit_margins_ask_the_objectives_once(reference: str, tmp_path: Path) -> None:
    """Scores of 64 pairs, both responses, three objectives; then one label a pair for each of the three models."""
    settings = {**PAIRS, "epochs": 1.0, "labels": "objectives", "margins": "implicit"}
    bare = [{key: row[key] for key in ("id", "prompt", "a", "b", "u")} for row in pair_rows(64)]
    told = [
        {**r, **{f"scores_{side}": [*r[f"scores_{side}"], THIRD[r[side].strip()]] for side in "ab"}}
        for r in pair_rows(64)
    ]
    weights, ledger = Weights((0.2, 0.45, 0.35)), Ledger()
    data: dict[str, Any] = {"reference": reference, "weights": [weights], "objectives": TRIO}
    asked = fit(modpo, modpo.Config(**settings), out=tmp_path / "a", comparisons=bare, ledger=ledger, **data)
    assert ledger.scores_read == 64 * (2 * 3 + 3)
    config = modpo.Config(**{**settings, "labels": "scalarised"})
    known = fit(modpo, config, out=tmp_path / "k", comparisons=told, **data)
    assert same_weights(asked.points[weights.label], known.points[weights.label])


def test_margins_are_joined_by_id(reference: str) -> None:
    """The trainer's dataset in any order, and with rows missing, gets each row's own margin."""
    from datasets import Dataset

    rows = pair_rows(20)
    pairs = annotated_pairs(rows, scores=row_scores(rows), weights=Weights((1.0, 0.0)), tau=0.4, seed=0)
    assert {pair.swapped for pair in pairs} == {True, False}
    table = {r["id"]: (r["scores_a"][1], r["scores_b"][1]) for r in rows}
    kept = [pairs[i] for i in (13, 2, 7, 0)]
    dataset = Dataset.from_dict(
        {"id": [p.id for p in kept], "ref_chosen_logps": [-1.0] * 4, "ref_rejected_logps": [-2.0] * 4}
    )
    shifted = modpo.reference_shift(pairs, tables=[table], rest_weights=[0.25], beta=0.5)(dataset)
    for pair, chosen, rejected in zip(kept, shifted["ref_chosen_logps"], shifted["ref_rejected_logps"], strict=True):
        won, lost = reward("two", pair.prompt, pair.chosen.strip()), reward("two", pair.prompt, pair.rejected.strip())
        assert chosen == pytest.approx(-1.0 + 0.25 * won / 0.5, abs=1e-6)
        assert rejected == pytest.approx(-2.0 + 0.25 * lost / 0.5, abs=1e-6)


def test_modpo_picks_the_main_objective() -> None:
    names = ["one", "two", "three"]

    def main(value: str, *weights: float) -> int:
        return modpo.main_objective(modpo.Config(main=value), weights=Weights(weights), names=names)

    assert main("auto", 0.2, 0.5, 0.3) == 1
    assert main("auto", 0.4, 0.4, 0.2) == 0  # the first of equal weights
    assert main("three", 0.4, 0.4, 0.2) == 2
    assert main("1", 0.4, 0.4, 0.2) == 1
    with pytest.raises(UserError, match="main objective"):
        main("0", 0.0, 0.5, 0.5)
    with pytest.raises(UserError, match="main must be"):
        main("four", 1.0, 0.0, 0.0)
