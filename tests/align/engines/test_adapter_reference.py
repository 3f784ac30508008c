"""A LoRA adapter as the reference: the policy starts at base + adapter, and that is what its KL is measured to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from align.data.comparisons import Pair
from align.engines.on_policy.actor_critic import ActorCritic
from align.engines.pairs import dpo_trainer
from align.errors import UserError
from align.methods import dpo, kto, morlhf, ppo
from align.policies.base import ModelPolicy
from align.preferences import Weights
from factories.made_models import make_adapter
from factories.tiny_bandit import PAIRS, PROMPT_ROWS, PROMPTS, RL, fit, pair_rows

MIXED = Weights((0.5, 0.5))
STILL = {"learning_rate": 1e-12, "logging_steps": 1}


@pytest.fixture(scope="module")
def adapter(reference: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_adapter(reference, tmp_path_factory.mktemp("adapter") / "a", r=2, seed=5)


def logprobs(path: str) -> list[float]:
    policy = ModelPolicy(path)
    return policy.sequence_logprobs([PROMPTS[0]] * 2, [" A", " C"])


def test_an_adapter_is_another_policy_than_its_base(adapter: str, reference: str) -> None:
    assert logprobs(adapter) != pytest.approx(logprobs(reference), abs=0.1)


@pytest.mark.parametrize("lora_r", [0, 2])
def test_pairs_are_trained_against_base_and_adapter(lora_r: int, adapter: str, tmp_path: Path) -> None:
    config = dpo.Config(**{**PAIRS, **STILL, "epochs": 1.0}, lora_r=lora_r)
    family = fit(dpo, config, reference=adapter, weights=[MIXED], out=tmp_path, comparisons=pair_rows(64))
    place = family.points[MIXED.label]
    assert logprobs(place) == pytest.approx(logprobs(adapter), abs=1e-5)  # the start, which a rate of 0 does not leave
    loss = json.loads((Path(place).parent / "run.json").read_text())["metrics"]["loss"]
    assert loss == pytest.approx(0.693147, abs=1e-4)  # -log sigmoid(0): policy and reference are the same
    if lora_r:
        written = json.loads((Path(place) / "adapter_config.json").read_text())
        assert written["base_model_name_or_path"] == adapter


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
@pytest.mark.parametrize("lora_r", [0, 2])
def test_on_policy_training_starts_at_no_kl(algorithm: str, lora_r: int, adapter: str, tmp_path: Path) -> None:
    kl = {} if algorithm == "rloo" else {"kl": "token"}
    config = morlhf.Config(**{**RL, **STILL, "steps": 1, "algorithm": algorithm, "lora_r": lora_r, **kl})
    family = fit(morlhf, config, reference=adapter, weights=[MIXED], out=tmp_path, prompts=PROMPT_ROWS)
    run = json.loads((Path(family.points[MIXED.label]).parent / "run.json").read_text())
    assert abs(run["metrics"]["kl"]) < 1e-6
    assert logprobs(family.points[MIXED.label]) == pytest.approx(logprobs(adapter), abs=1e-5)


@pytest.mark.parametrize("method", [kto, ppo])
def test_kto_and_ppo_take_it_as_well(method: Any, adapter: str, tmp_path: Path) -> None:
    if method is kto:
        config: Any = kto.Config(beta=0.5, batch_size=8, epochs=1.0, tau=0.4, labels="scalarised", **STILL)
        rows: dict[str, Any] = {"comparisons": pair_rows(16)}
    else:
        config = ppo.Config(beta=0.5, steps=1, batch_size=24, num_generations=12, max_completion_length=1, **STILL)
        rows = {"prompts": PROMPT_ROWS}
    family = fit(method, config, reference=adapter, weights=[MIXED], out=tmp_path, **rows)
    assert logprobs(family.points[MIXED.label]) == pytest.approx(logprobs(adapter), abs=1e-5)


def test_settings_of_the_model_reach_it(reference: str, tmp_path: Path) -> None:
    config = dpo.Config(
        **PAIRS, lora_r=2, lora_targets=("q_proj",), lora_dropout=0.25, attn_implementation="eager",
        gradient_checkpointing=True,
    )  # fmt: skip
    pairs = [Pair("0", PROMPTS[0], " A", " C", False)]
    trainer = dpo_trainer(pairs, config=config, reference=reference, beta=0.5, folder=tmp_path)
    drops = [m.p for m in trainer.model.modules() if isinstance(m, torch.nn.Dropout) and m.p]
    assert drops == [0.25] and trainer.args.gradient_checkpointing  # one layer, one adapted matrix
    assert trainer.model.config._attn_implementation == "eager"
    model = ActorCritic(reference, ppo.Config(beta=0.5, lora_r=2, lora_targets=("q_proj",), dtype="bfloat16")).policy
    adapted = {name.split(".lora_")[0].split(".")[-1] for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted == {"q_proj"}
    assert {p.dtype for n, p in model.named_parameters() if "lora_" not in n} == {torch.bfloat16}
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float8"}, "dtype must be one of auto, bfloat16, float32"),
        ({"lora_r": 0, "lora_targets": ("q_proj",)}, "lora_r is 0"),
        ({"lora_r": 0, "lora_dropout": 0.1}, "lora_r is 0"),
        ({"lora_r": 2, "lora_targets": ()}, "lora_targets is empty"),
        ({"lora_r": 2, "lora_dropout": 1.0}, "lora_dropout"),
        ({"lora_r": 2, "load_in_4bit": True}, "load_in_4bit needs"),
        ({"lora_r": 2, "lora_targets": ("query",)}, "no layer of the model is called 'query'; it has"),
        ({"lora_r": 2, "lora_targets": ("lm_head", "q_proj")}, "lora_targets: lm_head is the output, .* leave it out"),
    ],
)
def test_settings_that_mean_nothing_are_one_line(
    change: dict[str, Any], message: str, reference: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        fit(
            dpo, dpo.Config(**PAIRS, **change), reference=reference, weights=[MIXED], out=tmp_path,
            comparisons=pair_rows(8),
        )  # fmt: skip


def test_what_samples_has_no_dropout(reference: str, tmp_path: Path) -> None:
    config = morlhf.Config(**RL, lora_r=2, lora_dropout=0.1)
    with pytest.raises(UserError, match="set lora_dropout to 0"):
        fit(morlhf, config, reference=reference, weights=[MIXED], out=tmp_path, prompts=PROMPT_ROWS)
