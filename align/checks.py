"""Numbers in a config within their range, weights finite after training: each refusal names the key and the fix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from align.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# those that need nothing beyond the number of steps and the warm-up
SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "constant",
    "constant_with_warmup",
)


class Optimiser(Protocol):
    """The fields of a config that set an optimiser, a schedule and its checkpoints."""

    @property
    def scheduler(self) -> str: ...
    @property
    def seed(self) -> int: ...


class Looks(Protocol):
    """The fields of a config that say how held-out rows are looked at while it trains."""

    @property
    def eval_steps(self) -> int: ...
    @property
    def early_stopping(self) -> int: ...


class Regularised(Protocol):
    """The fields of a config that bound a model's freedom."""

    @property
    def dropout(self) -> float: ...


def at_least(minimum: float, config: object, *names: str, place: str = "") -> None:
    """UserError unless every named field is a finite number of at least `minimum`, or None."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value >= minimum):
            raise UserError(f"{place}{name} must be at least {minimum:g}, not {value:g}")


def at_most(maximum: float, config: object, *names: str, place: str = "") -> None:
    """UserError where a named field is above what a machine can hold; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value > maximum:
            raise UserError(f"{place}{name} must be at most {maximum:g}, not {value:g}")


def above_zero(config: object, *names: str, place: str = "") -> None:
    """UserError unless every named field is a finite number above 0, or None."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{place}{name} must be above 0, not {value:g}")


def shares(config: object, *names: str, place: str = "") -> None:
    """UserError unless every named field is a share in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise UserError(f"{place}{name} is a share in [0, 1), not {value:g}")


def one_of(config: object, **allowed: Sequence[str]) -> None:
    """UserError unless every named field is one of the words that are allowed for it."""
    for name, words in allowed.items():
        if getattr(config, name) not in words:
            raise UserError(f"{name} must be one of {', '.join(words)}, not {getattr(config, name)!r}")


def optimiser(config: Optimiser) -> None:
    """UserError on an optimiser, a seed or a checkpoint interval that no trainer here accepts."""
    above_zero(config, "batch_size", "gradient_accumulation", "logging_steps", "save_steps")
    at_least(0, config, "learning_rate", "warmup", "weight_decay", "max_grad_norm")
    one_of(config, scheduler=SCHEDULERS)
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed must be in [0, 2**32), not {config.seed}")


def looks(config: Looks, *, share: float | None = None) -> None:
    """UserError on numbers that no training can mean; `share` of the prompts is held out, where a method does so."""
    at_least(0, config, "eval_steps", "early_stopping")
    if config.early_stopping and not config.eval_steps:
        raise UserError("early_stopping counts looks at held-out rows; set eval_steps to the steps between two of them")
    if share is not None and config.eval_steps and not 0 < share < 1:
        raise UserError(f"validation is a share of the prompts between 0 and 1, not {share:g}")


def regularisers(config: Regularised) -> None:
    """UserError on a dropout, a longest row or an adapter's rank that no model can have."""
    at_least(0, config, "dropout", "lora_r")
    above_zero(config, "lora_alpha")
    at_least(2, config, "max_length")
    if config.dropout >= 1:
        raise UserError(f"dropout must be in [0, 1), not {config.dropout:g}")


def context_of(model: PreTrainedModel) -> int | None:
    """How many tokens the model has positions for; None where its config does not say."""
    return getattr(model.config, "max_position_embeddings", None)


def longest_row(max_length: int | None, model: PreTrainedModel) -> int | None:
    """The longest row to train on, in tokens; UserError when `max_length` is more than the model has positions for."""
    most = context_of(model)
    if most is not None and max_length is not None and max_length > most:
        raise UserError(f"max_length {max_length} is more than the model's {most} positions; lower it or leave it out")
    return max_length or most


def fits(tokens: int, model: PreTrainedModel, *, what: str, fix: str) -> None:
    """UserError when a sequence of `tokens` tokens is longer than the model has positions for."""
    most = context_of(model)
    if most is not None and tokens > most:
        raise UserError(f"{what}: {tokens} tokens, but the model has {most} positions; {fix}")


def prompts_fit(longest: int, model: PreTrainedModel, *, max_completion_length: int) -> None:
    """UserError when the longest prompt, in tokens, and a response of that length exceed the model's positions."""
    what, fix = (
        "the longest prompt and max_completion_length",
        "leave out such prompts, or lower max_completion_length",
    )
    fits(longest + max_completion_length, model, what=what, fix=fix)


def finite_weights(model: PreTrainedModel) -> None:
    """UserError when a weight is not finite: the training diverged, and its model must not look finished."""
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise UserError(f"training diverged ({name} is not finite); lower learning_rate, or check the start model")
