"""Comparisons whose labels err and whose lengths tell: a loss that takes labels for wrong, pairs matched by length."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.data.comparisons import Row
from align.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class SmoothedLoss:
    """Put before RewardTrainer: `(1 - e) loss(m) + e loss(-m)` of margins m, which is `loss(m) + e m`."""

    smoothing: float = 0.0

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)  # type: ignore[misc]
        chosen_B, rejected_B = outputs.logits.squeeze(-1).float().chunk(2)
        loss = loss + self.smoothing * (chosen_B - rejected_B).mean()
        return (loss, outputs) if return_outputs else loss


def matched_by_length(rows: Sequence[Row], *, seed: int) -> list[Row]:
    """Pairs, in order, of which for each difference in tokens as many have the longer response chosen as rejected.

    Pairs of equal lengths all stay. UserError when none is left.
    """
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(len(row["chosen_ids"]) - len(row["rejected_ids"]), []).append(i)
    kept, rng = list[int](), random.Random(f"length {seed}")
    for difference, members in sorted(groups.items()):
        count = len(groups.get(-difference, []))
        kept += members if len(members) <= count else rng.sample(members, count)
    if not kept:
        raise UserError("no pairs are left once lengths are matched: one side is always the longer; set it to false")
    return [rows[i] for i in sorted(kept)]
