"""Judges in turn: each decides what the ones before it left UNCLEAR; an outage on the way stays Missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from align.errors import UserError
from evals.items import Item, Missing, digest
from evals.judges.base import Judge, Judgement, Pending, Stance, judged, stances_of


class Combined:
    """Cheap judges first. What every one leaves UNCLEAR is UNCLEAR, with the last one's score and reason.

    A Missing by a later judge is Missing, not the earlier UNCLEAR: a table must show that the judge was away.
    """

    def __init__(self, judges: Sequence[Judge]) -> None:
        if len(judges) < 2:
            raise UserError(f"a combined judge needs two judges or more, not {len(judges)}; name the one alone instead")
        self.judges = tuple(judges)
        self.name, self.version = ("+".join(getattr(j, part) for j in self.judges) for part in ("name", "version"))

    @property
    def stances(self) -> frozenset[Stance]:
        """What any of them can find."""
        return frozenset[Stance]().union(*map(stances_of, self.judges))

    @property
    def fingerprint(self) -> str:
        """Of the judges, in their order."""
        return digest([(judge.name, judge.fingerprint) for judge in self.judges])[:16]

    def judge(self, items: Sequence[Item], *, responses: Sequence[str | Missing]) -> list[Judgement | Missing]:
        """`why` starts with the name of the judge that decided."""
        return judged(items, responses, self._all)

    def _all(self, pending: Sequence[Pending]) -> list[Judgement | Missing]:
        results: dict[int, Judgement | Missing] = {}
        for judge in self.judges:
            left = [i for i in range(len(pending)) if i not in results or _unclear(results[i])]
            if not left:
                break
            found = judge.judge([pending[i][0] for i in left], responses=[pending[i][1] for i in left])
            for i, one in zip(left, found, strict=True):
                results[i] = one if isinstance(one, Missing) else replace(one, why=f"{judge.name}: {one.why}")
        return [results[i] for i in range(len(pending))]


def _unclear(found: Judgement | Missing) -> bool:
    return isinstance(found, Judgement) and found.stance is Stance.UNCLEAR
