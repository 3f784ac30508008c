"""An objective that does not apply to some samples of a group (None) is neither for nor against them.

TRL leaves None out of a completion's sum, which counts it as a score of 0 as soon as another reward function (another
objective, the sequence's KL) scores that completion: an objective that pays -5 where it applies would reward not being
applied to. Here a missing score is the mean of those that the objective gave in the sample's group: its part of the
advantage is then exactly 0 for that sample, and the baseline of the others is their own mean. Where it applies to no
sample of a group it adds nothing, as in TRL. The KL counts for every sample. `rewards/NAME/mean` in the log is the mean
over groups that have a score. Legend: B completions, groups of one prompt together; F reward functions; K objectives.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def filled(rewards_BF: Tensor, *, group: int) -> Tensor:
    """(B, F) with each nan replaced by the mean of its function's scores in its group; nan where there are none."""
    rewards_PSF = rewards_BF.reshape(-1, group, rewards_BF.shape[1])
    means_P1F = rewards_PSF.nanmean(1, keepdim=True)
    return means_P1F.where(rewards_PSF.isnan(), rewards_PSF).view_as(rewards_BF)


def filled_rows(scores_KB: Sequence[Sequence[float | None]], *, keys: Sequence[object]) -> list[list[float | None]]:
    """The same for lists, where groups are neighbours of one key (prompt and weights)."""
    kept = [list(scores) for scores in scores_KB]
    for _, members in itertools.groupby(range(len(keys)), key=lambda i: keys[i]):
        rows = list(members)
        for scores in kept:
            known = [score for i in rows if (score := scores[i]) is not None]
            mean = math.fsum(known) / len(known) if known else None
            for i in rows:
                scores[i] = mean if scores[i] is None else scores[i]
    return kept


class PartialRewards:
    """Put before RLOOTrainer or GRPOTrainer: rewards as `filled`."""

    model: PreTrainedModel
    num_generations: int
    num_generations_eval: int

    def _calculate_rewards(self, *inputs: object) -> Tensor:
        rewards_BF = super()._calculate_rewards(*inputs)  # type: ignore[misc]
        return filled(rewards_BF, group=self.num_generations if self.model.training else self.num_generations_eval)
