"""Reward models on one backbone, and what of a model is trained: for the tests of shared backbones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from align.models import load_scorer, load_tokenizer, lora_config, save_model
from align.objectives.shared_reward_model import SharedRewardModel
from factories.tiny_bandit import make_reference

NAMES = ("one", "two", "three")


def make_reward_model(base: str, folder: Path, *, seed: int, r: int = 2) -> str:
    """A run with the same random reward model twice: `adapter` (PEFT's own files) and `model`, merged."""
    from peft import get_peft_model

    torch.manual_seed(seed)
    tokenizer = load_tokenizer(base)
    scorer = load_scorer(base, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    model = get_peft_model(scorer, lora_config(scorer, r, task="SEQ_CLS"))
    for name, parameter in model.named_parameters():
        if "lora_" in name or (parameter.requires_grad and "score" in name):
            torch.nn.init.normal_(parameter, std=0.3)
    save_model(model, tokenizer, folder / "adapter")
    save_model(model.merge_and_unload(), tokenizer, folder / "model")
    return str(folder)


def make_base(folder: Path) -> str:
    """The backbone of all: the tiny bandit's, whose tokenizer reads any word."""
    make_reference(folder, one_token=False)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["unk_token"] = "D"  # a decoded completion has no leading space: prompt and first word become one
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return str(folder)


def make_runs(base: str, folder: Path) -> dict[str, str]:
    """Three reward models of different ranks."""
    return {name: make_reward_model(base, folder / name, seed=i, r=i + 1) for i, name in enumerate(NAMES)}


def shared(runs: dict[str, str], **options: Any) -> dict[str, SharedRewardModel]:
    return {name: SharedRewardModel(run, name=name, **options) for name, run in runs.items()}


def trainable(model: Any) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}
