"""Reward models of both kinds: the chosen side scored higher, the best epoch kept also over an interruption."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from align.errors import UserError
from align.models import ModelConfig, load_tokenizer
from align.runs import Ledger
from align.training.reward_model import RewardModelConfig, preference_accuracy, train_reward_model
from factories.training_runs import SHAPE, interrupted, read

ENCODER = ModelConfig(architecture="bert", hidden=32, layers=2, heads=2, context=128)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora_r": 4, "learning_rate": 2e-2},
        {"encoder": ENCODER},
        {"dropout": 0.1, "weight_decay": 0.1, "center": 0.01},
    ],
    ids=["decoder", "lora", "encoder", "regularised"],
)
def test_a_reward_model_learns_to_score_the_chosen_side_higher(
    changes: dict[str, Any], tiny_model: Path, tiny_rows: dict[str, Path], tmp_path: Path
) -> None:
    from align.objectives import RewardModelObjective

    rows = read(tiny_rows["comparisons"])
    config = RewardModelConfig(**{"max_steps": 15, "learning_rate": 5e-3, "save_steps": None, **changes})
    metrics = train_reward_model(
        config, model=tiny_model, rows=rows[:40], validation=rows[40:], out=tmp_path, ledger=Ledger()
    )
    assert metrics["accuracy"] == metrics["train_accuracy"] == 1.0
    assert metrics["log_loss"] < 0.5 < math.log(2)
    objective = RewardModelObjective(tmp_path)
    chosen, rejected = (objective([r["prompt"] for r in rows], [r[k] for r in rows]) for k in ("chosen", "rejected"))
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]  # type: ignore[operator]
    assert min(margins) > 0
    # The reported loss is Bradley and Terry's, on the scores that the objective gives.
    assert metrics["log_loss"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins[40:]) / 8, rel=1e-4)


def test_a_gpt2_backbone_works_too_with_an_adapter(
    tiny_rows: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    from align.models import build_model, save_model
    from align.objectives import RewardModelObjective

    shape = ModelConfig(architecture="gpt2", hidden=32, layers=2, heads=2, context=128)
    tokenizer, rows = load_tokenizer(tiny_model), read(tiny_rows["comparisons"])
    start = save_model(build_model(shape, tokenizer, seed=0), tokenizer, tmp_path / "start")
    config = RewardModelConfig(max_steps=15, learning_rate=2e-2, lora_r=4, save_steps=None)
    out = tmp_path / "out"
    metrics = train_reward_model(config, model=start, rows=rows, validation=rows, out=out, ledger=Ledger())
    assert metrics["accuracy"] == 1.0
    assert len(set(RewardModelObjective(out)(["explain bread :"] * 2, [" sure", " sorry"]))) == 2


@pytest.mark.parametrize("encoder", [None, ENCODER], ids=["decoder", "encoder"])
def test_dropout_of_a_reward_model_is_not_undone_by_trl(
    encoder: ModelConfig | None, tiny_model: Path, tiny_rows: dict[str, Path], tmp_path: Path
) -> None:
    losses = []
    for dropout in (0.0, 0.5):
        config = RewardModelConfig(
            encoder=encoder, dropout=dropout, max_steps=1, learning_rate=0.0, scheduler="constant", save_steps=None
        )
        rows = read(tiny_rows["comparisons"])
        metrics = train_reward_model(config, model=tiny_model, rows=rows, out=tmp_path / str(dropout), ledger=Ledger())
        losses.append(metrics["loss"])
    assert losses[0] != losses[1]


def test_swapped_comparisons_turn_the_accuracy_over(
    tiny_model: Path, tiny_rows: dict[str, Path], tmp_path: Path
) -> None:
    from align.models import load_scorer

    rows = read(tiny_rows["comparisons"])
    config = RewardModelConfig(max_steps=15, learning_rate=5e-3, save_steps=None)
    train_reward_model(config, model=tiny_model, rows=rows, out=tmp_path, ledger=Ledger())
    tokenizer = load_tokenizer(tmp_path)
    model = load_scorer(tmp_path, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    ties = [{**row, "chosen": row["rejected"]} for row in rows]
    assert preference_accuracy(model, tokenizer, rows)["accuracy"] == 1.0
    assert preference_accuracy(model, tokenizer, swapped)["accuracy"] == 0.0
    tied = preference_accuracy(model, tokenizer, ties)
    assert (tied["accuracy"], tied["n"]) == (0.5, 48) and tied["log_loss"] == pytest.approx(math.log(2))


def test_the_best_epoch_is_kept_also_over_an_interruption(
    tiny_model: Path, tiny_rows: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation is the training rows swapped: the less it learned the better, so the first of three epochs is best."""
    from align.training import reward_model as stage

    rows = read(tiny_rows["comparisons"])
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    shared = {"batch_size": 16, "learning_rate": 1e-3, "dropout": 0.1, "seed": 3, "logging_steps": 1, "warmup": 0.0}

    def call(name: str, **changes: Any) -> dict[str, Any]:
        config = RewardModelConfig(**{**shared, "epochs": 3, "scheduler": "constant", "save_steps": 2, **changes})
        validation = swapped if config.choose_epoch else rows
        out = tmp_path / name
        return train_reward_model(config, model=tiny_model, rows=rows, validation=validation, out=out, ledger=Ledger())

    def weights(name: str) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(tmp_path / name / "model" / "model.safetensors")

    whole = call("whole", choose_epoch=True)
    call("one", epochs=1)
    last = call("last")
    assert whole["epoch"] == 1 and last["epoch"] is None
    first_epoch, chosen, final = weights("one"), weights("whole"), weights("last")
    assert all(torch.equal(chosen[name], first_epoch[name]) for name in chosen)
    assert not all(torch.equal(chosen[name], final[name]) for name in chosen)
    interrupted(monkeypatch, stage, 5, lambda: call("again", choose_epoch=True))
    assert call("again", choose_epoch=True) == whole
    again = weights("again")
    assert all(torch.equal(chosen[name], again[name]) for name in chosen)
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == ["log.jsonl", "model"]


def test_long_pairs_are_counted_and_wrong_rows_are_named(tiny_model: Path, tmp_path: Path) -> None:
    row = {"prompt": "a", "chosen": " b", "rejected": " c"}
    long = {**row, "rejected": " c" * 100}
    config = RewardModelConfig(max_steps=1, max_length=16, save_steps=None)
    metrics = train_reward_model(config, model=tiny_model, rows=[row, long], out=tmp_path, ledger=Ledger())
    assert (metrics["trained_on"], metrics["too_long"], metrics["accuracy"]) == (1, 1, None)
    for rows, options, said in (
        ([row, {"prompt": "a", "chosen": "b"}], {}, "row 2 has no rejected"),
        ([long], {"max_length": 16}, "none of the 1 comparisons fits 16 tokens"),
        ([row], {"choose_epoch": True}, "needs validation"),
        ([row], {"encoder": SHAPE}, "'llama'"),
    ):
        with pytest.raises(UserError, match=said):
            train_reward_model(RewardModelConfig(**options), model=tiny_model, rows=rows, out=tmp_path, ledger=Ledger())
