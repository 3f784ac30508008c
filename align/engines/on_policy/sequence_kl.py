"""The sequence's KL as a reward: `log pi(y|x) - log ref(y|x)` of the policy in training, summed over sampled tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


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
        select: Callable[[Any, slice], None] | None = None,
    ) -> None:
        self.__name__ = "sequence_kl"
        self.reference, self.strip, self.select = reference, strip, select
        self.trainer: Any = None
        self._frozen: Any = None

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], *, completion_ids: Sequence[Sequence[int]], **_: Any
    ) -> list[float]:
        """One log-ratio per completion, in nats, summed over its sampled tokens."""
        import torch

        trainer = self.trainer
        policy = trainer.accelerator.unwrap_model(trainer.model)
        plain = [self.strip(prompt) for prompt in prompts] if self.strip else list(prompts)
        prompt_ids, plain_ids = (trainer.processing_class(text=texts)["input_ids"] for texts in (list(prompts), plain))
        with torch.no_grad(), trainer.accelerator.autocast():
            ours = self._logprobs(policy, prompt_ids, completion_ids, select=self.select)
            if hasattr(policy, "disable_adapter"):  # a PEFT model: its reference is the backbone
                with policy.disable_adapter():
                    theirs = self._logprobs(policy, plain_ids, completion_ids)
            else:
                theirs = self._logprobs(self._reference_model(policy), plain_ids, completion_ids)
        return [a - b for a, b in zip(ours, theirs, strict=True)]

    def _reference_model(self, policy: Any) -> Any:
        if self._frozen is None:
            from align.models import load_model

            self._frozen = load_model(self.reference).to(policy.device).eval().requires_grad_(False)
        return self._frozen

    def _logprobs(
        self,
        model: Any,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        *,
        select: Callable[[Any, slice], None] | None = None,
    ) -> list[float]:
        import torch

        totals: list[float] = []
        size = self.trainer.args.per_device_train_batch_size
        for start in range(0, len(prompt_ids), size):
            if select is not None:
                select(model, slice(start, start + size))
            rows = list(zip(prompt_ids[start : start + size], completion_ids[start : start + size], strict=True))
            width, keep = max(len(p) + len(c) for p, c in rows), max(len(c) for _, c in rows)
            ids_BT = torch.full((len(rows), width), self.trainer.processing_class.pad_token_id)
            attend_BT, scored_BT = torch.zeros_like(ids_BT), torch.zeros_like(ids_BT)
            for row, (p, c) in enumerate(rows):  # padded on the left, so that completions end together
                ids_BT[row, width - len(p) - len(c) :] = torch.tensor([*p, *c])
                attend_BT[row, width - len(p) - len(c) :] = 1
                scored_BT[row, width - len(c) :] = 1
            ids_BT, attend_BT, scored_BT = (t.to(model.device) for t in (ids_BT, attend_BT, scored_BT))
            positions_BT = (attend_BT.cumsum(-1) - 1).clamp(min=0)
            logits_BTV = model(
                input_ids=ids_BT, attention_mask=attend_BT, position_ids=positions_BT, logits_to_keep=keep + 1
            ).logits[:, :-1]
            logp_BT = torch.log_softmax(logits_BTV.float(), -1).gather(-1, ids_BT[:, -keep:, None])[..., 0]
            totals.extend((logp_BT * scored_BT[:, -keep:]).sum(-1).tolist())
        return totals
