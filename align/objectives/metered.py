"""An objective under its name in the run, which charges every score that it reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from align.data.comparisons import Row, ids_of, responses_of
from align.errors import UserError
from align.objectives.base import Objective
from align.runs import Ledger


class Metered:
    """An objective under its name in the run, which charges every score it reads to the ledger.

    The name makes TRL's metric keys distinct (two functions of one name are averaged together in its log). `last` holds
    the scores of the latest call, for callbacks that move the weights. `ends`: the tokens at which the sampler ends a
    response, so that an objective which cannot read its ids learns which of them were cut.
    """

    def __init__(self, name: str, objective: Objective, ledger: Ledger, *, ends: Sequence[int] = ()) -> None:
        self.__name__, self.ends = name, ends
        self.objective, self.ledger = objective, ledger
        self.last: list[float | None] = []

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float | None]:
        """One score or None per completion; ValueError on another number of scores or one that is not finite."""
        ids: Any = columns.get("completion_ids")
        if self.ends and ids is not None:
            columns = {"completion_ended": [len(one) > 0 and int(one[-1]) in self.ends for one in ids], **columns}
        scores = [None if s is None else float(s) for s in self.objective(prompts, completions, **columns)]
        if len(scores) != len(completions):
            raise ValueError(f"objective {self.__name__} gave {len(scores)} scores for {len(completions)} completions")
        if not all(s is None or math.isfinite(s) for s in scores):
            raise ValueError(f"objective {self.__name__} gave a score that is not finite; None says 'does not apply'")
        self.ledger.add(scores_read=sum(s is not None for s in scores))
        self.last = scores
        return scores


def objectives_of(functions: Sequence[object]) -> list[Metered]:
    """The metered objectives among reward functions, those inside a weighted sum (its `objectives`) included."""
    found = [f for function in functions for f in (function, *getattr(function, "objectives", ()))]
    return list(dict.fromkeys(f for f in found if isinstance(f, Metered)))


def objective_scores(
    rows: Sequence[Row], *, objectives: Mapping[str, Objective], ledger: Ledger
) -> dict[str, tuple[list[float], list[float]]]:
    """The scores of both responses of every row, asked from the objectives; UserError where one does not apply.

    Where rows carry the ids that were drawn, the objectives get those too, as in TRL's convention, and none for a
    response that has its text alone.
    """
    prompts, drawn = [row["prompt"] for row in rows], [ids_of(row) for row in rows]
    columns_K = []
    for name, objective in objectives.items():
        metered = Metered(name, objective, ledger)
        sides = []
        for side in (0, 1):
            ids = [list(pair[side] or ()) for pair in drawn]
            columns = {"completion_ids": ids} if any(ids) else {}
            scores = metered(prompts, [responses_of(row)[side] for row in rows], **columns)
            for row, score in zip(rows, scores, strict=True):
                if score is None:
                    raise UserError(f"objective {name} does not apply to comparison {row.get('id')}; drop that row")
            sides.append([s for s in scores if s is not None])
        columns_K.append(sides)
    return {
        str(row["id"]): ([sides[0][i] for sides in columns_K], [sides[1][i] for sides in columns_K])
        for i, row in enumerate(rows)
    }
