"""Several objectives read as one: their mean, their worst, or their mean less a multiple of what they disagree by.

Legend: B texts, M members.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.errors import UserError
from align.objectives.base import Objective

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

COMBINE = ("mean", "min", "mean-std")


class Ensemble:
    """One score from M members, in the members' units; None where any member has None.

    `combine`: "mean"; "min" (the worst case); "mean-std", `mean - penalty * std` with the population formula. Coste et
    al. 2023 (arXiv 2310.02743) use all three, with the variance for the last: the standard deviation keeps units.
    Reward models from comparisons are known up to a constant per model and prompt, and "min" takes the lowest level:
    give members a common one (`shift`, a normalizer, or `center` in training). Each member is called once per batch.
    Raises UserError without members, on an unknown `combine`, and on a penalty that is negative or not finite.
    """

    def __init__(
        self, members: Sequence[Objective], *, combine: str = "mean", penalty: float = 1.0, name: str | None = None
    ) -> None:
        if not members:
            raise UserError("an ensemble needs members; give at least one objective")
        if combine not in COMBINE:
            raise UserError(f"an ensemble combines by {', '.join(COMBINE)}, not {combine!r}; choose one of them")
        if not (math.isfinite(penalty) and penalty >= 0):
            raise UserError(f"an ensemble's penalty is {penalty}; give a number of at least 0")
        self.members = tuple(members)
        self.combine = combine
        self.penalty = float(penalty)
        self.learned = any(getattr(member, "learned", False) for member in self.members)
        self.__name__ = name or f"{combine}_{'_'.join(member.__name__ for member in self.members)}"

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float | None]:
        by_member = [member(prompts, completions, **columns) for member in self.members]
        for member, scores in zip(self.members, by_member, strict=True):
            if len(scores) != len(completions):
                raise ValueError(f"{member.__name__} gave {len(scores)} scores for {len(completions)} completions")
        return [self._combined(scores) for scores in zip(*by_member, strict=True)]

    def _combined(self, scores: Sequence[float | None]) -> float | None:
        known = [float(score) for score in scores if score is not None]
        if len(known) < len(scores):
            return None
        if self.combine == "min":
            return min(known)
        mean = math.fsum(known) / len(known)
        if self.combine == "mean":
            return mean
        return mean - self.penalty * math.sqrt(math.fsum((score - mean) ** 2 for score in known) / len(known))

    def of_scores(self, scores_BM: Tensor) -> Tensor:
        """(B,) combined scores of (B, M) scores that all apply."""
        if self.combine == "min":
            return scores_BM.amin(-1)
        mean_B = scores_BM.mean(-1)
        return mean_B if self.combine == "mean" else mean_B - self.penalty * scores_BM.std(-1, correction=0)

    def bind(self, model: PreTrainedModel) -> None:
        """Give a policy in training to the members that can share its backbone (`SharedRewardModel.bind`)."""
        from align.models.shared_backbone import bind

        bind(self.members, model)
