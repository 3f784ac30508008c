"""The likelihood term beside DPO's loss as a mean over the data set's tokens: the same however a batch is cut.

TRL's term is a mean over the tokens of a micro-batch, so that 8 pairs at once and 1 pair at a time accumulated 8 times
are two trainings. Here it is the sum over a micro-batch's tokens, divided by its pairs times the mean length of all
chosen responses: over an epoch the mean over all tokens. Legend: B sequences, chosen before rejected; T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel
    from trl import DPOTrainer


class TokenMean:
    """Put before DPOTrainer with the loss types sigmoid and sft."""

    mle_weight: float
    mean_tokens: float  # of a chosen response
    loss_weights: list[float]

    def _compute_loss(self, model: PreTrainedModel, inputs: dict[str, Tensor], *others: object) -> Tensor:
        chosen_BT = inputs["completion_mask"].chunk(2)[0][:, 1:]
        self.loss_weights = [1.0, self.mle_weight * float(chosen_BT.sum()) / (len(chosen_BT) * self.mean_tokens)]
        return super()._compute_loss(model, inputs, *others)  # type: ignore[misc]


def with_token_mean(trainer: DPOTrainer, *, mle_weight: float) -> DPOTrainer:
    """The trainer with its sft term so weighted."""
    most = trainer.args.max_length
    rows = zip(trainer.train_dataset["prompt_ids"], trainer.train_dataset["chosen_ids"], strict=True)
    lengths = [len(c) if most is None else min(len(c), most - len(p)) for p, c in rows]
    trainer.__class__ = type("TokenMeanDPOTrainer", (TokenMean, type(trainer)), {})
    trainer.mle_weight, trainer.mean_tokens = mle_weight, sum(lengths) / len(lengths)
    return trainer
