"""What every training by gradient steps shares: fields of the config, the model, trainer arguments, the run itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import checks
from align.errors import UserError
from align.models import count_parameters, lora_config, save_model, set_dropout
from align.runs import Workspace
from align.runs.values import later
from align.training.common import (
    StageConfig,
    base_arguments,
    drop_checkpoints,
    final_loss,
    finish_trainer,
    resume_point,
)
from align.training.logs import check_trackers
from align.training.model_settings import ModelSettings, check_model_settings, model_in_training
from align.training.watch import hold_out, refuse_looks, texts_of, watch

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, Trainer


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(ModelSettings):
    """Fields of every method that trains by gradient steps; `batch_size` counts examples per step and device.

    How the model is held in memory, and what an adapter changes, is in `ModelSettings`.
    """

    beta: float = 0.1  # coefficient of KL(pi || reference) in J, in reward units per nat
    learning_rate: float = 1e-5
    batch_size: int = 64
    gradient_accumulation: int = 1
    warmup: float = 0.0  # a share of the steps below 1, a number of steps from 1 on
    scheduler: str = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lora_r: int = 0  # 0 trains all weights
    lora_alpha: float = 0.0  # 0 means 2 r
    save_steps: int | None = None  # None writes no checkpoint while training
    logging_steps: int = 50  # a shorter training logs ten times
    report_to: tuple[str, ...] = later(())  # tensorboard, wandb, trackio; the run's log.jsonl is written in any case
    eval_steps: int = later(0)  # steps between looks at held-out prompts while it trains; 0: none are held out
    validation: float = later(0.1)  # share of the prompts held out for that
    early_stopping: int = later(0)  # looks without a better one that end the training, whose best is kept; 0: never
    seed: int = 0


def check_training(config: TrainingConfig, *, can_look: bool = False) -> None:
    """UserError on a value that no trainer can mean, or on looks at held-out prompts where a method has none."""
    checks.looks(config, share=config.validation)
    if not can_look:
        refuse_looks(config)
    checks.above_zero(config, "beta", "learning_rate")
    checks.optimiser(config)
    checks.at_least(0, config, "lora_alpha")
    check_trackers(config.report_to)
    if config.lora_r < 0:
        raise UserError(f"lora_r must be 0 (train all weights) or a rank, not {config.lora_r}")
    check_model_settings(config, lora_r=config.lora_r)


def model_to_train(reference: str, config: TrainingConfig | None = None) -> PreTrainedModel:
    """The reference in memory (an adapter merged into its base), held as `config` says, to be trained without dropout.

    Without a config it is float32, as where all weights are trained.
    """
    config = config or TrainingConfig()
    model = model_in_training(config, reference, adapter=config.lora_r > 0)
    set_dropout(model, 0.0)  # TRL switches off modules only, not what is passed to the attention function
    return model


def adapter_config(
    config: TrainingConfig, model: PreTrainedModel, *, new_tokens: Sequence[int] = ()
) -> LoraConfig | None:
    """The LoRA configuration for TRL's `peft_config`, or None for full training.

    The embeddings of `new_tokens`, which the reference has not, are trained beside it.
    """
    if not config.lora_r:
        return None
    return lora_config(
        model, config.lora_r, alpha=config.lora_alpha or None, dropout=config.lora_dropout, targets=config.lora_targets,
        new_tokens=new_tokens,
    )  # fmt: skip


def trainer_arguments(
    config: TrainingConfig, folder: Path, *, epochs: float = 1.0, max_steps: int = -1
) -> dict[str, Any]:
    """`base_arguments` of the config's fields, for so many epochs, or steps where `max_steps` is above 0."""
    names: tuple[str, ...] = ("seed", "learning_rate", "batch_size", "gradient_accumulation", "warmup", "scheduler")
    names += ("weight_decay", "max_grad_norm", "save_steps", "logging_steps", "report_to", "gradient_checkpointing")
    fields = {name: getattr(config, name) for name in names}
    return base_arguments(folder, StageConfig(**fields, epochs=epochs, max_steps=max_steps))


@dataclass(frozen=True)
class Trained:
    """A finished training: its last loss, and `work`, parameters times tokens, by which further passes are charged.

    `more` has the `accuracy` and `margin` of the implicit rewards as last logged, where it was on pairs, and what was
    seen of `held_out` prompts.
    """

    loss: float | None
    work: int
    more: Mapping[str, object] = field(default_factory=dict)


def train_and_save(
    trainer: Trainer,
    *,
    label: str,
    run: Workspace,
    save: Callable[[PreTrainedModel], object] | None = None,
    config: TrainingConfig | None = None,
) -> Trained:
    """Train (resuming where a checkpoint lies), charge `run` for it, save `run.folder/model`, or what `save` saves.

    `config` is given by methods that can hold out prompts of the trainer's rows.
    """
    looks = None
    if config is not None and config.eval_steps:
        hold_out(trainer, share=config.validation, seed=config.seed)
        resumed = resume_point(run.folder) is not None
        looks = watch(trainer, config, folder=run.folder, texts=texts_of(trainer), resumed=resumed)
    parameters = count_parameters(trainer.model, embeddings=False)
    finish_trainer(trainer, label=label, ledger=run.ledger, parameters=parameters)
    before = run.ledger.tokens
    trainer.train(resume_from_checkpoint=resume_point(run.folder))
    more: dict[str, object] = {} if looks is None else {"held_out": looks.finish(trainer.model)}
    if save is None:
        save_model(trainer.model, trainer.processing_class, run.folder / "model")
    else:
        save(trainer.model)
    drop_checkpoints(run.folder)
    logged = [entry for entry in trainer.state.log_history if "rewards/accuracies" in entry]
    more |= {"accuracy": logged[-1]["rewards/accuracies"], "margin": logged[-1]["rewards/margins"]} if logged else {}
    return Trained(final_loss(trainer), parameters * (run.ledger.tokens - before), more)
