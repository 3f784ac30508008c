"""The front under shift on real data: policies of a finished `align hh` run sampled on plain and shifted prompts.

Judges are reward models that no method trained on. They score every response, decoded, against the *plain* prompt (a
judge that read the shifted one would be shifted itself); what it says on the shifted prompt is kept beside that.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from align.data.answers import SampledAnswer
from align.errors import UserError
from align.preferences import Weights
from align.runs import RUN_FILE, Call, planned
from evals.items import NO_SHIFT, Json
from evals.measure.sampling import Sampling
from evals.stats import intervals as stats
from evals.tables.under_shift import shifted_fronts as shifted
from recipes.pipeline.sampled import POINT_IS, reference_point
from recipes.real import judging

DRAWS = 1000
COMMAND = "align hh --config recipes/configs/hh_methods.yaml --data ../shared/data"
NAMES = ("helpful", "harmless")


@dataclass(frozen=True, kw_only=True)
class Real:
    """Rows of a finished hh run, shifts of evals/shifts, and how much is sampled."""

    rows: list[str]
    controls: list[str]
    shifts: list[str]
    weights: list[list[float]]
    prompts: int
    samples: int
    max_new_tokens: int
    n: int
    overspend: float
    overspender_of: str


def hh_plan(spec: Real, *, run: Path, out: Path) -> dict[str, list[Call]]:
    """Row -> a call for each preference; UserError where the run lacks what a row is made of."""
    needed = ["sft", "rows", "pairs", *(f"{kind}-{name}" for kind in ("judge", "reward-model") for name in NAMES)]
    for name in needed:
        if not (run / name / RUN_FILE).is_file():
            raise UserError(f"--hh: {run / name} is not finished; run `{COMMAND}`")
    of = {kind: {name: planned(run / f"{kind}-{name}") for name in NAMES} for kind in ("judge", "reward-model")}
    sampling = Sampling(samples=spec.samples, max_new_tokens=spec.max_new_tokens, batch_size=64)
    calls: dict[str, list[Call]] = {}
    for row in ("reference", *spec.rows, *spec.controls):
        unasked = row in ("reference", "length_only")
        for w in (Weights(tuple(values)) for values in (spec.weights[:1] if unasked else spec.weights)):
            policy = _policy(run, row if row in spec.rows else spec.overspender_of, w.label)
            if unasked or row == "best_of_n":
                policy = run / "sft"
            elif not (policy / RUN_FILE).is_file():
                print(f"hh: {policy} is not finished: {row} is left out at {w.label}", file=sys.stderr)
                continue
            judged = judging.Judged(
                row=row, weights=w, prompts=spec.prompts, sampling=sampling, n=spec.n, overspend=spec.overspend,
                shifts=tuple(spec.shifts),
            )  # fmt: skip
            call = judging.evaluate.call(
                out / "shift" / "hh" / row / w.label, data=planned(run / "rows"), reference=planned(run / "sft"),
                policy=planned(policy), judges=of["judge"], judged=judged, pairs=planned(run / "pairs"),
                reward_models=of["reward-model"],
            )  # fmt: skip
            calls.setdefault(row, []).append(call.named(f"hh {row} {w.label}"))
    return calls


def _policy(run: Path, row: str, label: str) -> Path:
    """The run that holds the row's policy at a preference: one for all preferences, or one for each."""
    family = run / "methods" / row / "all"
    return family if family.is_dir() else run / "methods" / row / label


def hh_table(answers: Sequence[SampledAnswer], *, spec: Real) -> Json:
    """Displacement, gain retained, rank changes and the judges' own shift; every interval over prompts (base items)."""
    plain = [c for c in answers if c.row == "reference" and c.shift == NO_SHIFT]
    values_NK = np.array([c.values for c in plain])
    mean_K, spread_K = values_NK.mean(0), values_NK.std(0)
    point = reference_point(plain)
    rows = list(dict.fromkeys(c.row for c in answers))
    every = [tuple(float(x) for x in w) for w in spec.weights]
    unasked = [c for c in answers if c.row in ("reference", "length_only")]  # they know no preference: one for all
    spread_out = [
        *answers,
        *(dataclasses.replace(c, preference=w) for c in unasked for w in every if c.preference != w),
    ]
    methods = [row for row in rows if row in spec.rows]
    runs = {0: spread_out}

    def utility(answer: SampledAnswer) -> float:
        """The preference's weighted sum in units of the reference's spread on plain prompts."""
        z_K = (np.array(answer.values) - mean_K) / spread_K
        return float(np.dot(answer.preference, z_K))

    table: Json = {}
    for shift in spec.shifts:
        entries = {}
        for row in rows:
            entries[row] = {
                "displacement": shifted.displacements(runs, row=row, shift=shift, objectives=NAMES),
                "gain_retained": shifted.gain_over_seeds(
                    runs, row=row, shift=shift, reference_row="reference", reference_point=point, draws=DRAWS, seed=0
                ),
                "utility": shifted.both_intervals(runs, row=row, shift=shift, score=utility),
                "kl": _mean(shifted.select(spread_out, row=row, shift=shift), lambda answer: answer.kl),
            }
        sides = [
            {r: shifted.item_means(shifted.select(spread_out, row=r, shift=s), utility) for r in methods}
            for s in (NO_SHIFT, shift)
        ]
        here = [c for c in answers if c.shift == shift]
        judge = {name: _mean(here, partial(_judge_change, k=k)) for k, name in enumerate(NAMES)}
        table[shift] = {"rows": entries, "ranks": shifted.rank_changes(*sides), "judge": judge}
    return {
        "methods": methods,
        "controls": [row for row in rows if row not in spec.rows],
        "prompts": len({c.item for c in plain}),
        "samples": spec.samples,
        "reference_point": point,
        "reference_point_is": POINT_IS,
        "fronts": {row: {s: _points(spread_out, row, s) for s in (NO_SHIFT, *spec.shifts)} for row in rows},
        "shifts": table,
        "split": "null: sampled responses, no exact optimum to split a drop with",
    }


def _mean(answers: Sequence[SampledAnswer], score: Callable[[SampledAnswer], float]) -> Json:
    means = shifted.item_means(answers, score)
    found = stats.clustered_mean(list(means.values()), clusters_N=list(means), over="prompts")
    return {"value": found.estimate, "ci": found.pair, "over": found.says}


def _points(answers: Sequence[SampledAnswer], row: str, shift: str) -> list[Json]:
    from evals.tables.surfaces import sampled_points

    return [point.jsonable() for point in sampled_points(shifted.select(answers, row=row, shift=shift))]


def _judge_change(answer: SampledAnswer, *, k: int) -> float:
    """How a judge's score of a response changes when it reads the shifted prompt in place of the plain one."""
    return (answer.values_shifted or answer.values)[k] - answer.values[k]
