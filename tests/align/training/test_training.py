"""align.training: every surprising default set, and pretraining that resumes bit for bit after a kill."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from align.errors import UserError
from align.models import ModelConfig, load_model, load_tokenizer
from align.runs import Ledger
from align.training import common
from align.training.bits import text_bits
from align.training.common import StageConfig, base_arguments, resume_point
from align.training.pretrain import PretrainConfig, pretrain
from factories.training_runs import SHAPE, half_written, read, same_weights


def test_several_visible_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer would put a copy of the model on each, and neither TRL's batches nor ours allow for that."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="2 GPUs are visible.*CUDA_VISIBLE_DEVICES=0"):
        base_arguments(tmp_path, StageConfig())


# ---------------------------------------------------------------------------------------------------------- arguments
def test_every_surprising_default_is_set(tmp_path: Path) -> None:
    from transformers import TrainingArguments
    from trl import DPOConfig, GRPOConfig, RewardConfig, RLOOConfig
    from trl import SFTConfig as TrlSFTConfig

    arguments = StageConfig(seed=7, save_steps=None, max_steps=3).arguments(tmp_path)
    for kind in (TrainingArguments, TrlSFTConfig, RewardConfig, DPOConfig, GRPOConfig, RLOOConfig):
        extra = {"num_generations": 2} if kind in (GRPOConfig, RLOOConfig) else {}
        made = kind(**arguments, **extra)
        assert (made.seed, made.data_seed, made.max_steps) == (7, 7, 3)
        assert made.bf16 is torch.cuda.is_available() and made.use_cpu is not torch.cuda.is_available()
        assert not made.gradient_checkpointing and not made.fp16 and made.report_to == []
        assert made.optim == "adamw_torch" and made.save_strategy == "no"
        assert made.logging_steps == 3  # a run shorter than the interval still logs its loss


def test_checkpoints_fall_on_logged_steps(tmp_path: Path) -> None:
    arguments = base_arguments(
        tmp_path, StageConfig(seed=0, learning_rate=1.0, batch_size=1, save_steps=25, logging_steps=10)
    )
    assert (arguments["save_strategy"], arguments["save_steps"], arguments["logging_steps"]) == ("steps", 25, 5)


def test_progress_is_a_line_now_and_then_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    from types import SimpleNamespace as State

    bar = common.Progress("sft")
    state = State(global_step=0, max_steps=10, is_world_process_zero=True)
    bar.on_train_begin(None, state, None)
    state.global_step = 4
    bar.on_log(None, state, None, logs={"loss": 1.25})
    bar.on_step_end(None, state, None)
    assert capsys.readouterr().err == ""
    bar.last_line -= 60
    bar.on_step_end(None, state, None)
    assert capsys.readouterr().err.startswith("sft: step 4 of 10, loss 1.25, ")


# --------------------------------------------------------------------------------------------------------- pretraining
def pretrain_config(**changes: Any) -> PretrainConfig:
    return PretrainConfig(
        model=SHAPE, max_steps=6, batch_size=4, gradient_accumulation=2, save_steps=2, logging_steps=2, **changes
    )


def test_pretraining_learns_charges_the_ledger_and_reports_bits_per_byte(
    tiny_rows: dict[str, Path], tmp_path: Path
) -> None:
    rows, ledger = read(tiny_rows["text"]), Ledger()
    config = PretrainConfig(
        model=SHAPE, vocab_size=300, max_steps=40, batch_size=8, learning_rate=1e-2, save_steps=None
    )
    metrics = pretrain(config, rows=rows[:40], validation=rows[40:], out=tmp_path, ledger=ledger)
    model, tokenizer = load_model(tmp_path / "model"), load_tokenizer(tmp_path / "model")
    assert metrics["bits_per_byte"] == pytest.approx(
        text_bits(model, tokenizer, [row["text"] for row in rows[40:]]).per_byte, rel=1e-5
    )
    assert metrics["bits_per_byte"] < 2.5 < math.log2(300) / 2  # far below an untrained model's
    assert metrics["loss"] < 2.0 and metrics["steps"] == 40
    assert ledger.tokens == 10 * metrics["tokens_per_epoch"] == 10 * 30 * 32  # 30 blocks are batches of 8, 8, 8, 6
    assert ledger.flops == pytest.approx(6 * metrics["parameters_without_tables"] * ledger.tokens)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "model", "tokenizer"]  # no checkpoint stays


def test_pretraining_after_a_kill_ends_with_the_same_weights(
    tiny_model: Path, tiny_rows: dict[str, Path], tmp_path: Path
) -> None:
    """A real SIGKILL at step 5 of 6 with checkpoints at 2 and 4, and half a checkpoint 6, with dropout on."""
    rows = read(tiny_rows["text"])
    whole = pretrain(pretrain_config(), rows=rows, out=tmp_path / "whole", ledger=Ledger(), tokenizer=tiny_model)
    code = f"""
import json, os, signal, sys
from pathlib import Path
from transformers import TrainerCallback
from align.models import ModelConfig
from align.runs import Ledger
from align.training import pretrain as stage

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

finish = stage.finish_trainer
stage.finish_trainer = lambda trainer, **k: finish(trainer, **k).add_callback(Kill())
rows = [json.loads(line) for line in Path({str(tiny_rows["text"])!r}).read_text().splitlines()]
config, tokenizer = stage.{pretrain_config()!r}, {str(tiny_model)!r}
stage.pretrain(config, rows=rows, out=Path({str(tmp_path / "killed")!r}), ledger=Ledger(), tokenizer=tokenizer)
"""
    killed = subprocess.run([sys.executable, "-c", code], timeout=120, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    half_written(tmp_path / "killed", 6)
    assert resume_point(tmp_path / "killed") == str(tmp_path / "killed" / "checkpoints" / "checkpoint-4")
    assert not (tmp_path / "killed" / "checkpoints" / "checkpoint-6").exists()
    ledger = Ledger()
    resumed = pretrain(pretrain_config(), rows=rows, out=tmp_path / "killed", ledger=ledger, tokenizer=tiny_model)
    assert same_weights(tmp_path / "whole" / "model", tmp_path / "killed" / "model")
    assert resumed == whole
    assert ledger.tokens == 2 * 8 * 32  # the two steps of this process


def test_dropout_and_the_seed_change_the_result_and_nothing_else_does(
    tiny_model: Path, tiny_rows: dict[str, Path], tmp_path: Path
) -> None:
    rows = read(tiny_rows["text"])
    plain = ModelConfig(hidden=32, layers=2, heads=2, context=32, dropout=0.0)
    configs = {
        "a": pretrain_config(),
        "b": pretrain_config(),
        "seed": pretrain_config(seed=1),
        "dropout": PretrainConfig(**{**vars(pretrain_config()), "model": plain}),
    }
    for name, config in configs.items():
        pretrain(config, rows=rows, out=tmp_path / name, ledger=Ledger(), tokenizer=tiny_model)
    assert same_weights(tmp_path / "a" / "model", tmp_path / "b" / "model")
    assert not same_weights(tmp_path / "a" / "model", tmp_path / "seed" / "model")
    assert not same_weights(tmp_path / "a" / "model", tmp_path / "dropout" / "model")


def test_pretraining_goes_on_from_a_checkpoint_and_refuses_what_it_cannot_train(
    tiny_model: Path, tiny_rows: dict[str, Path], tmp_path: Path
) -> None:
    rows = read(tiny_rows["text"])
    config = PretrainConfig(start=str(tiny_model), max_steps=1, batch_size=2, learning_rate=0.0, save_steps=None)
    pretrain(config, rows=rows, out=tmp_path / "more", ledger=Ledger())
    assert same_weights(tiny_model, tmp_path / "more" / "model")
    with pytest.raises(UserError, match="pretraining row 2 has no text"):
        pretrain(config, rows=[{"text": "a"}, {"prompt": "b"}], out=tmp_path / "x", ledger=Ledger())
    bert = PretrainConfig(model=ModelConfig(architecture="bert"))
    with pytest.raises(UserError, match="causal"):
        pretrain(bert, rows=rows, out=tmp_path / "x", ledger=Ledger(), tokenizer=tiny_model)
