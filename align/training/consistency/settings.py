"""Consistency training's settings, pairs of prompts, and the student: the policy's own weights, made ready to train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from align import checks
from align.errors import UserError
from align.models import attach_lora, load_model, set_dropout
from align.models.sampling import Drawn
from align.training.common import StageConfig
from align.training.model_settings import model_in_training
from align.training.watch import refuse_looks

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

KINDS = ("outputs", "activations")
TARGETS = ("plain", "carried")
EMBEDDINGS = ("trained", "frozen", "restored")


@dataclass(frozen=True)
class PromptPair:
    """A plain prompt and the same request under a shift, both as text (align/turns.py)."""

    plain: str
    shifted: str


class FinishedPolicy(Protocol):
    """What is asked of the policy: where its model lies, and samples of it (`align.policies.base.ModelPolicy`)."""

    path: str

    def prompt_ids(self, prompts: Sequence[str]) -> list[list[int]]: ...
    def draw(self, prompts: Sequence[str], *, max_new_tokens: int, seed: int, batch_size: int) -> list[Drawn]: ...
    def release(self) -> None: ...


@dataclass(frozen=True)
class Models:
    """The finished policy, and where the reference lies that it was trained from (needed by some settings)."""

    policy: FinishedPolicy
    reference: str | None = None


@dataclass(frozen=True)
class ConsistencyConfig(StageConfig):
    """The optimiser (fields of `StageConfig`) and what is consistent with what.

    `kind` outputs (BCT: Chua et al. 2024, arXiv 2403.05518) imitates `replies` of the policy's own replies to the plain
    prompt, of at most `max_new_tokens` tokens, drawn at temperature 1 before training starts. `kind` activations (ACT:
    Irpan, Turner et al. 2025, arXiv 2510.27062) pulls the residual stream at the last tokens of the shifted prompt to
    that of the frozen policy at the same tokens of the plain prompt: at all that both end with, or the last
    `positions`. `target` carried is for activations and needs a reference: what training changed at the plain prompt is
    added to the reference's own state at the shifted one. `keep_plain` trains on each plain prompt as well, towards the
    policy's own behaviour there.

    `embeddings` (of words, and the output words): trained, frozen, or restored: the reference's put back, then frozen.
    `max_length` is in tokens of prompt and reply (None: the model's positions). `lora_r` above 0 trains a LoRA adapter
    of that rank (which leaves embeddings as they are) and merges it into the saved model unless `merge_adapter` is
    false.
    """

    kind: str = "outputs"
    target: str = "plain"
    keep_plain: bool = True
    replies: int = 1
    max_new_tokens: int = 512
    sampling_batch: int = 32
    positions: int | None = None
    embeddings: str = "trained"
    max_length: int | None = None
    lora_r: int = 0
    lora_alpha: float | None = None
    merge_adapter: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_looks(self)
        checks.one_of(self, kind=KINDS, target=TARGETS, embeddings=EMBEDDINGS)
        checks.at_least(1, self, "replies", "max_new_tokens", "sampling_batch", "positions")
        checks.at_least(2, self, "max_length")
        checks.at_least(0, self, "lora_r")
        checks.above_zero(self, "lora_alpha")
        if self.target == "carried" and self.kind != "activations":
            raise UserError("target carried is for kind activations; leave it out, or set kind to activations")

    @property
    def needs_reference(self) -> bool:
        """Whether the reference's weights are read."""
        return self.target == "carried" or self.embeddings == "restored"


def with_plain(pairs: Sequence[PromptPair]) -> list[PromptPair]:
    """The pairs, and behind them each plain prompt paired with itself."""
    return [*pairs, *(PromptPair(plain, plain) for plain in dict.fromkeys(pair.plain for pair in pairs))]


def student(config: ConsistencyConfig, models: Models) -> PreTrainedModel:
    """The policy to be trained, with a fresh adapter where the config asks for one.

    UserError where embeddings are to be restored from a reference of another vocabulary.
    """
    model = model_in_training(config, models.policy.path, adapter=config.lora_r > 0)
    set_dropout(model, 0.0)
    if config.embeddings == "restored":
        restore_embeddings(model, models)
    if config.embeddings != "trained":
        for weight in embedding_weights(model):
            weight.requires_grad_(False)
    if config.lora_r:
        return attach_lora(
            model, config.lora_r, alpha=config.lora_alpha, dropout=config.lora_dropout, targets=config.lora_targets
        )
    return model


def restore_embeddings(model: PreTrainedModel, models: Models) -> None:
    """Put the reference's embeddings, and its output words, into the model."""
    import torch

    theirs = embedding_weights(load_model(str(models.reference)))
    own = embedding_weights(model)
    if [weight.shape for weight in own] != [weight.shape for weight in theirs]:
        raise UserError(
            f"{models.reference} has another vocabulary than {models.policy.path}; give the policy's reference"
        )
    with torch.no_grad():
        for weight, their in zip(own, theirs, strict=True):
            weight.copy_(their)


def embedding_weights(model: PreTrainedModel) -> list[Tensor]:
    """The weights of words and of output words, one where both are tied."""
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    return tables[:1] if tables[0] is tables[1] else tables
