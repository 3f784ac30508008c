"""A reward model's scores of an item's chosen and rejected responses behind the shifted prompt, as a measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from evals.backends.base import Backend
from evals.backends.reward_model import RewardBackend
from evals.items import Fields, Missing
from evals.measure.cells import Cell, Value


@dataclass(frozen=True)
class PairScores:
    """`chosen` and `rejected` (one score for each style), and over their pairs: mean margin, share right, share tied.

    A tie is half right. `cut`: a text was longer than the model's context and lost its beginning.
    """

    name: str = "pairs"
    needs: tuple[str, ...] = ("item",)

    def config(self) -> Fields:
        return {"responses": "as the prompt format begins a reply, none of them shifted"}

    def measure(self, cells: Sequence[Cell], *, backend: Backend) -> list[Value]:
        if not isinstance(backend, RewardBackend):
            return [Missing("unsupported_scores", "only reward models score responses", lasting=True)] * len(cells)
        texts = [_responses(cell) for cell in cells]
        scores = iter(
            backend.scores(
                [cell.question for cell, own in zip(cells, texts, strict=True) for _ in (*own[0], *own[1])],
                responses=[text for chosen, rejected in texts for text in (*chosen, *rejected)],
            )
        )
        return [
            _value(list(islice(scores, len(chosen) + len(rejected))), len(chosen)) for chosen, rejected in texts
        ]  # fmt: skip


def _responses(cell: Cell) -> tuple[Sequence[str], Sequence[str]]:
    columns = cell.item.columns
    return columns.get("chosen", ()), columns.get("rejected", ())


def _value(scored: Sequence[tuple[float, bool] | Missing], chosen: int) -> Value:
    lost = next((one for one in scored if isinstance(one, Missing)), None)
    if lost is not None:
        return lost
    known = [one for one in scored if not isinstance(one, Missing)]
    scores = [score for score, _ in known]
    margins = [a - b for a in scores[:chosen] for b in scores[chosen:]]
    if not margins:
        return Missing("no_pair", "the item has no chosen and rejected responses", lasting=True)
    if not all(map(math.isfinite, scores)):
        return Missing("not_finite", "a score is no finite number", lasting=True)
    return {
        "chosen": scores[:chosen], "rejected": scores[chosen:], "margin": sum(margins) / len(margins),
        "right": sum((m > 0) + (m == 0) / 2 for m in margins) / len(margins),
        "tied": sum(m == 0 for m in margins) / len(margins), "cut": any(cut for _, cut in known),
    }  # fmt: skip
