"""A reward model's scores of an item's chosen and rejected responses behind the shifted prompt, as a measurement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.backends.base import Backend
from evals.backends.reward_model import RewardBackend
from evals.items import Missing
from evals.measure.measurements import Request, Value


@dataclass(frozen=True)
class PairScores:
    """`chosen` and `rejected` (one score for each style), and over their pairs: mean margin, share right, share tied.

    A tie is half right. `cut`: a text was longer than the model's context and lost its beginning.
    """

    name: str = "pairs"
    needs: tuple[str, ...] = ()

    def config(self) -> Mapping[str, Any]:
        return {"responses": "one space before each, none of them shifted"}

    def measure(self, requests: Sequence[Request], *, backend: Backend) -> list[Value]:
        if not isinstance(backend, RewardBackend):
            return [Missing("unsupported_scores", "only reward models score responses", lasting=True)] * len(requests)
        texts = [[*r.item.columns.get("chosen", ()), *r.item.columns.get("rejected", ())] for r in requests]
        found = backend.scores(
            [r.prompt for r, mine in zip(requests, texts, strict=True) for _ in mine],
            responses=[text for mine in texts for text in mine],
        )
        values: list[Value] = []
        start = 0
        for request, mine in zip(requests, texts, strict=True):
            values.append(_value(found[start : start + len(mine)], len(request.item.columns.get("chosen", ()))))
            start += len(mine)
        return values


def _value(found: Sequence[tuple[float, bool] | Missing], chosen: int) -> Value:
    lost = next((one for one in found if isinstance(one, Missing)), None)
    if lost is not None:
        return lost
    scores = [one[0] for one in found if not isinstance(one, Missing)]
    margins = [a - b for a in scores[:chosen] for b in scores[chosen:]]
    if not margins:
        return Missing("no_pair", "the item has no chosen and rejected responses", lasting=True)
    if not all(map(math.isfinite, scores)):
        return Missing("not_finite", "a score is no finite number", lasting=True)
    return {
        "chosen": scores[:chosen], "rejected": scores[chosen:], "margin": sum(margins) / len(margins),
        "right": sum((m > 0) + (m == 0) / 2 for m in margins) / len(margins),
        "tied": sum(m == 0 for m in margins) / len(margins), "cut": any(one[1] for one in found),  # type: ignore[index]
    }  # fmt: skip
