"""KTO under the generic guards: K = 3, vertices, seeds, interruption and mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from align.engines.unpaired import given_examples, thresholded_examples
from align.errors import UserError
from align.methods import kto
from align.policies.base import ModelPolicy
from align.policies.load import load_family
from align.preferences import Weights
from align.runs import Ledger, checkpoints
from factories.made_kto import BOTH, FEW, four
from factories.tiny_bandit import (
    OBJECTIVES,
    fit,
    pair_rows,
    same_weights,
    workspace,
)


@pytest.fixture(scope="module")
def reference(many_tokens: str) -> str:
    return many_tokens


# ------------------------------------------------------------------------------------------------------ generic guards


def trained(reference: str, out: Path, *weights: float, **changes: Any) -> str:
    data = {name: changes.pop(name) for name in ("objectives", "comparisons") if name in changes}
    preference = Weights(weights)
    config = kto.Config(**{**FEW, **changes})
    data.setdefault("comparisons", pair_rows(32))
    return fit(kto, config, reference=reference, weights=[preference], out=out, **data).points[preference.label]


def never(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    raise AssertionError("an objective of weight 0 was asked")


def only(rows: Sequence[dict[str, Any]], *columns: int) -> list[dict[str, Any]]:
    """The rows with these columns of their scores; column 2 is a large third objective."""
    wide = [{**r, "scores_a": [*r["scores_a"], 5.0], "scores_b": [*r["scores_b"], -5.0]} for r in rows]
    return [{**r, **{side: [r[side][k] for k in columns] for side in ("scores_a", "scores_b")}} for r in wide]


@pytest.mark.parametrize("source", ["scalarised", "objectives"])
def test_three_objectives_with_one_unused_are_two_and_a_vertex_is_one(
    source: str, reference: str, tmp_path: Path
) -> None:
    rows = pair_rows(32)
    wide = {"objectives": {**OBJECTIVES, "three": never}, "comparisons": only(rows, 0, 1, 2)}
    alone = {"objectives": {"two": OBJECTIVES["two"]}, "comparisons": only(rows, 1)}
    two = trained(reference, tmp_path / "2", 0.6, 0.4, labels=source)
    assert same_weights(two, trained(reference, tmp_path / "3", 0.6, 0.4, 0.0, labels=source, **wide))
    vertex = trained(reference, tmp_path / "v", 0.0, 1.0, labels=source)
    assert same_weights(vertex, trained(reference, tmp_path / "s", 1.0, labels=source, **alone))
    assert not same_weights(vertex, two) and not same_weights(two, reference)


def test_scores_of_the_rows_and_of_the_objectives_agree_and_are_charged(reference: str, tmp_path: Path) -> None:
    rows, ledger = pair_rows(32), Ledger()
    bare = [{key: r[key] for key in ("id", "prompt", "a", "b")} for r in rows]
    told = trained(reference, tmp_path / "a", 0.3, 0.7)
    config = kto.Config(**FEW, labels="objectives")
    asked = fit(kto, config, reference=reference, weights=[BOTH], out=tmp_path / "b", comparisons=bare, ledger=ledger)
    assert same_weights(told, asked.points[BOTH.label])
    assert ledger.scores_read == 2 * 2 * 32 + 2 * 32  # both objectives on both responses, and the labels


def test_rows_of_single_responses_carry_their_own_label() -> None:
    rows = [
        {"id": str(i), "prompt": "p", "completion": f" {i}", "label": i % 2 == 0, "objective": "one"} for i in range(4)
    ]
    found = given_examples(rows, weights=Weights((1.0, 0.0)), names=["one", "two"])
    assert [(e.completion, e.label) for e in found] == [(" 0", True), (" 1", False), (" 2", True), (" 3", False)]
    with pytest.raises(UserError, match="both labels are needed for objective 'two'"):
        given_examples(rows, weights=Weights((0.0, 1.0)), names=["one", "two"])
    with pytest.raises(UserError, match="weights 0.5,0.5 mix objectives"):
        given_examples(rows, weights=Weights((0.5, 0.5)), names=["one", "two"])


def test_given_labels_are_chosen_and_rejected(reference: str, tmp_path: Path) -> None:
    rows = [
        {"id": f"{name}{i}", "prompt": "x :", "chosen": f" {good}", "rejected": " D", "objective": name}
        for name, good in (("one", "A"), ("two", "C"))
        for i in range(16)
    ]
    one, two = (
        trained(reference, tmp_path / str(k), *w, labels="given", comparisons=rows, epochs=2.0)
        for k, w in enumerate(((1.0, 0.0), (0.0, 1.0)))
    )
    start, first, second = (four(model, "x :") for model in (reference, one, two))
    assert first[0] > max(start[0], second[0]) and second[2] > max(start[2], first[2])
    assert first[3] < start[3] and second[3] < start[3]
    with pytest.raises(UserError, match="given labels follow one"):
        trained(reference, tmp_path / "mixed", 0.5, 0.5, labels="given", comparisons=rows)


def test_the_seed_decides(reference: str, tmp_path: Path) -> None:
    first = trained(reference, tmp_path / "a", 0.3, 0.7, seed=3)
    assert same_weights(first, trained(reference, tmp_path / "b", 0.3, 0.7, seed=3))
    assert not same_weights(first, trained(reference, tmp_path / "c", 0.3, 0.7, seed=4))


def test_an_interrupted_run_resumes_to_the_same_weights(reference: str, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    whole = trained(reference, tmp_path / "whole", 0.3, 0.7, epochs=2.0, save_steps=2, logging_steps=2)
    config = kto.Config(**{**FEW, "epochs": 2.0, "save_steps": 2, "logging_steps": 2})
    rows = pair_rows(32)
    scores = {r["id"]: (r["scores_a"], r["scores_b"]) for r in rows}
    examples = thresholded_examples(rows, scores=scores, weights=BOTH, config=config)

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    trainer = kto.build_trainer(examples, config=config, reference=reference, folder=tmp_path / "cut")
    trainer.add_callback(Kill())
    checkpoints.claim(tmp_path / "cut" / "checkpoints")  # as `train_on` does before it trains
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    kto.train_on(examples, config=config, reference=reference, run=workspace(tmp_path / "cut"))
    assert same_weights(whole, str(tmp_path / "cut" / "model"))


def test_an_adapter_can_be_trained_and_families_are_found_again(reference: str, tmp_path: Path) -> None:
    model = trained(reference, tmp_path, 0.3, 0.7, lora_r=2)
    assert (Path(model) / "adapter_config.json").is_file()
    family = fit(
        kto, kto.Config(**FEW, lora_r=2), reference=reference, weights=[BOTH], out=tmp_path, comparisons=pair_rows(32)
    )
    family.save(tmp_path)
    again = load_family(tmp_path).policy(BOTH)
    assert again.name == "kto@0.3,0.7"
    assert again.sequence_logprobs(["x :"], [" A"]) != ModelPolicy(reference).sequence_logprobs(["x :"], [" A"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": "thumbs"}, "labels must be one of"),
        ({"per": "row"}, "per must be one of prompt, all"),
        ({"threshold": "mode"}, "threshold must be mean, median or a number"),
        ({"threshold": math.nan}, "threshold must be mean, median or a number"),
        ({"tau": -1.0}, "tau must be at least 0"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"epochs": 0.0}, "epochs must be above 0"),
        ({"desirable_weight": 0.0}, "desirable_weight must be above 0"),
    ],
)
def test_what_it_cannot_mean_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = kto.Config(**{**FEW, **changes})
    with pytest.raises(UserError, match=message):
        fit(kto, config, reference="none", weights=[BOTH], out=tmp_path, comparisons=pair_rows(4))


def test_comparisons_and_their_scores_are_needed(tmp_path: Path) -> None:
    for rows, message in (
        ([], "needs comparisons"),
        ([{"id": "1", "prompt": "x :", "a": "A", "b": "B"}], "no scores_a"),
    ):
        with pytest.raises(UserError, match=message):
            fit(kto, kto.Config(**FEW), reference="none", weights=[BOTH], out=tmp_path, comparisons=rows)
    for config, words in (
        (kto.Config(tau=0.5), "temperature 0.5"),
        (kto.Config(labels="given"), "chosen responses"),
        (kto.Config(per="all", threshold="median"), "median of all"),
    ):
        assert words in kto.describe(config, weights=BOTH)
        assert ("conditioned" in kto.describe(config, weights=BOTH)) == (config.tau == 0 and config.labels != "given")
