"""align.training: where the loss falls, resuming bit for bit after a kill, both kinds of reward model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from align.errors import UserError
from align.models import ModelConfig, load_model, load_tokenizer
from align.runs import Ledger
from align.training import common
from align.training.bits import completion_bits, text_bits
from align.training.common import StageConfig, base_arguments, resume_point
from align.training.pretrain import PretrainConfig, pretrain
from align.training.reward_model import RewardModelConfig, preference_accuracy, train_reward_model
from align.training.sft import SFTConfig_, sft

SHAPE = ModelConfig(hidden=32, layers=2, heads=2, context=32, dropout=0.1)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def same_weights(first: Path, second: Path) -> bool:
    a, b = (load_model(folder).state_dict() for folder in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_several_visible_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer would put a copy of the model on each, and neither TRL's batches nor ours allow for that."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="2 GPUs are visible.*CUDA_VISIBLE_DEVICES=0"):
        base_arguments(tmp_path, StageConfig())


class Interrupt(TrainerCallback):
    """Stops the process as an unhandled error does, after a number of steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.after:
            raise KeyboardInterrupt


def interrupted(monkeypatch: pytest.MonkeyPatch, module: Any, after: int, call: Any) -> None:
    """Run `call` until step `after`, then leave a half-written newer checkpoint behind."""
    finish = module.finish_trainer

    def with_interrupt(trainer: Any, **kwargs: Any) -> Any:
        trainer.add_callback(Interrupt(after))
        return finish(trainer, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "finish_trainer", with_interrupt)
        call()


def half_written(out: Path, step: int) -> None:
    """What a kill in the middle of writing a checkpoint leaves: weights, but no trainer state."""
    folder = out / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"half")


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


# ----------------------------------------------------------------------------------------------------------------- sft
def test_sft_puts_the_loss_on_the_completion_and_its_end_only(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from align.training import sft as stage

    seen: list[Mapping[str, Any]] = []
    finish = stage.finish_trainer

    def spy(trainer: Any, **kwargs: Any) -> Any:
        seen.append(next(iter(trainer.get_train_dataloader())))
        return finish(trainer, **kwargs)

    monkeypatch.setattr(stage, "finish_trainer", spy)
    row = {"prompt": "explain bread :", "completion": " sure f1", "id": "not a column for TRL"}
    metrics = sft(
        SFTConfig_(max_steps=1, batch_size=1, save_steps=None),
        model=tiny_model,
        rows=[row],
        out=tmp_path,
        ledger=Ledger(),
    )
    tokenizer = load_tokenizer(tiny_model)
    end = tokenizer.eos_token_id
    prompt, completion = (tokenizer(row[key])["input_ids"] for key in ("prompt", "completion"))
    assert seen[0]["input_ids"].tolist() == [[*prompt, *completion, end]]
    labels = seen[0]["labels"][0].tolist()
    assert labels == [-100] * len(prompt) + completion + [end]
    # The first logged loss is the mean over those labels of the model that came in.
    with torch.no_grad():
        logp = load_model(tiny_model)(input_ids=seen[0]["input_ids"]).logits[0].log_softmax(-1)
    expected = -sum(logp[i - 1, label].item() for i, label in enumerate(labels) if label != -100)
    assert metrics["loss"] == pytest.approx(expected / (len(completion) + 1), rel=1e-4)


def test_sft_learns_the_demonstrations_and_their_end(
    tiny_model: Path, tiny_rows: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"prompt": row["prompt"], "completion": " sure"} for row in read(tiny_rows["demonstrations"])]
    long = {"prompt": "z" * 200, "completion": " never seen"}
    ledger = Ledger()
    config = SFTConfig_(max_steps=60, learning_rate=2e-2, save_steps=None)
    metrics = sft(config, model=tiny_model, rows=[long, *rows], validation=rows, out=tmp_path, ledger=ledger)
    assert (metrics["trained_on"], metrics["too_long"]) == (len(rows), 1)
    assert metrics["bits_per_byte"] < 0.2
    model, tokenizer = load_model(tmp_path / "model"), load_tokenizer(tmp_path / "model")
    ids = tokenizer(rows[0]["prompt"], return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(made) == " sure<|end|>"
    # The tokens that TRL fed, padding excluded: 60 steps of 16 rows with their ends.
    mean = sum(len(tokenizer(r["prompt"] + r["completion"])["input_ids"]) + 1 for r in rows) / len(rows)
    assert ledger.tokens == pytest.approx(60 * 16 * mean, rel=0.02)


def test_sft_with_an_adapter_saves_a_merged_model_that_learned(
    tiny_model: Path, tiny_rows: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"prompt": row["prompt"], "completion": " sure"} for row in read(tiny_rows["demonstrations"])]
    before = completion_bits(load_model(tiny_model), load_tokenizer(tiny_model), rows).per_byte
    config = SFTConfig_(max_steps=40, learning_rate=2e-2, lora_r=8, save_steps=None)
    metrics = sft(config, model=tiny_model, rows=rows, validation=rows, out=tmp_path, ledger=Ledger())
    assert not (tmp_path / "model" / "adapter_config.json").exists()
    merged = load_model(tmp_path / "model")
    assert completion_bits(merged, load_tokenizer(tmp_path), rows).per_byte == pytest.approx(metrics["bits_per_byte"])
    assert metrics["bits_per_byte"] < 0.95 * before
    embeddings = [m.get_input_embeddings().weight for m in (merged, load_model(tiny_model))]
    assert torch.equal(*embeddings)  # the adapter is on the linear layers only


def test_an_adapter_on_a_tied_embedding_is_one_model_merged_or_kept(tiny_model: Path, tmp_path: Path) -> None:
    """Merged into the one matrix that input and output share, it would change the output, too."""
    rows, found = [{"prompt": "explain bread :", "completion": " sure"}] * 8, []
    ids = torch.tensor([[5, 60, 7, 90]])
    for merge in (True, False):
        config = SFTConfig_(
            max_steps=4, batch_size=4, learning_rate=3e-2, lora_r=4, save_steps=None,
            lora_targets=("embed_tokens", "q_proj"), merge_adapter=merge,
        )  # fmt: skip
        sft(config, model=tiny_model, rows=rows, out=tmp_path / str(merge), ledger=Ledger())
        with torch.no_grad():
            found.append(load_model(tmp_path / str(merge)).eval()(ids).logits)
    torch.testing.assert_close(*found, atol=2e-5, rtol=1e-4)


def test_an_interrupted_sft_resumes_to_the_same_weights(
    tiny_model: Path, tiny_rows: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from align.training import sft as stage

    rows = read(tiny_rows["demonstrations"])
    config = SFTConfig_(max_steps=6, batch_size=8, dropout=0.1, save_steps=2, logging_steps=2)

    def call(name: str) -> dict[str, Any]:
        return sft(config, model=tiny_model, rows=rows, out=tmp_path / name, ledger=Ledger(), validation=rows[:4])

    whole = call("whole")
    interrupted(monkeypatch, stage, 5, lambda: call("again"))
    half_written(tmp_path / "again", 6)
    assert call("again") == whole
    assert same_weights(tmp_path / "whole" / "model", tmp_path / "again" / "model")


def test_sft_names_the_row_that_is_wrong(tiny_model: Path, tmp_path: Path) -> None:
    good = {"prompt": "a", "completion": " b"}
    config = SFTConfig_(max_length=8)
    for rows, said in (
        ([good, {"prompt": "a", "completion": ""}], "row 2 has no prompt or no completion"),
        ([{"prompt": "a" * 50, "completion": " b"}], "none of the 1 demonstrations fits 8 tokens"),
    ):
        with pytest.raises(UserError, match=said):
            sft(config, model=tiny_model, rows=rows, out=tmp_path, ledger=Ledger())


# -------------------------------------------------------------------------------------------------------- reward model
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
