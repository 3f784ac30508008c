"""The verdict as a measurement of the engine: a judge on the completion of a cell, with its fingerprint in the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.backends.base import Backend
from evals.items import Missing
from evals.judges.base import Judge, Judgement
from evals.measure.measurements import Request, Value


@dataclass(frozen=True)
class Verdict:
    """`{"verdict", "stance", "score", "why"}` of each completion: the judge reads the request as the suite wrote it and
    the response as the shift decodes it.
    """

    judge: Judge
    name: str = "verdict"
    needs: tuple[str, ...] = ("completion",)

    def config(self) -> Mapping[str, Any]:
        return {"judge": self.judge.name, "fingerprint": self.judge.fingerprint}

    def measure(self, requests: Sequence[Request], *, backend: Backend) -> list[Value]:
        responses = [r.response() for r in requests]
        found = self.judge.judge([r.item for r in requests], responses=responses)
        return [_value(judged, response) for judged, response in zip(found, responses, strict=True)]


def _value(judged: Judgement | Missing, response: str | Missing) -> Value:
    """The cell's value. What the judge failed at is told apart from what the policy did, and asked again next time."""
    if not isinstance(judged, Missing):
        return judged.jsonable()
    return judged if isinstance(response, Missing) else Missing(f"judge_{judged.reason}", judged.detail)
