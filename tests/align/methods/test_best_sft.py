"""SFT on the best of n: it moves to the law of best-of-n, from samples that are drawn, scored and charged once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from align.engines.reference_samples import Drawing, Sample, best_samples, draw_samples, shared_samples
from align.errors import UserError
from align.methods import best_sft
from align.models import count_parameters, load_model
from align.policies.base import ModelPolicy
from align.policies.load import load_family
from align.preferences import Weights
from align.runs import Ledger, open_run
from factories.tiny_bandit import (
    OBJECTIVES,
    PROMPTS,
    WORDS,
    fit,
    kl,
    next_distribution,
    problem_of,
    reward,
    same_weights,
    scalarised,
    workspace,
)

BOTH = Weights((0.3, 0.7))
FEW = {"n": 4, "max_completion_length": 1, "learning_rate": 1e-3, "batch_size": 16}


def prompt_rows(count: int) -> list[dict[str, Any]]:
    return [{"id": str(i), "prompt": PROMPTS[i % 2]} for i in range(count)]


def best_law(reference: str, prompt: str, weights: Sequence[float], *, n: int) -> list[float]:
    """P(the maximum of n draws is in a class), shared within the class: from the distribution function, by word."""
    base, rewards = next_distribution(reference, prompt), [round(r, 9) for r in scalarised(prompt, weights)]
    law = []
    for p, r in zip(base, rewards, strict=True):
        below = sum(q for q, s in zip(base, rewards, strict=True) if s < r)
        equal = sum(q for q, s in zip(base, rewards, strict=True) if s == r)
        law.append(p / equal * ((below + equal) ** n - below**n))
    return law


# ---------------------------------------------------------------------------------------------------- the fixed point


def test_it_moves_to_the_law_of_best_of_n(reference: str, tmp_path: Path) -> None:
    """And not to the law of other weights, nor to that of the best of 8."""
    config = best_sft.Config(**{**FEW, "learning_rate": 4e-3, "batch_size": 64, "epochs": 6.0})
    family = fit(best_sft, config, reference=reference, weights=[BOTH], out=tmp_path, prompts=prompt_rows(320))

    def distance(weights: Sequence[float], n: int) -> float:
        laws = [best_law(reference, prompt, weights, n=n) for prompt in PROMPTS]
        ours = [next_distribution(family.points[BOTH.label], prompt) for prompt in PROMPTS]
        return sum(kl(law, own) for law, own in zip(laws, ours, strict=True)) / 2

    start = sum(kl(best_law(reference, p, BOTH, n=4), next_distribution(reference, p)) for p in PROMPTS) / 2
    assert start > 0.4 and distance(BOTH, 4) < 0.1 * start
    assert distance(BOTH, 4) < 0.5 * distance(BOTH, 8) and distance(BOTH, 4) < 0.5 * distance((0.7, 0.3), 4)
    claim = family.optimises[BOTH.label]
    assert claim.startswith("no J") and "best-of-n" in claim and "0.3,0.7" in claim


def test_keeping_all_samples_imitates_the_reference(reference: str, tmp_path: Path) -> None:
    config = best_sft.Config(**{**FEW, "keep": 4, "learning_rate": 4e-3, "batch_size": 128, "epochs": 2.0})
    family = fit(best_sft, config, reference=reference, weights=[BOTH], out=tmp_path, prompts=prompt_rows(400))
    for prompt in PROMPTS:
        assert kl(next_distribution(reference, prompt), next_distribution(family.points[BOTH.label], prompt)) < 0.02
    assert "the best 4 of 4" in family.optimises[BOTH.label]


# ----------------------------------------------------------------------------------------------------------- samples


class Recorder:
    """An objective that keeps its calls and scores by a rule."""

    def __init__(self, name: str, rule: Any) -> None:
        self.__name__, self.rule, self.calls = name, rule, []  # type: ignore[var-annotated]

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        self.calls.append({"prompts": list(prompts), "completions": list(completions), **columns})
        return [self.rule(p, c) for p, c in zip(prompts, completions, strict=True)]


def test_samples_are_drawn_scored_and_charged_once_for_all_preferences(many_tokens: str, tmp_path: Path) -> None:
    one, two = Recorder("one", lambda p, c: len(c)), Recorder("two", lambda p, c: -len(c))
    rows, ledger = [{**row, "colour": row["id"] + "!"} for row in prompt_rows(6)], Ledger()
    config = best_sft.Config(**{**FEW, "max_completion_length": 3})
    data: dict[str, Any] = {"reference": many_tokens, "prompts": rows, "objectives": {"one": one, "two": two}}
    asked = [Weights((1.0, 0.0)), BOTH, Weights((0.0, 1.0))]
    family = fit(best_sft, config, weights=asked, out=tmp_path, ledger=ledger, **data)
    assert ledger.samples_drawn == 6 * 4 and ledger.scores_read == 2 * 6 * 4
    for recorder in (one, two):
        (call,) = recorder.calls
        assert call["prompts"] == [row["prompt"] for row in rows for _ in range(4)]
        assert call["colour"] == [row["colour"] for row in rows for _ in range(4)]  # the rows' columns reach objectives
        assert len(call["completion_ids"]) == 24
    assert one.calls[0]["completions"] == two.calls[0]["completions"]
    # an interrupted call: what is finished is neither drawn nor trained again, but charged all the same
    again = Ledger()
    fit(best_sft, config, weights=asked[:2], out=tmp_path, ledger=again, **data)
    assert len(one.calls) == 1 and again.samples_drawn == 24 and again.scores_read == 48
    assert again.tokens < ledger.tokens
    short, long = family.points["0,1"], family.points["1,0"]
    assert same_weights(family.points[BOTH.label], short)  # w . r = -.4 length ranks as minus the length does
    assert not same_weights(short, long)


def test_the_ledger_counts_sampling_and_training_flops(many_tokens: str, tmp_path: Path) -> None:
    """2 N for each prompt and response token drawn, 6 N for each trained on."""
    ledger = Ledger()
    config = best_sft.Config(**{**FEW, "max_completion_length": 3, "epochs": 2.0})
    fit(best_sft, config, reference=many_tokens, weights=[BOTH], out=tmp_path, prompts=prompt_rows(4), ledger=ledger)
    lines = (tmp_path / "samples" / "samples.jsonl").read_text().splitlines()
    samples = [Sample(**json.loads(line)) for line in lines]
    kept = best_samples(samples, weights={"one": 0.3, "two": 0.7}, keep=1, seed=0)
    size = count_parameters(load_model(many_tokens), embeddings=False)
    drawn, trained = (sum(len(s.prompt.split()) + len(s.ids) for s in part) for part in (samples, kept))
    assert ledger.tokens == 2 * trained
    assert ledger.flops == 2 * size * drawn + 6 * size * 2 * trained
    metrics = open_run(tmp_path / "points" / BOTH.label).metrics
    assert metrics["trained_on"] == 4 and metrics["steps"] == 2


def sample(row: int, prompt: str, **scores: float | None) -> Sample:
    return Sample(row, prompt, [row], "", dict(scores))


def test_the_best_are_taken_within_each_row() -> None:
    """Two rows may share a prompt; w . r decides, not one objective; equals are taken at random."""
    samples = [
        sample(0, "p", a=1.0, b=0.0),
        sample(0, "p", a=0.0, b=0.9),
        sample(1, "p", a=0.2, b=0.2),
        sample(1, "p", a=0.1, b=0.5),
    ]

    def best(a: float, b: float, keep: int = 1) -> list[int]:
        return [samples.index(s) for s in best_samples(samples, weights={"a": a, "b": b}, keep=keep, seed=0)]

    assert best(1.0, 0.0) == [0, 2] and best(0.0, 1.0) == [1, 3]
    assert best(0.4, 0.6) == [1, 3] and best(0.6, 0.4) == [0, 3]  # .6 > .36, and .26 > .2
    assert best(1.0, 0.0, keep=2) == [0, 1, 2, 3] and best(0.0, 1.0, keep=2) == [1, 0, 3, 2]
    ties = [sample(i, "p", a=0.0) for i in range(200) for _ in range(2)]
    for number, tied in enumerate(ties):
        tied.ids[0] = number % 2
    firsts = sum(s.ids[0] == 0 for s in best_samples(ties, weights={"a": 1.0}, keep=1, seed=0))
    assert 60 < firsts < 140


def test_an_objective_that_scores_a_part_of_a_prompts_samples_is_refused() -> None:
    apart = [sample(0, "p", a=None), sample(0, "p", a=None), sample(1, "q", a=1.0), sample(1, "q", a=0.0)]
    kept = best_samples(apart, weights={"a": 1.0}, keep=1, seed=0)
    assert [s.row for s in kept] == [0, 1] and kept[1].scores["a"] == 1.0
    mixed = [sample(0, "p", a=None), sample(0, "p", a=1.0)]
    with pytest.raises(UserError, match="cannot be ranked|not others"):
        best_samples(mixed, weights={"a": 1.0}, keep=1, seed=0)


def test_samples_come_from_the_whole_distribution(reference: str) -> None:
    """2,000 draws a prompt against the softmax of a plain forward pass: 5 standard errors for each word."""
    drawing = Drawing(n=2000, max_completion_length=1, batch_size=1000, seed=0)
    samples = draw_samples(drawing, reference=reference, objectives={}, prompts=prompt_rows(2), ledger=Ledger())
    for row, prompt in enumerate(PROMPTS):
        counts = [0] * len(WORDS)
        for drawn in samples:
            counts[drawn.ids[0]] += drawn.row == row
        for count, p in zip(counts, next_distribution(reference, prompt), strict=True):
            assert abs(count / 2000 - p) <= 5 * (p * (1 - p) / 2000) ** 0.5


def test_prompts_of_other_columns_are_refused(reference: str, tmp_path: Path) -> None:
    rows = [*prompt_rows(2), {"prompt": "x :"}]
    drawing = Drawing(n=2, max_completion_length=1, batch_size=4, seed=0)
    with pytest.raises(UserError, match="other columns"):
        shared_samples(drawing, problem_of(reference, prompts=rows), workspace(tmp_path / "samples"), objectives={})


# ---------------------------------------------------------------------------------------------------- TRL's trainer


def test_sft_takes_ids_and_labels_as_they_are(many_tokens: str, tmp_path: Path) -> None:
    """Contract with TRL: the loss is the mean NLL of the drawn tokens; no end token is put after a cut response."""
    a, b, end = WORDS.index("A"), WORDS.index("B"), WORDS.index("<end>")
    kept = [
        Sample(0, "x :", [a, end], "A", {}),
        Sample(1, "y y :", [a, b, b], "A B B", {}),
        Sample(2, "x :", [end], "", {}),
    ]
    config = best_sft.Config(**{**FEW, "batch_size": 3})
    trainer = best_sft.build_trainer(kept, config=config, reference=many_tokens, folder=tmp_path)
    heads = [[WORDS.index(word) for word in s.prompt.split()] for s in kept]
    assert list(trainer.train_dataset["input_ids"]) == [h + s.ids for h, s in zip(heads, kept, strict=True)]
    assert list(trainer.train_dataset["labels"]) == [[-100] * len(h) + s.ids for h, s in zip(heads, kept, strict=True)]
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch)).item()
    total = 0.0
    for head, s in zip(heads, kept, strict=True):
        with torch.no_grad():
            logp = load_model(many_tokens)(input_ids=torch.tensor([head + s.ids])).logits[0].log_softmax(-1)
        total -= sum(float(logp[len(head) + i - 1, token]) for i, token in enumerate(s.ids))
    assert loss == pytest.approx(total / 6, abs=1e-5)


# ------------------------------------------------------------------------------------------------------ generic guards


def trained(reference: str, out: Path, *weights: float, **changes: Any) -> str:
    objectives = changes.pop("objectives", OBJECTIVES)
    preference = Weights(weights)
    config = best_sft.Config(**{**FEW, **changes})
    family = fit(
        best_sft, config, reference=reference, weights=[preference], out=out, objectives=objectives,
        prompts=prompt_rows(24),
    )  # fmt: skip
    return family.points[preference.label]


def never(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    raise AssertionError("an objective of weight 0 was asked")


def test_three_objectives_with_one_unused_are_two_and_a_vertex_is_one(reference: str, tmp_path: Path) -> None:
    two = trained(reference, tmp_path / "2", 0.3, 0.7)
    three = trained(reference, tmp_path / "3", 0.3, 0.7, 0.0, objectives={**OBJECTIVES, "three": never})
    assert same_weights(two, three) and not same_weights(two, reference)
    vertex = trained(reference, tmp_path / "v", 0.0, 1.0)
    single = trained(reference, tmp_path / "s", 1.0, objectives={"two": OBJECTIVES["two"]})
    assert same_weights(vertex, single) and not same_weights(vertex, two)


def test_the_seed_decides(reference: str, tmp_path: Path) -> None:
    first = trained(reference, tmp_path / "a", 0.3, 0.7, seed=3)
    assert same_weights(first, trained(reference, tmp_path / "b", 0.3, 0.7, seed=3))
    assert not same_weights(first, trained(reference, tmp_path / "c", 0.3, 0.7, seed=4))


def test_the_policy_earns_more_of_what_it_was_asked_for(reference: str, tmp_path: Path) -> None:
    """Each vertex raises its own objective; a reward that does not see the completion would raise neither."""
    models = [trained(reference, tmp_path / str(k), *w) for k, w in enumerate(((1.0, 0.0), (0.0, 1.0)))]

    def earned(model: str, name: str) -> float:
        return sum(
            p * reward(name, prompt, word)
            for prompt in PROMPTS
            for word, p in zip(WORDS, next_distribution(model, prompt), strict=True)
        )

    for k, name in enumerate(OBJECTIVES):
        assert earned(models[k], name) > earned(reference, name)
        assert earned(models[k], name) > earned(models[1 - k], name)


def test_an_adapter_can_be_trained_and_families_are_found_again(reference: str, tmp_path: Path) -> None:
    config = best_sft.Config(**FEW, lora_r=2)
    family = fit(best_sft, config, reference=reference, weights=[BOTH], out=tmp_path, prompts=prompt_rows(8))
    assert (Path(family.points[BOTH.label]) / "adapter_config.json").is_file()
    family.save(tmp_path)
    again = load_family(tmp_path).policy(BOTH)
    assert again.name == "best_sft@0.3,0.7"
    assert again.sequence_logprobs(["x :"], [" A"]) != ModelPolicy(reference).sequence_logprobs(["x :"], [" A"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"keep": 0}, "keep must be at least 1"),
        ({"keep": 5}, "keep is 5 of n = 4"),
        ({"epochs": 0.0}, "epochs must be above 0"),
        ({"max_completion_length": 0}, "max_completion_length must be at least 1"),
        ({"max_completion_length": 40}, "lower max_completion_length"),
    ],
)
def test_what_it_cannot_mean_is_refused(changes: dict[str, Any], message: str, reference: str, tmp_path: Path) -> None:
    config = best_sft.Config(**{**FEW, **changes})
    with pytest.raises(UserError, match=message):
        fit(best_sft, config, reference=reference, weights=[BOTH], out=tmp_path, prompts=prompt_rows(2))


def test_prompts_and_preferences_are_needed(reference: str, tmp_path: Path) -> None:
    config = best_sft.Config(**FEW)
    with pytest.raises(UserError, match="needs prompts"):
        fit(best_sft, config, reference=reference, weights=[BOTH], out=tmp_path)
    with pytest.raises(UserError, match="3 numbers, but there are 2"):
        fit(best_sft, config, reference=reference, weights=[Weights((0.5, 0.25, 0.25))], out=tmp_path)
