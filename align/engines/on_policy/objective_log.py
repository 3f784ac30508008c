"""What each objective adds to the reward in training: beside its mean in the log, the mean times its present weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from transformers import TrainerCallback

if TYPE_CHECKING:
    from transformers import Trainer, TrainerState, TrainingArguments


class WeightedMeans(TrainerCallback):
    """Adds `rewards/NAME/weighted` to an RLOO or GRPO trainer's log wherever it has `rewards/NAME/mean`."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_log(
        self, args: TrainingArguments, state: TrainerState, *_: object, logs: dict[str, float], **__: object
    ) -> None:
        weights = dict(zip(self.trainer.reward_func_names, self.trainer.reward_weights.tolist(), strict=True))
        for name, weight in weights.items():
            for key in (f"rewards/{name}/mean", f"eval_rewards/{name}/mean"):
                if weight and logs.get(key) is not None:  # without a weight it is there for the log only
                    logs[key.removesuffix("mean") + "weighted"] = weight * logs[key]
        state.log_history[-1].update(logs)


def attach_weighted_means(trainer: Trainer) -> None:
    """Before all other callbacks, so that the trackers get the numbers too."""
    trainer.callback_handler.callbacks.insert(0, WeightedMeans(trainer))


def log_row_weighted(
    log_metric: Callable[[str, float], None] | None, names: Sequence[str], *,
    scores_KB: Sequence[Sequence[float | None]], weights_BK: Sequence[Sequence[float]],
) -> None:  # fmt: skip
    """The same where each row has its own weights, through TRL's `log_metric` (None: there is no log): the mean of
    `w_k r_k` over the rows that objective k applies to.
    """
    for k, (name, scores) in enumerate(zip(names, scores_KB, strict=True)):
        parts = [w_K[k] * score for w_K, score in zip(weights_BK, scores, strict=True) if score is not None]
        if parts and log_metric is not None:
            log_metric(f"rewards/{name}/weighted", sum(parts) / len(parts))
