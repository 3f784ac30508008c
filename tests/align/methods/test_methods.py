"""Training methods on a world of one-token responses: each moves to the optimum that it claims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from align.data.comparisons import annotated_pairs, row_scores
from align.engines import pairs as pair_training
from align.errors import UserError
from align.methods import dpo, modpo, morlhf
from align.policies.base import ModelPolicy
from align.policies.load import load_family
from align.preferences import Weights
from align.runs import Ledger, open_run
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
    workspace,
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


# ------------------------------------------------------------------------------------------ given and asked labels


def test_given_labels_follow_one_objective(reference: str, tmp_path: Path) -> None:
    rows = [
        {
            "id": f"{name}{i}",
            "prompt": "x :",
            "chosen": " A" if name == "one" else " C",
            "rejected": " D",
            "objective": name,
        }
        for name in ("one", "two")
        for i in range(40)
    ]
    config = dpo.Config(beta=BETA, learning_rate=1e-2, batch_size=40)
    vertices = [Weights((1.0, 0.0)), Weights((0.0, 1.0))]
    family = fit(dpo, config, reference=reference, weights=vertices, out=tmp_path, comparisons=rows)
    before = next_distribution(reference, "x :")
    one, two = (next_distribution(family.points[w.label], "x :") for w in vertices)
    a, c = 5, 7
    assert one[a] > before[a] and one[a] > two[a]
    assert two[c] > before[c] and two[c] > one[c]
    with pytest.raises(UserError, match="given labels follow one"):
        fit(dpo, config, reference=reference, weights=[Weights((0.5, 0.5))], out=tmp_path / "mixed", comparisons=rows)


def test_labels_may_be_asked_from_the_objectives(reference: str, tmp_path: Path) -> None:
    rows = pair_rows(64)
    bare = [{key: row[key] for key in ("id", "prompt", "a", "b", "u")} for row in rows]
    settings = {**PAIRS, "epochs": 1.0}
    weights, ledger = Weights((0.5, 0.5)), Ledger()
    told = fit(
        dpo, dpo.Config(**settings), reference=reference, weights=[weights], out=tmp_path / "a", comparisons=rows
    )
    asked = fit(
        dpo, dpo.Config(**{**settings, "labels": "objectives"}), reference=reference, weights=[weights],
        out=tmp_path / "b", comparisons=bare, ledger=ledger,
    )  # fmt: skip
    assert same_weights(told.points[weights.label], asked.points[weights.label])
    assert ledger.scores_read == 2 * 2 * 64 + 64  # both objectives on both responses, and the annotator's labels


def test_the_mle_term_raises_the_likelihood_of_chosen_responses(reference: str, tmp_path: Path) -> None:
    rows, weights = pair_rows(256), Weights((0.5, 0.5))
    likelihoods = []
    for mle_weight in (0.0, 1.0):
        config = dpo.Config(**{**PAIRS, "epochs": 1.0}, mle_weight=mle_weight)
        family = fit(
            dpo, config, reference=reference, weights=[weights], out=tmp_path / str(mle_weight), comparisons=rows
        )
        pairs = annotated_pairs(rows, scores=row_scores(rows), weights=weights, tau=PAIRS["tau"], seed=0)
        policy = ModelPolicy(family.points[weights.label])
        likelihoods.append(sum(policy.sequence_logprobs([p.prompt for p in pairs], [p.chosen for p in pairs])))
    assert likelihoods[1] > likelihoods[0]
    assert "NLL" in family.optimises[weights.label]


# ------------------------------------------------------------------------------------- LoRA, families, interruption


@pytest.mark.parametrize("method", ["dpo", "morlhf"])
def test_lora_trains_an_adapter_that_a_policy_can_load(method: str, reference: str, tmp_path: Path) -> None:
    weights = Weights((0.5, 0.5))
    if method == "dpo":
        config: Any = dpo.Config(**{**PAIRS, "epochs": 1.0, "learning_rate": 1e-2}, lora_r=4)
        family = fit(dpo, config, reference=reference, weights=[weights], out=tmp_path, comparisons=pair_rows(128))
    else:
        config = morlhf.Config(**{**RL, "steps": 10}, lora_r=4)
        family = fit(morlhf, config, reference=reference, weights=[weights], out=tmp_path, prompts=PROMPT_ROWS)
    model = family.points[weights.label]
    assert (Path(model) / "adapter_config.json").is_file() and not (Path(model) / "model.safetensors").exists()
    (ours,) = ModelPolicy(model).sequence_logprobs(["x :"], [" A"])
    (theirs,) = ModelPolicy(reference).sequence_logprobs(["x :"], [" A"])
    assert ours != theirs


def test_families_are_saved_and_found_again(reference: str, tmp_path: Path) -> None:
    weights = [Weights((1.0, 0.0)), Weights((0.5, 0.5))]
    config = morlhf.Config(**{**RL, "steps": 1})
    family = fit(morlhf, config, reference=reference, weights=weights, out=tmp_path, prompts=PROMPT_ROWS)
    family.save(tmp_path)
    again = load_family(tmp_path)
    assert set(again.preferences) == set(weights)
    assert again.policy(weights[1]).name == "morlhf@0.5,0.5"
    with pytest.raises(UserError, match="no policy at 0,1"):
        again.policy(Weights((0.0, 1.0)))


def test_saved_models_keep_the_list_of_ending_tokens(reference: str, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    weights = Weights((0.5, 0.5))
    family = fit(
        morlhf, morlhf.Config(**{**RL, "steps": 1}), reference=reference, weights=[weights], out=tmp_path / "r",
        prompts=PROMPT_ROWS,
    )  # fmt: skip
    pairs = fit(
        dpo, dpo.Config(**PAIRS), reference=reference, weights=[weights], out=tmp_path / "d", comparisons=pair_rows(64)
    )
    wanted = GenerationConfig.from_pretrained(reference).eos_token_id
    assert len(wanted) == 9
    for model in (family.points[weights.label], pairs.points[weights.label]):
        assert GenerationConfig.from_pretrained(model).eos_token_id == wanted


class Interrupting:
    """An objective that works `calls` times and then stands for a killed process."""

    def __init__(self, calls: int) -> None:
        self.__name__, self.calls = "one", calls

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return OBJECTIVES["one"](prompts, completions, **columns)


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_an_interrupted_run_resumes_to_the_same_weights(algorithm: str, reference: str, tmp_path: Path) -> None:
    weights = [Weights((1.0, 0.0)), Weights((0.5, 0.5))]
    config = morlhf.Config(**{**RL, "steps": 6}, algorithm=algorithm, save_steps=2, gradient_accumulation=2)
    data = {"reference": reference, "weights": weights, "prompts": PROMPT_ROWS}
    whole = fit(morlhf, config, out=tmp_path / "whole", **data)
    with pytest.raises(KeyboardInterrupt):
        fit(morlhf, config, out=tmp_path / "cut", objectives={**OBJECTIVES, "one": Interrupting(11)}, **data)
    assert open_run(tmp_path / "cut" / "points" / "1,0").metrics["reward"] > 0  # the first point was finished
    assert list((tmp_path / "cut" / "points" / "0.5,0.5.partial" / "checkpoints").glob("checkpoint-4"))
    first = (tmp_path / "cut" / "points" / "1,0" / "run.json").stat().st_mtime_ns
    ledger = Ledger()
    cut = fit(morlhf, config, out=tmp_path / "cut", ledger=ledger, **data)
    for w in weights:
        assert same_weights(whole.points[w.label], cut.points[w.label])
    assert (tmp_path / "cut" / "points" / "1,0" / "run.json").stat().st_mtime_ns == first  # reused, not trained again
    assert ledger.samples_drawn == 2 * 6 * 192  # and charged all the same
    assert not list((tmp_path / "cut").rglob("checkpoint-*"))


def test_dpo_resumes_to_the_same_weights(reference: str, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    from align.training.common import resume_point

    weights, rows = Weights((0.5, 0.5)), pair_rows(192)
    config = dpo.Config(**{**PAIRS, "batch_size": 32, "epochs": 2.0}, save_steps=4)
    whole = fit(dpo, config, reference=reference, weights=[weights], out=tmp_path / "whole", comparisons=rows)
    pairs = annotated_pairs(rows, scores=row_scores(rows), weights=weights, tau=config.tau, seed=0)

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 9:
                raise KeyboardInterrupt

    folder = tmp_path / "cut"
    settings = {"config": config, "reference": reference, "beta": BETA / config.tau}
    trainer = pair_training.dpo_trainer(pairs, **settings, folder=folder)
    trainer.add_callback(Kill())
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=resume_point(folder))
    pair_training.train_on_pairs(pairs, **settings, run=workspace(folder))
    assert same_weights(whole.points[weights.label], str(folder / "model"))
