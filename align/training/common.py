"""Arguments, callbacks and resuming that all trainers here share, with each surprising library default set on purpose.

Tokens in the ledger are the tokens a trainer fed to the trained model (padding excluded where the trainer reports it),
and floating point operations are the usual estimate `6 N tokens` for one forward and one backward pass
(Kaplan et al. 2020, section 2.1), `N` being the parameters without lookup tables.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from align import checks
from align.errors import UserError
from align.models import quiet
from align.runs import Ledger, checkpoints, last_checkpoint
from align.runs.values import later
from align.training.logs import attach_logs, check_trackers
from align.training.model_settings import ModelSettings, check_model_settings

if TYPE_CHECKING:
    from transformers import Trainer, TrainerState, TrainingArguments

CHECKPOINTS = "checkpoints"
SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class StageConfig(ModelSettings):
    """Optimiser and length, shared by the stages of this package; how the model is held is in `ModelSettings`.

    `max_steps` above 0 wins over `epochs`; a step reads batch_size x gradient_accumulation examples. `learning_rate` is
    the peak, `warmup` a share of the steps below 1 and a number of steps from 1 on, `weight_decay` AdamW's, on matrices
    only. `batch_size` counts examples per device and micro-step. `save_steps`: steps between the checkpoints that an
    interrupted call resumes from (None: none are written, right for a stage of seconds, which is simply run again).
    What is logged lies in the run's `log.jsonl`; `report_to` names trackers that get it too (tensorboard, wandb,
    trackio; align/training/logs.py). `eval_steps` above 0 looks at validation rows every so many steps, and
    `early_stopping` looks without a better one end the training, whose best point is kept (align/training/watch.py).
    """

    epochs: float = 1.0
    max_steps: int = -1
    batch_size: int = 16
    gradient_accumulation: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup: float = 0.03
    scheduler: str = "cosine"
    max_grad_norm: float = 1.0
    seed: int = 0
    save_steps: int | None = 200
    logging_steps: int = 10
    report_to: tuple[str, ...] = ()
    eval_steps: int = later(0)
    early_stopping: int = later(0)

    def __post_init__(self) -> None:
        checks.optimiser(self)
        check_model_settings(self, lora_r=getattr(self, "lora_r", 0))
        checks.above_zero(self, "epochs")
        check_trackers(self.report_to)
        checks.looks(self)
        if self.max_steps < 1 and self.max_steps != -1:
            raise UserError(f"max_steps must be at least 1 (or -1: as many as epochs take), not {self.max_steps}")

    def arguments(self, out: Path) -> dict[str, Any]:
        """These fields through `base_arguments`."""
        return base_arguments(out, self)


def has_gpu() -> bool:
    """Whether a CUDA device is there to train on."""
    import torch

    return torch.cuda.is_available()


def base_arguments(out: Path, schedule: StageConfig) -> dict[str, Any]:
    """Keyword arguments for `TrainingArguments` and for every TRL config; checkpoints go to `out/checkpoints`."""
    import torch

    quiet_libraries()
    save_steps, max_steps, logging_steps = schedule.save_steps, schedule.max_steps, schedule.logging_steps
    # A loss is a mean since the last log, so a checkpoint between two logs would change the first one after a resume.
    logging_steps = math.gcd(logging_steps, save_steps) if save_steps else logging_steps
    logging_steps = min(logging_steps, max_steps) if max_steps > 0 else logging_steps
    gpu = has_gpu()
    if gpu and torch.cuda.device_count() > 1:
        # Trainer would copy the model to all of them for every batch, which neither TRL's batches nor ours allow for.
        raise UserError(
            f"{torch.cuda.device_count()} GPUs are visible, but training uses one; set CUDA_VISIBLE_DEVICES to one of "
            "them (CUDA_VISIBLE_DEVICES=0) and run the same command again"
        )
    return {
        "output_dir": str(Path(out) / CHECKPOINTS),
        "seed": schedule.seed,
        "data_seed": schedule.seed,
        "learning_rate": schedule.learning_rate,
        "per_device_train_batch_size": schedule.batch_size,
        "per_device_eval_batch_size": schedule.batch_size,
        "gradient_accumulation_steps": schedule.gradient_accumulation,
        "max_steps": max_steps,
        "num_train_epochs": schedule.epochs,
        "warmup_steps": schedule.warmup,
        "weight_decay": schedule.weight_decay,
        "lr_scheduler_type": schedule.scheduler,
        "max_grad_norm": schedule.max_grad_norm,
        "optim": "adamw_torch",  # the default is the fused kernel, whose rounding depends on the build
        # TRL asks for bf16 and gradient checkpointing unless set otherwise; the first is an error without a GPU.
        "use_cpu": not gpu,
        "bf16": gpu and torch.cuda.is_bf16_supported(),
        "fp16": False,
        "gradient_checkpointing": schedule.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if schedule.gradient_checkpointing else None,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": gpu,
        "save_strategy": "no" if save_steps is None else "steps",
        "save_steps": save_steps or 500,
        "save_total_limit": 2,  # the older one survives a kill in the middle of writing the newer one
        "eval_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": logging_steps,
        "logging_nan_inf_filter": False,  # True replaces a NaN loss by the running mean in the log
        "report_to": list(schedule.report_to) or "none",
        "disable_tqdm": True,  # `Progress` below draws the bar, and only where somebody can see it
        "push_to_hub": False,
    }


def finish_trainer(trainer: Trainer, *, label: str, ledger: Ledger, parameters: int) -> Trainer:
    """Give a trainer the ledger, progress and log callbacks, and take away the one that prints dictionaries."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LedgerCallback(ledger, parameters))
    trainer.add_callback(Progress(label))
    attach_logs(trainer, label=label)
    return trainer


def resume_point(out: Path) -> str | None:
    """The newest complete checkpoint under `out/checkpoints`, as `train(resume_from_checkpoint=...)` takes it.

    UserError when a folder of that name holds what no training put there.
    """
    newest = last_checkpoint(checkpoints.claim(Path(out) / CHECKPOINTS))
    return None if newest is None else str(newest)


def drop_checkpoints(out: Path) -> None:
    """Delete `out/checkpoints` once the finished model is saved."""
    checkpoints.drop(Path(out) / CHECKPOINTS)


def final_loss(trainer: Trainer) -> float | None:
    """The last training loss the trainer logged (mean over its last `logging_steps` steps); None before the first."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses[-1] if losses else None


def quiet_libraries() -> None:
    """Silence bars and notices of the libraries below us that would be drawn once per small stage."""
    import datasets

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    datasets.disable_progress_bars()
    quiet()
    # Trainer reports that it copied the tokenizer's special tokens to the model, which is what we want.
    logging.getLogger("transformers.trainer_utils").addFilter(_not_special_tokens)
    logging.getLogger("transformers.trainer").addFilter(_not_special_tokens)


def _not_special_tokens(record: logging.LogRecord) -> bool:
    return "The tokenizer has new PAD/BOS/EOS tokens" not in record.getMessage()


class Remembering(TrainerCallback, ExportableState):
    """A callback whose `memory`, plain JSON, is saved in the trainer's own state: a resumed run goes on with it."""

    memory: dict[str, Any]

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps in its `trainer_state.json`."""
        return {"args": {}, "attributes": {"memory": self.memory}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        # The trainer could restore callbacks itself, but only as new objects made of plain arguments. A checkpoint from
        # before the callback existed has no entry: its memory then begins where the run goes on.
        self.memory = state.stateful_callbacks.get(type(self).__name__, self.state())["attributes"]["memory"]


class LedgerCallback(TrainerCallback):
    """Adds the tokens of this process's training (not those before a resume) and `flops_per_token N tokens` FLOPs."""

    def __init__(self, ledger: Ledger, parameters: int, *, flops_per_parameter_token: float = 6.0) -> None:
        self.ledger = ledger
        self.flops_per_token = flops_per_parameter_token * parameters
        self.counted = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        # A resumed state remembers what the interrupted process fed; TRL's own counter starts again at 0.
        self.counted = int(state.num_input_tokens_seen)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, *_: object, logs: Mapping[str, float], **__: object
    ) -> None:
        seen = int(max(state.num_input_tokens_seen, logs.get("num_tokens", 0)))
        tokens = max(seen - self.counted, 0)
        self.counted = max(seen, self.counted)
        if tokens:
            self.ledger.add(tokens=tokens, flops=tokens * self.flops_per_token)


class Progress(TrainerCallback):
    """One bar on a terminal; elsewhere a line now and then on stderr, so that a log file stays readable."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: Any = None
        self.started = self.last_line = time.monotonic()
        self.first_step = 0
        self.loss = ""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        self.started = self.last_line = time.monotonic()
        self.first_step = state.global_step
        if sys.stderr.isatty() and state.is_world_process_zero:
            from tqdm.auto import tqdm

            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.label, leave=False)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, *_: object, logs: Mapping[str, float], **__: object
    ) -> None:
        if "loss" in logs:
            self.loss = f"loss {float(logs['loss']):.4g}"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(self.loss, refresh=False)
            self.bar.update(state.global_step - self.bar.n)
            return
        now = time.monotonic()
        if state.is_world_process_zero and now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            each = (now - self.started) / max(state.global_step - self.first_step, 1)
            left = each * (state.max_steps - state.global_step)
            print(
                f"{self.label}: step {state.global_step} of {state.max_steps}, {self.loss}, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
