"""A policy in training with a value head on its hidden states, beside the frozen reference that it started from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from align.engines.on_policy.rollouts import Rollouts, read
from align.engines.settings import TrainingConfig, model_to_train
from align.models import attach_lora, load_tokenizer
from align.training.common import has_gpu

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class ActorCritic:
    """The checkpoint `reference` (all weights, or a LoRA adapter on it, as the config says) and a linear value head.

    In eval mode throughout, so that the sampler, the ratio and the KL see one and the same policy. The head
    starts at 0 and reads the last hidden state without passing a gradient back: through a shared trunk the value's loss
    would move the policy, by a coefficient to tune, and a second network would double memory and time. The price is a
    value that knows only what predicts the next token. Legend: B responses, T response tokens, H hidden units.
    """

    def __init__(self, reference: str, config: TrainingConfig) -> None:
        import torch

        device = "cuda" if has_gpu() else "cpu"
        self.tokenizer = load_tokenizer(reference)
        self.model = model_to_train(reference, config).to(device).eval()
        self.policy: PreTrainedModel = self.model
        self.frozen: PreTrainedModel | None = None
        if config.lora_r:  # the reference is the adapter's backbone
            alpha, targets = config.lora_alpha or None, config.lora_targets
            self.policy = attach_lora(self.model, config.lora_r, alpha=alpha, targets=targets).eval()
        else:
            self.frozen = model_to_train(reference, config).to(device).eval().requires_grad_(False)
        self.head = torch.nn.Linear(self.model.config.hidden_size, 1).to(device)
        for parameter in self.head.parameters():
            torch.nn.init.zeros_(parameter)

    def read(self, batch: Rollouts) -> tuple[Tensor, Tensor]:
        """(B, T) log-probabilities of the drawn tokens and (B, T) values of the states before them, 0 at padding."""
        logp_BT, hidden_BTH = read(self.policy, batch)
        return logp_BT, self.head(hidden_BTH.detach().float())[..., 0].masked_fill(~batch.mask_BT, 0.0)

    def read_reference(self, batch: Rollouts) -> Tensor:
        """(B, T) log-probabilities of the drawn tokens under the reference, 0 at padding."""
        if self.frozen is not None:
            return read(self.frozen, batch)[0]
        with self.policy.disable_adapter():
            return read(self.policy, batch)[0]

    def groups(self, *, weight_decay: float, value_learning_rate: float) -> Iterator[dict[str, Tensor]]:
        """Parameter groups for Adam: the policy's matrices (with decay), its vectors, the value head.

        An Adam step moves each of the head's H weights by its rate, and so a value by up to H times that (times the
        mean size of a hidden unit): `value_learning_rate` is divided by H, and means the same at any width.
        """
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        yield {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay}
        yield {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}
        rate = value_learning_rate / self.head.in_features
        yield {"params": list(self.head.parameters()), "weight_decay": 0.0, "lr": rate}
