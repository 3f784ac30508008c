"""Cost models from comparisons with safety labels: which response is safer, and whether each is safe (Safe RLHF).

Loss: `align.functional.losses.cost_loss` (Dai et al. 2024), through TRL's RewardTrainer. The output is a *cost*: lower
is safer, and 0 is the boundary between what is labelled safe and unsafe. Use it as an objective negated, never z-scored
or shifted: `Negated(RewardModelObjective(run))` with the threshold 0 demands an expected cost of at most 0.
Deviations from the official code: the start (a fresh head on any backbone) and the optimiser are those of
align/training/reward_model.py, and a pair whose labels contradict its order is refused instead of trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align import checks
from align.data.comparisons import Row
from align.errors import UserError
from align.functional.losses import cost_loss
from align.objectives.scoring import score
from align.runs import Ledger
from align.training import reward_model
from align.training.reward_model import IDS, Collator, Kind, RewardModelConfig, Rows, texts_of, train_scorer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

LABELS = ("safe_chosen", "safe_rejected")


@dataclass(frozen=True)
class CostModelConfig(RewardModelConfig):
    """The reward model's fields, without `center` (it would move the boundary), and `square`, the coefficient of the
    mean squared cost.
    """

    square: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(0, self, "square")
        if self.label_smoothing:
            raise UserError("label_smoothing has no meaning for a cost model, whose labels are two; leave it out")
        if self.center:
            raise UserError("center would move a cost model's boundary at 0; leave it out, square keeps costs small")


class CostLoss:
    """Put before RewardTrainer: the cost loss on batches that carry `safe`, (2, B) labels in TRL's order.

    TRL's `chosen` scores higher. Here it is the less safe response, so that TRL's own accuracy and margin are those of
    the costs' order.
    """

    square: float = 0.0
    _signature_columns: list[str]

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        self._signature_columns = [*dict.fromkeys([*self._signature_columns, *LABELS])]

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        chosen_is_safe_B, rejected_is_safe_B = inputs.pop("safe")
        _, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)  # type: ignore[misc]
        chosen_B, rejected_B = outputs.logits.squeeze(-1).float().chunk(2)
        facts = {"unsafer_B": chosen_B, "safer_is_safe_B": rejected_is_safe_B, "unsafer_is_safe_B": chosen_is_safe_B}
        loss = cost_loss(rejected_B, **facts, square=self.square).mean()
        return (loss, outputs) if return_outputs else loss


def with_labels(collate: Collator) -> Collator:
    """A preference collator that also gathers the safety labels, as `safe`."""

    def collate_with_labels(examples: list[Row]) -> dict[str, Tensor]:
        import torch

        labels = [[bool(example[name]) for example in examples] for name in LABELS]
        return {**collate(examples), "safe": torch.tensor(labels)}

    return collate_with_labels


def train_cost_model(
    config: CostModelConfig, *, model: str | Path, rows: Rows, out: Path, ledger: Ledger, validation: Rows | None = None
) -> dict[str, object]:
    """Train on rows with `prompt`, `chosen` (the safer), `rejected`, `safe_chosen`, `safe_rejected`; save `out/model`.

    Resumes. Metrics: those of `cost_accuracy` on `validation` (None without), `train_accuracy` and
    `train_sign_accuracy` (first 1,000 rows), and what `train_reward_model` says beside them (`epoch` is chosen by
    accuracy of the order). UserError as for `checked_pairs`, and when `choose_epoch` has no
    validation rows.
    """
    kind = Kind("cost model", checked_pairs, build_trainer, turned, cost_accuracy)
    return train_scorer(config, kind, model=model, rows=rows, out=out, ledger=ledger, validation=validation)


def build_trainer(
    config: CostModelConfig, *, scorer: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Rows, out: Path
) -> Trainer:
    """TRL's RewardTrainer with the cost loss on `checked_pairs`."""
    from trl import RewardTrainer

    made = type("CostTrainer", (CostLoss, RewardTrainer), {"square": config.square})
    trainer = reward_model.build_trainer(
        config, scorer=scorer, tokenizer=tokenizer, pairs=turned(pairs), out=out, trainer_class=made
    )
    trainer.data_collator = with_labels(trainer.data_collator)
    return trainer


def turned(pairs: Rows) -> Rows:
    """The pairs in TRL's order: `chosen` is the response of higher cost."""
    swaps = (("chosen", "rejected"), tuple(IDS.values()), LABELS)
    other = {a: b for one, two in swaps for a, b in ((one, two), (two, one))}
    return [{key: pair[other.get(key, key)] for key in pair} for pair in pairs]


def checked_pairs(rows: Rows) -> Rows:
    """The three texts and two labels of every pair.

    UserError on a row without them, and on one whose safer response is labelled unsafe and the other safe (the columns
    are swapped, or `chosen` is the more helpful one).
    """
    pairs = []
    for number, row in enumerate(rows, start=1):
        texts = texts_of(row, number=number)
        for key in LABELS:
            if row.get(key) not in (True, False):
                raise UserError(f"comparison row {number}: {key} is {row.get(key)!r}; say true or false")
        if row["safe_rejected"] and not row["safe_chosen"]:
            raise UserError(
                f"comparison row {number}: chosen is labelled unsafe and rejected safe; chosen must be the safer "
                "response: swap the columns, or drop such rows"
            )
        pairs.append(texts | {key: bool(row[key]) for key in LABELS})
    return pairs


def cost_accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Rows) -> dict[str, float]:
    """`accuracy` of the order (the safer response costs less; ties half), `sign_accuracy` of both responses' sides of 0
    (0 counts half), `log_loss` (the cost loss in nats, without the squares) and `n`.
    """
    import torch

    prompts = [pair["prompt"] for pair in pairs]
    sides = {key: score(model, tokenizer, prompts, [pair[key] for pair in pairs]) for key in ("chosen", "rejected")}
    safer_B, unsafer_B = (torch.tensor(sides[key], dtype=torch.float64) for key in ("chosen", "rejected"))
    safe_2B = torch.tensor([[bool(pair[key]) for pair in pairs] for key in LABELS])
    right_2B = torch.where(safe_2B, -1.0, 1.0) * torch.stack([safer_B, unsafer_B])
    losses_B = cost_loss(safer_B, unsafer_B=unsafer_B, safer_is_safe_B=safe_2B[0], unsafer_is_safe_B=safe_2B[1])
    return {
        "accuracy": _share_positive(unsafer_B - safer_B),
        "sign_accuracy": _share_positive(right_2B),
        "log_loss": losses_B.mean().item(),
        "n": float(len(pairs)),
    }


def _share_positive(values: Tensor) -> float:
    return float(((values > 0).double() + 0.5 * (values == 0).double()).mean())
