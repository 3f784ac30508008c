"""Adapters as models: merged they are what base and adapter are side by side, whichever matrices they change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from align.errors import UserError
from align.models import backbones, load_model, load_scorer, load_tokenizer
from align.models.load import load_to_read, load_with_adapter
from align.models.stored import precision
from align.models.stored.precision import frozen_dtype, trained_dtype
from align.objectives import RewardModelObjective
from align.policies.soups import merge
from evals.backends.reward_model import RewardBackend, is_reward_model

IDS = torch.tensor([[5, 60, 7, 90]])


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids).logits


def adapter(base: Path | str, folder: Path, **options: Any) -> tuple[str, torch.Tensor]:
    """An adapter directory with random weights, and the logits of base + adapter as PEFT computes them."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "o_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(load_model(base), LoraConfig(**{**settings, **options}))
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    expected = logits(model)
    model.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    return str(folder), expected


@pytest.mark.parametrize(
    "targets",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [5, 60]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"use_rslora": True},
        {"layer_replication": [[0, 1], [0, 2]]},
    ],
    ids=lambda value: " ".join(map(str, next(iter(value.items())))),
)
def test_a_merged_adapter_is_base_and_adapter_also_when_saved(
    targets: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    folder, expected = adapter(tiny_model, tmp_path / "a", **targets)
    model = load_model(folder)
    torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=1e-4)
    assert model.config._name_or_path == folder
    model.save_pretrained(tmp_path / "merged")
    load_tokenizer(folder).save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(load_model(tmp_path / "merged")), expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(logits(load_with_adapter(folder)), expected, atol=2e-5, rtol=1e-4)


def test_an_adapter_on_an_adapter_is_read_through_both(tiny_model: Path, tmp_path: Path) -> None:
    first, _ = adapter(tiny_model, tmp_path / "first")
    second, expected = adapter(first, tmp_path / "second", r=2)
    assert json.loads((Path(second) / "adapter_config.json").read_text())["base_model_name_or_path"] == first
    torch.testing.assert_close(logits(load_to_read(second)), expected, atol=2e-5, rtol=1e-4)


def test_runs_that_are_moved_as_a_whole_find_their_base(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from align.models import attach_lora, save_model
    from align.models.stored.adapters import base_of

    shutil.copytree(tiny_model, tmp_path / "runs" / "sft")
    monkeypatch.chdir(tmp_path)
    model = attach_lora(load_model("runs/sft"), 2)
    save_model(model, load_tokenizer("runs/sft"), Path("runs/dpo/model"))
    monkeypatch.chdir("/")
    assert base_of(tmp_path / "runs" / "dpo" / "model") == str(tmp_path / "runs" / "sft")
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert base_of(tmp_path / "elsewhere" / "dpo" / "model") == str(tmp_path / "elsewhere" / "sft")
    shutil.rmtree(tmp_path / "elsewhere" / "sft")
    with pytest.raises(UserError, match="sft does not exist"):
        load_model(tmp_path / "elsewhere" / "dpo" / "model")


def extended(base: Path, folder: Path) -> tuple[str, torch.Tensor]:
    """An adapter of a model with two more tokens, whose embeddings PEFT saves beside the factors."""
    from peft import LoraConfig, get_peft_model

    tokenizer, model = load_tokenizer(base), load_model(base)
    tokenizer.add_tokens(["<x0>", "<x1>"], special_tokens=True)
    torch.manual_seed(7)
    model.resize_token_embeddings(len(tokenizer))
    settings = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(model, settings)
    expected = logits(adapted, torch.tensor([[5, len(tokenizer) - 1, 7]]))
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), expected


def test_an_extended_vocabulary_is_read_and_its_soup_refused_or_made_whole(tiny_model: Path, tmp_path: Path) -> None:
    (a, expected), (b, _) = extended(tiny_model, tmp_path / "a"), extended(tiny_model, tmp_path / "b")
    ids = torch.tensor([[5, len(load_tokenizer(a)) - 1, 7]])
    torch.testing.assert_close(logits(load_model(a), ids), expected)
    with pytest.raises(UserError, match="beside its factors, which do not add up; use adapter_merge: full"):
        merge([a, b], weights=[0.5, 0.5], out=tmp_path / "soup")
    whole = merge([a, b], weights=[0.5, 0.5], out=tmp_path / "whole", adapter_merge="full")
    torch.testing.assert_close(logits(load_model(whole), ids), expected, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------- reward models


def scorer_adapter(base: Path | str, folder: Path) -> tuple[str, torch.Tensor]:
    """A reward model as TRL saves one that was trained with LoRA, and its scores of IDS."""
    from peft import LoraConfig, get_peft_model

    tokenizer = load_tokenizer(base)
    torch.manual_seed(3)
    model = load_scorer(base, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    settings = LoraConfig(
        task_type="SEQ_CLS", r=4, target_modules=["q_proj"], modules_to_save=["score"], init_lora_weights=False
    )
    adapted = get_peft_model(model, settings)
    expected = logits(adapted)
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), expected


def test_a_reward_model_saved_as_an_adapter_is_a_reward_model(tiny_model: Path, tmp_path: Path) -> None:
    folder, expected = scorer_adapter(tiny_model, tmp_path / "rm")
    tokenizer = load_tokenizer(folder)
    state = torch.random.get_rng_state()
    model = load_scorer(folder, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    assert torch.equal(torch.random.get_rng_state(), state)  # the base's new head is no draw of the caller's
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)
    objective = RewardModelObjective(folder)
    assert is_reward_model(folder) and not is_reward_model(str(tiny_model))
    assert RewardBackend.load(folder).model.config.num_labels == 1
    (value,) = objective(prompts=["tea"], completions=[" boats"])
    ids = torch.tensor([tokenizer("tea boats" + tokenizer.eos_token)["input_ids"]])
    assert value == pytest.approx(float(logits(model, ids)[0, 0]), abs=1e-5)
    with pytest.raises(UserError, match="is a reward model"):
        load_model(folder)


def test_a_policy_adapter_starts_a_reward_model_and_is_none(tiny_model: Path, tmp_path: Path) -> None:
    folder, _ = adapter(tiny_model, tmp_path / "a")
    tokenizer = load_tokenizer(folder)
    scorer = load_scorer(folder, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    hidden = load_model(folder).base_model(IDS).last_hidden_state
    torch.testing.assert_close(scorer.base_model(IDS).last_hidden_state, hidden)
    with pytest.raises(UserError, match="is a language model, not a reward model"):
        RewardModelObjective(folder)(prompts=["tea"], completions=[" boats"])
    trained, expected = scorer_adapter(folder, tmp_path / "rm")  # a reward model's adapter on a policy's adapter
    again = load_scorer(trained, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    torch.testing.assert_close(logits(again), expected, atol=1e-5, rtol=1e-4)


def test_a_reward_adapter_without_its_head_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder, _ = scorer_adapter(tiny_model, tmp_path / "rm")
    file = Path(folder) / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "lora_" in k}, file, {"format": "pt"})
    with pytest.raises(UserError, match="without its head"):
        load_scorer(folder, pad_token_id=0, eos_token_id=1)


# ------------------------------------------------------------------------------------------- number types and padding


def test_frozen_weights_are_bfloat16_on_a_gpu_and_float32_elsewhere(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = adapter(tiny_model, tmp_path / "a")
    assert frozen_dtype(tiny_model) == "float32" and frozen_dtype(tiny_model, "bfloat16") == "bfloat16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert frozen_dtype(tiny_model) == frozen_dtype(folder) == "float32"  # too small to save anything
    assert frozen_dtype("somebody/a-model") == "bfloat16"
    monkeypatch.setattr(precision, "SMALL_BYTES", 1000)
    assert frozen_dtype(tiny_model) == frozen_dtype(folder) == "bfloat16"
    assert trained_dtype(tiny_model, "auto", adapter=True) == "bfloat16"
    assert trained_dtype(tiny_model, "auto", adapter=False) == "float32"
    assert trained_dtype(tiny_model, "bfloat16", adapter=False) == "bfloat16"


def test_a_padding_token_outside_the_model_is_another_one(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    load_model(tiny_model).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == tokenizer.eos_token
    assert "padding with '<|end|>' instead" in capsys.readouterr().err
    tokenizer.add_special_tokens({"eos_token": "[END]"})
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="resize its embeddings"):
        load_tokenizer(tmp_path)


def test_a_front_of_large_adapters_reads_its_base_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a, want_a), (b, want_b) = (
        adapter(tiny_model, tmp_path / name, target_modules=[layer])
        for name, layer in (("a", "q_proj"), ("b", "v_proj"))
    )
    tied, want_tied = adapter(tiny_model, tmp_path / "c", init_lora_weights="pissa")
    monkeypatch.setattr(precision, "SMALL_BYTES", 1000)
    lending, read = backbones.Lending(), []
    monkeypatch.setattr(backbones, "load_to_read", lambda path: read.append(path) or load_to_read(path))
    plain = load_model(tiny_model).state_dict()
    for folder, expected in ((a, want_a), (b, want_b), (a, want_a)):
        model = lending.borrow(folder)
        torch.testing.assert_close(logits(model), expected)
        other = lending.borrow(b)  # while it is lent, another policy has a base of its own
        torch.testing.assert_close(logits(other), want_b, atol=2e-5, rtol=1e-4)
        lending.give_back(other)
        lending.give_back(model)
    assert [path for path in read if path != b] == [str(tiny_model)]
    torch.testing.assert_close(logits(lending.borrow(tied)), want_tied, atol=2e-5, rtol=1e-4)  # it changes its base
    left = lending._base
    assert left is not None and all(torch.equal(value, plain[name]) for name, value in left.state_dict().items())
