"""Whole PPO runs: the optimum, the ledger, seeds, interruption, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from align.engines.on_policy.rollouts import read
from align.errors import UserError
from align.methods import ppo
from align.models import load_model
from align.policies.base import ModelPolicy
from align.preferences import Weights
from align.runs import Ledger, open_run
from factories.made_ppo import SETTINGS, enumerated, make_trainer
from factories.tiny_bandit import (
    BETA,
    OBJECTIVES,
    PROMPT_ROWS,
    PROMPTS,
    WORDS,
    fit,
    kl,
    make_reference,
    next_distribution,
    optimum,
    same_weights,
    scalarised,
)


@pytest.fixture(scope="module")
def many_tokens(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose responses end at the end token only."""
    return make_reference(tmp_path_factory.mktemp("many") / "model", one_token=False, sharpness=3.0)


# --------------------------------------------------------------------------------------------------- whole runs


def regrets(model: str, reference: str, weights: Sequence[float]) -> tuple[float, float]:
    """Mean `beta KL(pi || pi*)` over prompts of a model, and of the reference."""
    ours, theirs = 0.0, 0.0
    for prompt in PROMPTS:
        ref = next_distribution(reference, prompt)
        best = optimum(ref, scalarised(prompt, weights), beta=BETA)
        ours += BETA * kl(next_distribution(model, prompt), best) / len(PROMPTS)
        theirs += BETA * kl(ref, best) / len(PROMPTS)
    return ours, theirs


@pytest.mark.parametrize("changes", [{}, {"lam": 0.95, "whiten": True, "value_clip": 0.2, "num_generations": 4}])
def test_ppo_moves_to_the_optimum_of_j(changes: dict[str, Any], reference: str, tmp_path: Path) -> None:
    weights, ledger = Weights((0.3, 0.7)), Ledger()
    config = ppo.Config(**{**SETTINGS, **changes})
    family = fit(ppo, config, reference=reference, weights=[weights], out=tmp_path, prompts=PROMPT_ROWS, ledger=ledger)
    model = family.points[weights.label]
    regret, of_reference = regrets(model, reference, weights)
    assert of_reference > 0.02
    assert regret < 0.01 * of_reference
    assert regret < regrets(model, reference, (0.7, 0.3))[0] / 10
    metrics = open_run(Path(model).parent).metrics
    best = [optimum(next_distribution(reference, p), scalarised(p, weights), beta=BETA) for p in PROMPTS]
    spent = sum(kl(b, next_distribution(reference, p)) for b, p in zip(best, PROMPTS, strict=True)) / len(PROMPTS)
    assert metrics["kl"] == pytest.approx(spent, abs=0.05)
    assert metrics["value_error"] < 0.06 < metrics["reward"] / 3  # at the optimum each prompt's return is a constant
    total = 0.3 * metrics["rewards/one/mean"] + 0.7 * metrics["rewards/two/mean"] - BETA * metrics["kl"]
    assert metrics["reward"] == pytest.approx(total, abs=1e-5)  # trl#5352: the logged total ignored the weights
    assert ledger.samples_drawn == 40 * 96 and ledger.scores_read == 2 * 40 * 96


def test_the_ledger_counts_every_pass(many_tokens: str, tmp_path: Path) -> None:
    seen: list[int] = []

    def spy(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        lengths = [len(ids) for ids in columns["completion_ids"]]
        assert columns["id"] == [str(PROMPTS.index(p)) for p in prompts]
        assert [len(c.split()) for c in completions] == [
            sum(WORDS[i] not in ("<pad>", "<end>") for i in ids) for ids in columns["completion_ids"]
        ]
        seen.append(sum(len(p.split()) for p in prompts) + sum(lengths))
        return [1.0 + n for n in lengths]

    ledger = Ledger()
    config = ppo.Config(
        **{**SETTINGS, "steps": 3, "batch_size": 8, "gradient_accumulation": 2, "max_completion_length": 4, "epochs": 3}
    )
    weights = [Weights((1.0, 0.0)), Weights((0.5, 0.5))]
    fit(
        ppo, config, reference=many_tokens, weights=weights, out=tmp_path, prompts=PROMPT_ROWS, ledger=ledger,
        objectives={"one": spy, "two": lambda prompts, *_, **__: [0.0] * len(prompts)},
    )  # fmt: skip
    assert len(seen) == 6
    assert ledger.samples_drawn == 2 * 3 * 16 and ledger.scores_read == 3 * 3 * 16
    assert ledger.tokens == 3 * sum(seen)  # each of 3 epochs feeds each token once
    parameters = sum(p.numel() for p in load_model(many_tokens).parameters()) - 32 * len(WORDS)  # the input table
    assert ledger.flops == 6 * parameters * 3 * sum(seen) + 3 * 2 * parameters * sum(seen)


def never(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    raise AssertionError("an objective of weight 0 was asked")


def test_a_vertex_never_asks_the_other_objective(reference: str, tmp_path: Path) -> None:
    config, ledger = ppo.Config(**{**SETTINGS, "steps": 2}), Ledger()
    objectives = {"one": never, "two": OBJECTIVES["two"]}
    fit(
        ppo, config, reference=reference, weights=[Weights((0.0, 1.0))], out=tmp_path, prompts=PROMPT_ROWS,
        objectives=objectives, ledger=ledger,
    )  # fmt: skip
    assert ledger.scores_read == 2 * 96


def test_three_objectives_with_one_unused_are_two(reference: str, tmp_path: Path) -> None:
    """RiC's MORLHF script forces equal weights whenever there are three rewards."""
    config, data = ppo.Config(**{**SETTINGS, "steps": 3}), {"reference": reference, "prompts": PROMPT_ROWS}
    two = fit(ppo, config, weights=[Weights((0.3, 0.7))], out=tmp_path / "2", **data)
    three = fit(
        ppo, config, weights=[Weights((0.3, 0.7, 0.0))], out=tmp_path / "3", objectives={**OBJECTIVES, "three": never},
        **data,
    )  # fmt: skip
    assert same_weights(two.points["0.3,0.7"], three.points["0.3,0.7,0"])
    used = fit(
        ppo, config, weights=[Weights((0.3, 0.35, 0.35))], out=tmp_path / "u",
        objectives={**OBJECTIVES, "three": OBJECTIVES["two"]}, **data,
    )  # fmt: skip
    for prompt in PROMPTS:  # a third objective counts by its weight
        pair = (next_distribution(f.points[label], prompt) for f, label in ((two, "0.3,0.7"), (used, "0.3,0.35,0.35")))
        assert max(abs(a - b) for a, b in zip(*pair, strict=True)) < 1e-3


def test_the_seed_decides_everything(reference: str, tmp_path: Path) -> None:
    weights, points = Weights((0.5, 0.5)), []
    data = {"reference": reference, "weights": [weights], "prompts": PROMPT_ROWS[:1]}  # the order is no matter
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(points))  # what happened before does not matter
        config = ppo.Config(**{**SETTINGS, "steps": 3}, seed=seed)
        family = fit(ppo, config, out=tmp_path / name, **data)
        points.append(family.points[weights.label])
    assert same_weights(points[0], points[1])
    assert not same_weights(points[0], points[2])


def test_where_an_objective_does_not_apply_it_counts_as_its_groups_mean(reference: str, tmp_path: Path) -> None:
    def half(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float | None]:
        return [4.0 if i % 2 else None for i in range(len(prompts))]

    ledger, weights = Ledger(), Weights((0.5, 0.5))
    family = fit(
        ppo, ppo.Config(**{**SETTINGS, "steps": 1}), reference=reference, weights=[weights], out=tmp_path,
        prompts=PROMPT_ROWS, objectives={"half": half, "none": lambda p, *_, **__: [None] * len(p)}, ledger=ledger,
    )  # fmt: skip
    metrics = open_run(Path(family.points[weights.label]).parent).metrics
    assert (metrics["rewards/half/mean"], metrics["rewards/none/mean"]) == (4.0, 0.0)
    assert metrics["reward"] == pytest.approx(0.5 * 4.0, abs=1e-5)  # missing: the group's mean; no KL yet
    assert ledger.scores_read == 48


def test_lora_trains_an_adapter_against_its_backbone(many_tokens: str, tmp_path: Path) -> None:
    weights = Weights((0.5, 0.5))
    config = ppo.Config(**{**SETTINGS, "steps": 6, "max_completion_length": 2, "learning_rate": 2e-2}, lora_r=4)
    family = fit(ppo, config, reference=many_tokens, weights=[weights], out=tmp_path, prompts=PROMPT_ROWS)
    model = family.points[weights.label]
    assert (Path(model) / "adapter_config.json").is_file() and not (Path(model) / "model.safetensors").exists()
    (ours,), (theirs,) = (ModelPolicy(m).sequence_logprobs(["x :"], [" A"]) for m in (model, many_tokens))
    assert ours != theirs
    trainer = make_trainer(many_tokens, away=0.0, lora_r=4)
    batch, pairs = enumerated(2)
    with torch.no_grad():
        for name, parameter in trainer.actor.policy.named_parameters():
            if "lora_B" in name:
                parameter += 0.5
    base = read(load_model(many_tokens).eval(), batch)[0]
    assert torch.allclose(trainer.actor.read_reference(batch), base, atol=1e-5)
    assert (trainer.actor.read(batch)[0] - base).abs().max() > 0.1


def test_saved_models_keep_the_checkpoints_generation_config(reference: str, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    weights = Weights((0.5, 0.5))
    config = ppo.Config(**{**SETTINGS, "steps": 1})
    family = fit(ppo, config, reference=reference, weights=[weights], out=tmp_path, prompts=PROMPT_ROWS)
    was, is_now = (GenerationConfig.from_pretrained(m) for m in (reference, family.points[weights.label]))
    assert is_now.eos_token_id == was.eos_token_id == list(range(9))
    assert is_now.max_new_tokens == was.max_new_tokens


def test_a_killed_run_leaves_nothing_half_written(reference: str, tmp_path: Path) -> None:
    weights, calls = Weights((0.5, 0.5)), 0

    def killing(*args: Any, **columns: Any) -> list[float | None]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return OBJECTIVES["one"](*args, **columns)

    config, data = ppo.Config(**{**SETTINGS, "steps": 4}), {"reference": reference, "prompts": PROMPT_ROWS}
    whole = fit(ppo, config, weights=[weights], out=tmp_path / "whole", **data)
    with pytest.raises(KeyboardInterrupt):
        fit(ppo, config, weights=[weights], out=tmp_path / "cut", objectives={**OBJECTIVES, "one": killing}, **data)
    assert [p.name for p in (tmp_path / "cut" / "points").iterdir()] == ["0.5,0.5.partial"]
    again = fit(ppo, config, weights=[weights], out=tmp_path / "cut", **data)
    assert same_weights(whole.points[weights.label], again.points[weights.label])


def test_a_run_that_diverged_is_refused(reference: str, tmp_path: Path) -> None:
    config = ppo.Config(**{**SETTINGS, "steps": 8, "learning_rate": 1e30, "max_grad_norm": 0.0})
    with pytest.raises(UserError, match="training diverged"):
        fit(ppo, config, reference=reference, weights=[Weights((0.5, 0.5))], out=tmp_path, prompts=PROMPT_ROWS)


def test_the_claim_names_what_departs_from_j() -> None:
    claim: Callable[..., str] = lambda **c: ppo.describe(ppo.Config(**c), weights=Weights((0.3, 0.7)))  # noqa: E731
    exact = claim(epochs=1, minibatches=1, beta=0.2)
    assert "E[w.r] - 0.2 KL(pi||ref) at w = 0.3,0.7" in exact and "whole returns" in exact and "unscaled" in exact
    assert "surrogate" not in exact and "surrogate of J" in claim(epochs=2)
    assert "biased by the value's error" in claim(lam=0.95)
    assert "whitened per batch (J's direction" in claim(whiten=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minibatches": 7}, "96 samples a step do not divide by minibatches = 7"),
        ({"num_generations": 5}, "do not divide by num_generations = 5"),
        ({"clip": 0.0}, "clip must be between 0 and 1"),
        ({"lam": 1.5}, "lam must be in"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"value_learning_rate": -1.0}, "value_learning_rate must be at least 0"),
        ({"save_steps": 10}, "writes no checkpoints"),
    ],
)
def test_ppo_refuses_what_it_cannot_mean(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = ppo.Config(**{**SETTINGS, **changes})
    with pytest.raises(UserError, match=message):
        fit(ppo, config, reference="none", weights=[Weights((0.5, 0.5))], out=tmp_path, prompts=PROMPT_ROWS)


def test_prompts_must_be_there_and_fit(reference: str, tmp_path: Path) -> None:
    data = {"reference": reference, "weights": [Weights((0.5, 0.5))], "out": tmp_path}
    with pytest.raises(UserError, match="ppo needs prompts"):
        fit(ppo, ppo.Config(**SETTINGS), **data)
    config = ppo.Config(**{**SETTINGS, "max_completion_length": 15})
    with pytest.raises(UserError, match="18 tokens, but the model has 16 positions"):
        fit(ppo, config, prompts=PROMPT_ROWS, **data)
    with pytest.raises(UserError, match="prompt e has no token"):
        fit(ppo, ppo.Config(**SETTINGS), prompts=[*PROMPT_ROWS, {"id": "e", "prompt": " "}], **data)
