"""The likelihood term beside DPO's loss as a mean over the data set's tokens: the same however a batch is cut.

TRL's term is a mean over the tokens of a micro-batch, so that 8 pairs at once and 1 pair at a time accumulated 8 times
are two trainings. Here it is the sum over a micro-batch's tokens, divided by its pairs times the mean length of all
chosen responses: over an epoch the mean over all tokens. Legend: B sequences, chosen before rejected; T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedModel
    from trl import DPOTrainer


class TokenMean:
    """Put before DPOTrainer with the loss types sigmoid and sft."""

    mle_weight: float
    loss_weights: list[float]
    train_dataset: Dataset
    counted: tuple[Dataset | None, float] = (None, 0.0)  # a data set, and the mean length of its chosen responses

    def _compute_loss(self, model: PreTrainedModel, inputs: dict[str, Tensor], *others: object) -> Tensor:
        if self.counted[0] is not self.train_dataset:
            lengths = list(map(len, self.train_dataset["chosen_ids"]))
            self.counted = (self.train_dataset, sum(lengths) / len(lengths))
        chosen_BT = inputs["completion_mask"].chunk(2)[0][:, 1:]
        self.loss_weights = [1.0, self.mle_weight * float(chosen_BT.sum()) / (len(chosen_BT) * self.counted[1])]
        return super()._compute_loss(model, inputs, *others)  # type: ignore[misc]


def with_token_mean(trainer: DPOTrainer, *, mle_weight: float) -> DPOTrainer:
    """The trainer with its sft term so weighted, on rows of ids as they are trained (cut already)."""
    trainer.__class__ = type("TokenMeanDPOTrainer", (TokenMean, type(trainer)), {})
    trainer.mle_weight = mle_weight
    return trainer
