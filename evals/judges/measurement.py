"""The verdict as a measurement of the engine: a judge on the completion of a cell, with its fingerprint in the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.backends.base import Backend
from evals.judges.base import Judge
from evals.measurements import Request, Value
from evals.prompts import Missing


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
        found = self.judge.judge([r.item for r in requests], responses=[r.response() for r in requests])
        return [value if isinstance(value, Missing) else value.jsonable() for value in found]
