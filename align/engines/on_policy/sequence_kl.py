"""The sequence's KL as a reward: `log pi(y|x) - log ref(y|x)` of the policy in training, summed over sampled tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from align.models import load_model
from align.models.formats import formatter
from align.models.reading import Reader, sequence_logprobs

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel


class SequenceKL:
    """Reward function `log pi(y|x) - log ref(y|x)` of the policy being trained: with weight -beta, the KL of J.

    On a GRPO trainer whose own coefficient is 0. `trainer` is set once the trainer exists. `strip` takes off a prompt
    what only the policy reads (preference tags). `select(model, slice)` is called before each pass of the policy with
    the rows it reads, for policies that depend on more than the prompt.
    """

    def __init__(
        self,
        reference: str,
        *,
        strip: Callable[[str], str] | None = None,
        select: Callable[[Module, slice], None] | None = None,
    ) -> None:
        self.__name__ = "sequence_kl"
        self.reference, self.strip, self.select = reference, strip, select
        self.trainer: Any = None
        self._frozen: PreTrainedModel | None = None

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        *,
        completion_ids: Sequence[Sequence[int]],
        **_: object,
    ) -> list[float]:
        """One log-ratio per completion, in nats, summed over its sampled tokens."""
        import torch

        trainer = self.trainer
        policy = trainer.accelerator.unwrap_model(trainer.model)
        plain = [self.strip(prompt) for prompt in prompts] if self.strip else list(prompts)
        form = formatter(trainer.processing_class)
        asked_ids, plain_ids = form.prompts_ids(prompts), form.prompts_ids(plain)
        with torch.no_grad(), trainer.accelerator.autocast():
            ours = self._logprobs(policy, asked_ids, completion_ids, select=self.select)
            if hasattr(policy, "disable_adapter"):  # a PEFT model: its reference is the backbone
                with policy.disable_adapter():
                    theirs = self._logprobs(policy, plain_ids, completion_ids)
            else:
                theirs = self._logprobs(self._reference_model(policy), plain_ids, completion_ids)
        return [a - b for a, b in zip(ours, theirs, strict=True)]

    def _reference_model(self, policy: PreTrainedModel) -> PreTrainedModel:
        if self._frozen is None:
            dtype = str(policy.dtype).removeprefix("torch.")
            self._frozen = load_model(self.reference, dtype=dtype).to(policy.device).eval().requires_grad_(False)
        return self._frozen

    def _logprobs(
        self,
        model: PreTrainedModel,
        heads: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        *,
        select: Callable[[Module, slice], None] | None = None,
    ) -> list[float]:
        reader = Reader(
            pad_id=self.trainer.processing_class.pad_token_id,
            batch_size=self.trainer.args.per_device_train_batch_size,
            side="left",  # so that completions end together
            before=None if select is None else partial(select, model),
        )
        return sequence_logprobs(model, list(zip(heads, completion_ids, strict=True)), reader=reader)
