"""One conditioned run on policy: drawn preferences, the two hooks into TRL, and the front it reaches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from align.engines import conditioned
from align.errors import UserError
from align.functional.draws import dirichlet, even_draws
from align.methods import joint_soup, morlhf, panacea, pblora
from align.models import load_model
from align.policies import conditioned as adapters
from align.policies.conditioned import AdapterConfig, adapted_layers
from align.preferences import Weights
from align.runs import Ledger
from factories.conditioned_models import ASKED, disturb
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
    problem_of,
    reward,
    same_weights,
    scalarised,
    workspace,
)

METHODS: dict[str, Any] = {"panacea": panacea, "pblora": pblora, "joint_soup": joint_soup}


# -------------------------------------------------------------------------------------------------- drawn preferences


def test_even_draws_lie_evenly_on_the_simplex() -> None:
    draws = even_draws(10, objectives=2, concentration=1.0, rng=random.Random(0))
    assert sorted(int(10 * w[0]) for w in draws) == list(range(10))  # one in each tenth
    assert [int(10 * w[0]) for w in draws] != list(range(10))  # in random order
    many = even_draws(4000, objectives=3, concentration=0.5, rng=random.Random(1))
    assert all(min(w) >= 0 and sum(w) == pytest.approx(1) for w in many)
    for k in range(3):  # Dirichlet(a): mean 1/K, variance (1/K)(1 - 1/K) / (K a + 1)
        values = [w[k] for w in many]
        mean = sum(values) / len(values)
        assert mean == pytest.approx(1 / 3, abs=0.01)
        assert sum((v - mean) ** 2 for v in values) / len(values) == pytest.approx((2 / 9) / 2.5, rel=0.05)
    assert even_draws(3, objectives=1, concentration=1.0, rng=random.Random(0)) == [(1.0,)] * 3
    for wrong in ({"count": 0}, {"objectives": 0}, {"concentration": 0.0}):
        with pytest.raises(ValueError, match="cannot draw"):
            even_draws(**{"count": 1, "objectives": 2, "concentration": 1.0, "rng": random.Random(0), **wrong})


def test_dirichlet_has_its_mean() -> None:
    rng = random.Random(0)
    draws = [dirichlet([1.0, 2.0, 0.5], rng=rng) for _ in range(4000)]
    assert [sum(w[k] for w in draws) / 4000 for k in range(3)] == pytest.approx([2 / 7, 4 / 7, 1 / 7], abs=0.02)


@pytest.mark.parametrize("draw", conditioned.DRAWS)
def test_scheduled_weights_are_even_within_a_step_or_over_the_steps(draw: str) -> None:
    config = joint_soup.Config(**{**RL, "steps": 5, "draw": draw, "gradient_accumulation": 2})
    weights = conditioned.scheduled_weights(config, objectives=2)
    assert len(weights) == 5 * 8 and weights == conditioned.scheduled_weights(config, objectives=2)
    steps = [weights[8 * i : 8 * i + 8] for i in range(5)]
    if draw == "prompt":
        assert all(sorted(int(8 * w[0]) for w in step) == list(range(8)) for step in steps)
        assert steps[0] != steps[1]
    else:
        assert all(len(set(step)) == 1 for step in steps)
        assert sorted(int(5 * step[0][0]) for step in steps) == list(range(5))


# --------------------------------------------------------------------------------------------------- hooks, on policy


def rl_trainer(reference: str, folder: Path, *, adapter: AdapterConfig | None = None, **changes: Any) -> Any:
    objectives = changes.pop("objectives", OBJECTIVES)
    settings = {"beta": 0.5, "steps": 2, "batch_size": 8, "num_generations": 4, "learning_rate": 1e-3}
    config = joint_soup.Config(**{**settings, "logging_steps": 1, "max_completion_length": 1, **changes})
    return conditioned.build_trainer(
        config, problem_of(reference, objectives=objectives), workspace(folder),
        adapter=adapter or AdapterConfig("dense", objectives=len(objectives)),
    )  # fmt: skip


def with_weights(trainer: Any, rule: Any) -> Any:
    """The trainer with the preference `rule(row)` for each row of its data."""
    data = trainer.train_dataset
    trainer.train_dataset = data.remove_columns("w").add_column("w", [list(rule(row)) for row in data])
    return trainer


def generation_batch(trainer: Any) -> list[dict[str, Any]]:
    trainer.model.train()
    return next(iter(trainer.get_train_dataloader()))


def loss_of(trainer: Any, inputs: dict[str, Any]) -> torch.Tensor:
    trainer.current_gradient_accumulation_steps = 1  # else set by the training loop
    return trainer._compute_loss(trainer.model, inputs)


def conditioned_logps(model: Any, output: dict[str, Any]) -> torch.Tensor:
    """(B,) log-probability of each completion at its own preference, row by row and without padding."""
    totals = []
    for row in range(len(output["w"])):
        head = output["prompt_ids"][row][output["prompt_mask"][row].bool()]
        tail = output["completion_ids"][row][output["completion_mask"][row].bool()]
        with torch.no_grad():
            inputs = {"input_ids": torch.cat([head, tail])[None]}
            inputs |= {"preferences": output["w"][row][None]} if adapted_layers(model) else {}
            logp = model(**inputs).logits[0].log_softmax(-1)
        totals.append(sum(logp[len(head) + i - 1, token] for i, token in enumerate(tail)))
    return torch.stack(totals)


def test_samples_are_drawn_at_their_rows_preference(reference: str, tmp_path: Path) -> None:
    """Contract of `_generate_and_score_completions`: with directions that force A at (1, 0) and C at (0, 1), they
    come out at the rows that ask for them.
    """
    trainer = rl_trainer(reference, tmp_path, adapter=AdapterConfig("dense", train_all=True), batch_size=64)
    with_weights(trainer, lambda row: (1, 0) if row["prompt"] == "x :" else (0, 1))
    optimizer = torch.optim.Adam(adapters.trained(trainer.model).values(), lr=0.02)
    ids, wanted = torch.tensor([[2, 4], [3, 4], [2, 4], [3, 4]]), torch.tensor([5, 5, 7, 7])
    for _ in range(150):  # teach it so, for whatever prompt
        logits = trainer.model(ids, preferences=torch.tensor([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 2)).logits[:, -1]
        loss = torch.nn.functional.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3
    output = trainer._generate_and_score_completions(generation_batch(trainer))
    assert output["w"].shape == (64, 2) and len(output["w"].unique(dim=0)) == 2
    assert output["completion_ids"][:, 0].tolist() == [5 if w[0] == 1 else 7 for w in output["w"].tolist()]


def test_preferences_stay_with_their_rows_through_shuffle_and_split(many_tokens: str, tmp_path: Path) -> None:
    """Contract: extra tensors of the output are shuffled and split with it, and `_compute_loss` sets them again."""
    trainer = rl_trainer(many_tokens, tmp_path, batch_size=12, gradient_accumulation=2, max_completion_length=3)
    with_weights(trainer, lambda row: (1, 0) if row["prompt"] == "x :" else (0.25, 0.75))
    disturb(trainer.model, size=0.3)
    inputs = trainer._prepare_inputs(generation_batch(trainer))
    assert len(inputs["w"]) == 12 and len(trainer._buffered_inputs) == 2
    order = inputs["prompt_ids"].tolist()
    assert order != sorted(order) and order != sorted(order, reverse=True)  # it was shuffled
    for ids, mask, w in zip(inputs["prompt_ids"], inputs["prompt_mask"], inputs["w"], strict=True):
        assert w.tolist() == ([1.0, 0.0] if ids[mask.bool()].tolist() == [2, 4] else [0.25, 0.75])
    layer = next(iter(adapted_layers(trainer.model).values()))
    layer.preferences.set([[0.0, 1.0]])
    seen: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda module, args: seen.append(module.preferences.of(args[0]).clone()))
    loss_of(trainer, inputs)
    assert len(seen) == 1 and torch.equal(seen[0], inputs["w"])


def test_advantages_are_of_the_rows_own_j(many_tokens: str, tmp_path: Path) -> None:
    """w . r - beta (log pi_w - log ref) less the group's mean, the KL read in two halves of the batch, each at its own
    rows' preferences; from explicit passes of the conditioned model and of the checkpoint, row by row.
    """
    for train_all in (False, True):  # the reference is the adapter turned off, or the checkpoint read again
        adapter = AdapterConfig("dense", train_all=train_all)
        trainer = rl_trainer(
            many_tokens, tmp_path, adapter=adapter, batch_size=8, gradient_accumulation=2, max_completion_length=3
        )
        disturb(trainer.model, size=0.3)
        output = trainer._generate_and_score_completions(generation_batch(trainer))
        assert len(output["w"].unique(dim=0)) == 4
        ours = conditioned_logps(trainer.model, output)
        theirs = conditioned_logps(load_model(many_tokens), output)
        assert (ours - theirs).abs().max() > 0.1
        prompts = ["x :" if mask.sum() == 2 else "y y :" for mask in output["prompt_mask"]]
        words = [WORDS[ids[0]] for ids in output["completion_ids"].tolist()]
        scores = torch.tensor(
            [[reward(k, p, word) for k in ("one", "two")] for p, word in zip(prompts, words, strict=True)]
        )
        total = (output["w"] * scores).sum(1) - 0.5 * (ours - theirs)
        expected = total.reshape(-1, 4) - total.reshape(-1, 4).mean(1, keepdim=True)
        assert torch.allclose(output["advantages"], expected.flatten(), atol=1e-3)


def test_a_group_has_one_preference_and_objectives_see_it(reference: str, tmp_path: Path) -> None:
    seen: list[list[list[float]]] = []

    def spy(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        seen.append(columns["w"])
        return [0.0] * len(prompts)

    rl_trainer(reference, tmp_path, objectives={"spy": spy, "two": OBJECTIVES["two"]}, batch_size=16).train()
    assert len(seen) == 2
    for rows in seen:
        groups = [rows[i : i + 4] for i in range(0, 16, 4)]
        assert all(group == [group[0]] * 4 for group in groups)
        assert sorted(int(4 * group[0][0]) for group in groups) == [0, 1, 2, 3]


def test_at_a_vertex_the_loss_is_the_single_objectives(many_tokens: str, tmp_path: Path) -> None:
    """Same samples, same loss and gradient as morlhf's GRPO on that objective; the other objective is not heard."""
    folder, settings = tmp_path, {"max_completion_length": 3, "batch_size": 16}
    losses, gradients = [], []
    for junk in (0.0, 100.0):
        other = lambda prompts, completions, junk=junk, **_: [junk * i for i in range(len(prompts))]  # noqa: E731
        trainer = rl_trainer(many_tokens, folder, objectives={"one": OBJECTIVES["one"], "other": other}, **settings)
        with_weights(trainer, lambda row: (1, 0))
        torch.manual_seed(5)
        inputs = trainer._prepare_inputs(generation_batch(trainer))
        loss = loss_of(trainer, inputs)
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: layer.D.grad[0] for name, layer in adapted_layers(trainer.model).items()})
    single = morlhf.build_trainer(
        morlhf.Config(algorithm="grpo", beta=0.5, steps=2, num_generations=4, learning_rate=1e-3, **settings),
        problem_of(many_tokens), workspace(folder), weights=Weights((1.0, 0.0)),
    )  # fmt: skip
    torch.manual_seed(5)
    loss = loss_of(single, single._prepare_inputs(generation_batch(single)))
    loss.backward()
    assert losses[0] == losses[1] and losses[0] == pytest.approx(loss.item(), abs=1e-6)
    for name, parameter in single.model.named_parameters():
        if name.endswith("proj.weight"):
            assert torch.allclose(gradients[0][name.removesuffix(".weight")], parameter.grad, atol=1e-5)


def test_a_score_that_does_not_apply_adds_nothing() -> None:
    assert conditioned.weighted_sum((0.25, 0.75), (2.0, 4.0)) == 3.5
    assert conditioned.weighted_sum((0.25, 0.75), (None, 4.0)) == 3.0
    assert conditioned.weighted_sum((0.25, 0.75), (None, None)) is None


# ------------------------------------------------------------------------------------------------------ one run, all w


def regret_shares(family: Any, reference: str, weights: Sequence[Weights]) -> list[float]:
    """Mean `KL(pi || pi*)` over prompts, over the reference's, at each preference."""
    shares = []
    for w in weights:
        model, ours, theirs = family.policy(w).path, 0.0, 0.0
        for prompt in PROMPTS:
            ref = next_distribution(reference, prompt)
            best = optimum(ref, scalarised(prompt, w), beta=BETA)
            ours += kl(next_distribution(model, prompt), best)
            theirs += kl(ref, best)
        shares.append(ours / theirs)
    return shares


SETTINGS: dict[str, dict[str, Any]] = {
    "panacea": {"learning_rate": 2e-2, "steps": 60},
    "pblora": {"learning_rate": 2e-2, "steps": 60},
    "joint_soup": {"learning_rate": 4e-3, "steps": 50},
}


@pytest.mark.parametrize("method", METHODS)
def test_one_run_serves_every_preference(method: str, reference: str, tmp_path: Path) -> None:
    module, ledger = METHODS[method], Ledger()
    settings = {**RL, "batch_size": 96, "num_generations": 8, "scheduler": "linear", **SETTINGS[method]}
    data = {"reference": reference, "weights": ASKED, "prompts": PROMPT_ROWS}
    family = fit(module, module.Config(**settings), out=tmp_path, ledger=ledger, **data)
    shares = regret_shares(family, reference, ASKED)
    assert max(shares) < 0.05
    assert ledger.samples_drawn == settings["steps"] * 96 and ledger.scores_read == 2 * ledger.samples_drawn
    # It is the preference that makes the difference: asked for the swapped weights it is far off.
    swapped = type("", (), {"policy": lambda self, w: family.policy(Weights(w.values[::-1]))})()
    assert min(regret_shares(swapped, reference, ASKED[::2])) > 10 * max(shares)
    assert family.optimises["1,0"].startswith("E[w.r] - 0.5 KL(pi||ref) at w = 1,0, on-policy grpo")
    before = ledger.tokens
    fit(module, module.Config(**settings), out=tmp_path, ledger=ledger, **{**data, "weights": [Weights((0.1, 0.9))]})
    assert ledger.tokens == 2 * before  # reused for a preference that was not listed, and charged


@pytest.mark.parametrize("method", METHODS)
def test_three_objectives(method: str, reference: str, tmp_path: Path) -> None:
    def three(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        assert all(len(w) == 3 and sum(w) == pytest.approx(1) for w in columns["w"])
        return [None if i % 2 else 0.5 for i in range(len(prompts))]  # it does not always apply

    module, asked = METHODS[method], [Weights((0.2, 0.3, 0.5)), Weights((0.0, 0.0, 1.0))]
    config = module.Config(**{**RL, "steps": 2, "num_generations": 8})
    data = {"reference": reference, "prompts": PROMPT_ROWS, "objectives": {**OBJECTIVES, "three": three}}
    family = fit(module, config, weights=asked, out=tmp_path, **data)
    assert not same_weights(family.policy(asked[0]).path, family.policy(asked[1]).path)


class Interrupting:
    """An objective that works `calls` times and then stands for a killed process."""

    def __init__(self, calls: int) -> None:
        self.__name__, self.calls = "one", calls

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return OBJECTIVES["one"](prompts, completions, **columns)


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_resumes_to_the_same_weights(method: str, reference: str, tmp_path: Path) -> None:
    module = METHODS[method]
    settings = {**RL, "steps": 6, "num_generations": 8, "save_steps": 2, "gradient_accumulation": 2}
    data = {"reference": reference, "weights": ASKED, "prompts": PROMPT_ROWS}
    whole = fit(module, module.Config(**settings), out=tmp_path / "whole", **data)
    objectives = {**OBJECTIVES, "one": Interrupting(5)}
    with pytest.raises(KeyboardInterrupt):
        fit(module, module.Config(**settings), out=tmp_path / "cut", objectives=objectives, **data)
    assert list((tmp_path / "cut" / "adapter.partial" / "checkpoints").glob("checkpoint-4"))
    cut = fit(module, module.Config(**settings), out=tmp_path / "cut", **data)
    other = fit(module, module.Config(**{**settings, "seed": 1}), out=tmp_path / "other", **data)
    for w in ASKED:
        assert same_weights(whole.policy(w).path, cut.policy(w).path)
        assert not same_weights(whole.policy(w).path, other.policy(w).path)
    assert not list((tmp_path / "cut").rglob("checkpoint-*"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": "online"}, "data must be"),
        ({"draw": "row"}, "draw must be"),
        ({"aggregate": "max"}, "aggregate must be"),
        ({"concentration": 0.0}, "concentration must be above 0"),
        ({"adam_beta2": 1.0}, "adam_beta2 must be in"),
        ({"lora_r": 4}, "leave lora_r at 0"),
        ({"num_generations": 5}, "divide into groups"),
        ({"labels": "given", "aggregate": "scalarised"}, "given labels follow one objective"),
        ({"data": "pairs", "labels": "given", "tau": 0.0}, "above 0"),
        ({"prompts": None}, "needs prompts"),
        ({"data": "pairs"}, "needs comparisons"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], words: str, reference: str, tmp_path: Path) -> None:
    rows = change.pop("prompts", PROMPT_ROWS)
    with pytest.raises(UserError, match=words):
        fit(
            panacea,
            panacea.Config(**{**RL, "num_generations": 8, **change}),
            reference=reference,
            weights=ASKED,
            out=tmp_path,
            prompts=rows,
        )
    with pytest.raises(UserError, match="3 numbers"):
        fit(
            panacea,
            panacea.Config(**RL),
            reference=reference,
            weights=[Weights((0.2, 0.3, 0.5))],
            out=tmp_path,
            prompts=PROMPT_ROWS,
        )
