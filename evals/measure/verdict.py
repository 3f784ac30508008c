"""The verdict as a measurement of the engine: a judge on the completion of a cell, with its fingerprint in the key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evals.backends.base import Backend
from evals.items import Fields, Missing, number_of
from evals.judges.base import Judge, Judgement, can_fail
from evals.measure.cells import EMPTY, Cell, Value


@dataclass(frozen=True)
class Verdict:
    """`{"verdict", "stance", "score", "why", "can_fail"}` of each completion: the judge reads the request as the suite
    wrote it and the response as the shift decodes it. `can_fail`: it could have said BAD of this item.
    """

    judge: Judge
    name: str = "verdict"
    needs: tuple[str, ...] = ("response", "item")

    def config(self) -> Fields:
        version = number_of(self.judge.version)
        return {"judge": self.judge.name, "version": version, "fingerprint": self.judge.fingerprint}

    def measure(self, cells: Sequence[Cell], *, backend: Backend) -> list[Value]:
        responses = [_said(cell.response()) for cell in cells]
        judged = self.judge.judge([cell.item for cell in cells], responses=responses)
        return [
            _value(judgement, response, can_fail=can_fail(self.judge, item=cell.item))
            for cell, judgement, response in zip(cells, judged, responses, strict=True)
        ]


def _said(response: str | Missing) -> str | Missing:
    """An empty answer is what the policy did, and no outage."""
    return "" if isinstance(response, Missing) and response.reason == EMPTY else response


def _value(judged: Judgement | Missing, response: str | Missing, *, can_fail: bool) -> Value:
    """The cell's value. A judge's failure is kept apart from what the policy did, and asked for again next time."""
    if not isinstance(judged, Missing):
        return judged.jsonable() | {"can_fail": can_fail}
    return judged if isinstance(response, Missing) else Missing(f"judge_{judged.reason}", judged.detail)
