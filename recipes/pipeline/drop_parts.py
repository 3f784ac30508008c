"""The four parts of every drop under a shift, estimated from samples of an evaluation's policies: numbers and lines.

Rewards are those of the objectives on the plain prompt and the decoded response, at the point's weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from align.errors import Outage, UserError
from align.models.sampling import Drawn, told
from align.runs import RUN_FILE, open_run
from evals.attribution.model_pools import asked_of, parts_of
from evals.items import NO_SHIFT, Json
from evals.measure.sampling import REFERENCE, Point, Sampling
from evals.report.words import interval, num
from evals.shifts import SHIFTS

if TYPE_CHECKING:
    from align.objectives import Objective
    from align.policies.base import Policy

Rows = Sequence[Mapping[str, str]]
UNCONTROLLED = "null: no matched control among the prompts, so that surface holds what the shift's words cost, too"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What responses are drawn on and scored by: rows (prompt, item) by shift, objectives by name, draws a source."""

    prompts: Mapping[str, Rows]
    controls: Mapping[str, str]
    objectives: Mapping[str, Objective]
    sampling: Sampling


def controls_of(named: Mapping[str, str], *, shifts: Sequence[str], where: str) -> dict[str, str]:
    """Shift -> the control among the shifts: as named, else the one that a shift of ours has. UserError for a name
    that is not among the shifts.
    """
    odd = next((n for pair in named.items() for n in pair if n not in shifts), None)
    if odd is not None:
        raise UserError(f"{where}: --control names {odd!r}, which is not among --data ({', '.join(shifts)})")
    known = {s: SHIFTS[s].control for s in shifts if s in SHIFTS}
    return {s: c for s, c in known.items() if c is not None and c in shifts} | dict(named)


def beta_of(run: str | Path, *, given: float | None) -> float:
    """The price of KL that is given, else the one that the run was trained at; UserError where it names none."""
    if given is not None:
        return given
    training = open_run(run).config.get("training") if (Path(run) / RUN_FILE).is_file() else None
    beta = training.get("beta") if isinstance(training, Mapping) else None
    if not isinstance(beta, (int, float)) or beta <= 0:
        raise UserError(f"{run} does not say at which beta it was trained; give it with --beta")
    return float(beta)


@dataclass(frozen=True, kw_only=True)
class Divided:
    """The drop of one point under one shift: part -> value, ci, over, n, ess; no parts where `why` says so."""

    row: str
    preference: tuple[float, ...]
    shift: str
    beta: float
    control: str | None
    parts: Mapping[str, Mapping[str, object]]
    why: str | None = None

    @property
    def line(self) -> str:
        """What the terminal shows: the parts with intervals, or why there are none."""
        weights = ",".join(f"{w:g}" for w in self.preference)
        start = f"parts of the drop, {self.row} at {weights} under {self.shift} (beta {self.beta:g}): "
        if self.why is not None:
            return f"{start}none, {self.why}"
        said = ", ".join(f"{name.replace('_', ' ')} {_number(found)}" for name, found in self.parts.items())
        lost = sorted({str(found["over"]) for found in self.parts.values() if found["value"] is None})
        return "; ".join([start + said, *lost])

    def jsonable(self) -> dict[str, object]:
        return dataclasses.asdict(self) | {"preference": list(self.preference), "line": self.line}


def drop_parts(
    points: Sequence[Point], *, reference: Policy, judged: Judged, betas: Mapping[str, float], conflict: bool
) -> list[Divided]:
    """One for each point but the reference under each shift. `conflict`: whether two objectives disagree; where none
    do, the second part is called pull.
    """
    found: list[Divided] = []
    for point in points:
        for shift in judged.prompts:
            if point.row == REFERENCE or shift == NO_SHIFT:
                continue
            one = Divided(
                row=point.row, preference=tuple(point.preference), shift=shift, beta=betas[point.row],
                control=judged.controls.get(shift), parts={},
            )  # fmt: skip
            try:
                parts = _under(shift, point, reference=reference, judged=judged, beta=one.beta)
            except Outage:
                raise
            except (UserError, ValueError) as error:
                found.append(dataclasses.replace(one, why=str(error)))
                continue
            name = "competing" if conflict else "pull"
            named = {name if part == "competing" else part: value for part, value in parts.items()}
            found.append(dataclasses.replace(one, parts=named))
        if point.row != REFERENCE and hasattr(point.policy, "release"):
            point.policy.release()
    return found


def _under(shift: str, point: Point, *, reference: Policy, judged: Judged, beta: float) -> Json:
    control = judged.controls.get(shift)
    decode = SHIFTS[shift].decode if shift in SHIFTS else str
    asked = asked_of(
        judged.prompts[NO_SHIFT], shifted=judged.prompts[shift],
        control=None if control is None else judged.prompts[control],
    )  # fmt: skip

    def reward(prompts: Sequence[str], responses: Sequence[Drawn]) -> np.ndarray:
        texts = [decode(response.text) for response in responses]
        scores_KN = [objective(prompts, texts, **told(responses)) for objective in judged.objectives.values()]
        if any(score is None for scores in scores_KN for score in scores):
            raise UserError("an objective has no score of some responses")
        return np.array(point.preference) @ np.array(scores_KN, dtype=float)

    found = parts_of(
        point.policy, reference, asked=asked, reward=reward, beta=beta, sampling=judged.sampling
    )  # fmt: skip
    if control is None:
        found["competing"] |= {"value": None, "ci": None, "over": UNCONTROLLED}
    return found


def _number(found: Mapping[str, object]) -> str:
    pair = found["ci"]
    if found["value"] is None:
        return "null"
    return f"{num(found['value'])} {interval(pair)}" if isinstance(pair, list) else num(found["value"])
