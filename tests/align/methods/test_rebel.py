"""REBEL: its loss against plain forward passes, its closed form on few responses, one objective as a special case."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from align.data.comparisons import Pair
from align.errors import UserError
from align.methods import rebel
from align.models import load_model, load_tokenizer
from align.policies.base import ModelPolicy
from align.preferences import Weights
from align.runs import Ledger, open_run
from factories.tiny_bandit import OBJECTIVES, PROMPTS, RESPONSES, fit, pair_rows, reward, same_weights

SHORT: dict[str, Any] = {"beta": 0.5, "learning_rate": 1e-3, "batch_size": 16, "logging_steps": 1}
# Three pairs whose responses differ in length, and the w . r of both responses of each.
PAIRS = [
    Pair("p", "x :", " A", " B C D", False),
    Pair("q", "y y :", " D D", " C", False),
    Pair("r", "x :", " B", " A A", False),
]
VALUES = {"p": (0.9, 0.2), "q": (0.1, 0.4), "r": (0.3, 0.3)}


@pytest.fixture(scope="module")
def reference(many_tokens: str) -> str:
    return many_tokens


def logp(model: Any, tokenizer: Any, prompt: str, response: str) -> torch.Tensor:
    """Log-probability of a response and its end token, from one forward pass without padding: the oracle."""
    head, tail = tokenizer(prompt)["input_ids"], [*tokenizer(response)["input_ids"], tokenizer.eos_token_id]
    table = model(input_ids=torch.tensor([head + tail])).logits[0].log_softmax(-1)
    return sum(table[len(head) + i - 1, token] for i, token in enumerate(tail))  # type: ignore[return-value]


def by_hand(model: Any, base: Any, tokenizer: Any, *, beta: float) -> torch.Tensor:
    """The mean over PAIRS of `(beta [dlog pi - dlog ref] - (value_a - value_b))^2`."""
    squares = []
    for pair in PAIRS:
        ours = [logp(model, tokenizer, pair.prompt, text) for text in (pair.chosen, pair.rejected)]
        with torch.no_grad():
            theirs = [logp(base, tokenizer, pair.prompt, text) for text in (pair.chosen, pair.rejected)]
        a, b = VALUES[pair.id]
        squares.append((beta * ((ours[0] - theirs[0]) - (ours[1] - theirs[1])) - (a - b)) ** 2)
    return torch.stack(squares).mean()


@pytest.mark.parametrize("beta", [0.5, 0.2])
def test_the_loss_and_its_gradient_are_those_of_least_squares(beta: float, reference: str, tmp_path: Path) -> None:
    """Sums over tokens, not means; the mean over pairs, not the sum; differences in stored order; J's own beta."""
    config = rebel.Config(**{**SHORT, "beta": beta, "batch_size": 3})
    trainer = rebel.build_trainer(PAIRS, values=VALUES, config=config, reference=reference, folder=tmp_path)
    base, tokenizer, model = load_model(reference), load_tokenizer(reference), trainer.model
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    batch = next(iter(trainer.get_train_dataloader()))
    model.train()
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected = by_hand(model, base, tokenizer, beta=beta)
    expected.backward()
    assert expected > 0.05  # there is something to fit
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-3, atol=1e-5), name
    assert trainer.beta == beta  # put back


def every_pair(responses: Sequence[str]) -> list[dict[str, Any]]:
    """Each pair of responses to each prompt once, with both objectives' scores and no label."""
    rows = []
    for prompt in PROMPTS:
        for a, b in itertools.combinations(responses, 2):
            scores = {"scores_a": scores_of(prompt, a), "scores_b": scores_of(prompt, b)}
            rows.append({"id": f"{prompt}{a}{b}", "prompt": prompt, "a": f" {a}", "b": f" {b}", **scores})
    return rows


def scores_of(prompt: str, word: str) -> list[float]:
    return [reward(name, prompt, word) for name in OBJECTIVES]


def weighted(row: dict[str, Any], weights: Sequence[float]) -> float:
    """`w . (r(a) - r(b))`."""
    return sum(w * (x - y) for w, x, y in zip(weights, row["scores_a"], row["scores_b"], strict=True))


def log_ratio(model: str, reference: str, row: dict[str, Any]) -> float:
    """`log pi/ref(a) - log pi/ref(b)`."""
    texts = [row["a"], row["b"]]
    ours, theirs = (ModelPolicy(path).sequence_logprobs([row["prompt"]] * 2, texts) for path in (model, reference))
    return (ours[0] - theirs[0]) - (ours[1] - theirs[1])


@pytest.mark.parametrize(
    ("responses", "weights", "beta"),
    [(("A", "C"), (0.3, 0.7), 0.5), (("A", "C"), (0.3, 0.7), 1.0), (RESPONSES, (0.6, 0.4), 0.5)],
)
def test_the_minimiser_is_the_optimum_s_log_ratio(
    responses: Sequence[str], weights: tuple[float, float], beta: float, reference: str, tmp_path: Path
) -> None:
    """`log pi/ref(y) - log pi/ref(y') = w . (r(y) - r(y')) / beta`, for every pair of what the pairs hold."""
    w, rows = Weights(weights), every_pair(responses)
    config = rebel.Config(beta=beta, learning_rate=3e-3, batch_size=len(rows), epochs=150.0, scheduler="cosine")
    family = fit(rebel, config, reference=reference, weights=[w], out=tmp_path, comparisons=rows)
    for row in rows:
        found = log_ratio(family.points[w.label], reference, row)
        assert found == pytest.approx(weighted(row, weights) / beta, abs=0.03)
    assert max(abs(weighted(row, weights)) for row in rows) > 0.2  # far from the start, where every ratio is 0


# ------------------------------------------------------------------------------------- one objective, and three


def never(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    raise AssertionError("an objective of weight 0 was asked")


@pytest.mark.parametrize("scores", ["rows", "objectives"])
def test_a_vertex_is_the_single_objective_run_bit_for_bit(scores: str, reference: str, tmp_path: Path) -> None:
    """And an objective without weight is neither asked nor felt, first, last or in the middle."""
    rows, config = pair_rows(64), rebel.Config(**SHORT, scores=scores)
    alone = [{**r, **{f"scores_{s}": r[f"scores_{s}"][1:] for s in "ab"}} for r in rows]
    wide = [{**r, **{f"scores_{s}": [1e6, r[f"scores_{s}"][1], -7.0] for s in "ab"}} for r in rows]
    two = {"two": OBJECTIVES["two"]}
    data: dict[str, Any] = {"reference": reference}
    one = fit(rebel, config, weights=[Weights((1.0,))], out=tmp_path / "1", comparisons=alone, objectives=two, **data)
    many = fit(
        rebel, config, weights=[Weights((0.0, 1.0, 0.0))], out=tmp_path / "3", comparisons=wide,
        objectives={"huge": never, **two, "last": never}, **data,
    )  # fmt: skip
    assert same_weights(one.points["1"], many.points["0,1,0"])
    assert not same_weights(one.points["1"], reference)


def test_weighted_scores_by_hand() -> None:
    found = rebel.weighted({"i": ([1.0, 2.0, 8.0], [3.0, 5.0, 0.0])}, weights=[0.5, 0.25, 0.25])
    assert found == {"i": (0.5 + 0.5 + 2.0, 1.5 + 1.25)}


def test_three_objectives_are_one_weighted_sum(reference: str, tmp_path: Path) -> None:
    """w . r of three scores, in the objectives' order: the same weights on the sum itself give the same model."""
    w, third = (0.5, 0.125, 0.375), {"A": 0.0, "B": 0.25, "C": 0.75, "D": 1.5}
    rows = [{**r, **{f"scores_{s}": [*r[f"scores_{s}"], third[r[s].strip()]] for s in "ab"}} for r in pair_rows(64)]

    def total(scores_K: Sequence[float]) -> list[float]:
        return [sum(v * x for v, x in zip(w, scores_K, strict=True))]

    summed = [{**r, "scores_a": total(r["scores_a"]), "scores_b": total(r["scores_b"])} for r in rows]
    config, data = rebel.Config(**SHORT), {"reference": reference}
    three = fit(
        rebel, config, weights=[Weights(w)], out=tmp_path / "3", comparisons=rows,
        objectives={**OBJECTIVES, "three": never}, **data,
    )  # fmt: skip
    sums = fit(
        rebel, config, weights=[Weights((1.0,))], out=tmp_path / "1", comparisons=summed,
        objectives={"sum": never}, **data,
    )  # fmt: skip
    turned = fit(
        rebel, config, weights=[Weights(w[1:] + w[:1])], out=tmp_path / "t", comparisons=rows,
        objectives={**OBJECTIVES, "three": never}, **data,
    )  # fmt: skip
    assert same_weights(three.points[Weights(w).label], sums.points["1"])
    assert not same_weights(three.points[Weights(w).label], turned.points[Weights(w[1:] + w[:1]).label])


# ---------------------------------------------------------------------------------------- scores, cost and mistakes


def test_scores_asked_are_scores_known_and_all_are_charged_once(reference: str, tmp_path: Path) -> None:
    rows, asked, known = pair_rows(32), Ledger(), Ledger()
    bare = [{name: row[name] for name in ("id", "prompt", "a", "b")} for row in rows]
    weights = [Weights((0.25, 0.75)), Weights((0.75, 0.25))]
    data: dict[str, Any] = {"reference": reference, "weights": weights}
    config = rebel.Config(**SHORT, scores="objectives")
    one = fit(rebel, config, out=tmp_path / "a", comparisons=bare, ledger=asked, **data)
    two = fit(rebel, rebel.Config(**SHORT), out=tmp_path / "k", comparisons=rows, ledger=known, **data)
    for w in weights:
        assert same_weights(one.points[w.label], two.points[w.label])
    assert asked.scores_read == known.scores_read == 2 * 2 * 32  # responses x objectives x rows, for both preferences
    assert asked.samples_drawn == 0 and asked.flops > 0
    claim = one.optimises["0.25,0.75"]
    assert "E[w.r] - 0.5 KL(pi||ref) at w = 0.25,0.75" in claim and "scores: objectives" in claim
    metrics = open_run(Path(one.points["0.25,0.75"]).parent).metrics
    assert metrics["pairs"] == 32 and metrics["pairs_dropped_by_length"] == 0 and metrics["loss"] > 0


def test_an_adapter_is_trained_against_its_own_backbone(reference: str, tmp_path: Path) -> None:
    weights, rows = Weights((0.5, 0.5)), every_pair(("A", "C"))
    config = rebel.Config(beta=0.5, learning_rate=2e-2, batch_size=2, epochs=60.0, lora_r=4)
    family = fit(rebel, config, reference=reference, weights=[weights], out=tmp_path, comparisons=rows)
    for row in rows:
        found = log_ratio(family.points[weights.label], reference, row)
        assert found == pytest.approx(weighted(row, weights.values) / 0.5, abs=0.1)


@pytest.mark.parametrize(
    ("changes", "rows", "message"),
    [
        ({"scores": "labels"}, pair_rows(4), "scores must be one of rows, objectives"),
        ({"epochs": 0.0}, pair_rows(4), "epochs"),
        ({}, None, "rebel needs comparisons"),
        ({}, [{**r, "scores_b": [0.5]} for r in pair_rows(4)], "comparison r0 has 2 and 1 scores for 2 objectives"),
        ({}, [{"id": "1", "prompt": "x :", "a": " A", "b": " B"}], "no scores_a"),
        ({"max_length": 2}, pair_rows(4), "max_length = 2"),
    ],
)
def test_mistakes_are_told(changes: dict[str, Any], rows: Any, message: str, reference: str, tmp_path: Path) -> None:
    config = rebel.Config(**{**SHORT, **changes})
    with pytest.raises(UserError, match=message):
        fit(rebel, config, reference=reference, weights=[Weights((0.5, 0.5))], out=tmp_path, comparisons=rows)
