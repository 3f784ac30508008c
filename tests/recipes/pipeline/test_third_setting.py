"""A third setting in forty lines goes through plan, stages and summary: what an experiment needs and no more."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from align.data.answers import SampledAnswer
from align.preferences import Weights, simplex_grid
from align.runs import Call, Metrics, Run, Workspace, stage
from evals.measure.answers import append_answers
from evals.report import render
from recipes.pipeline.plan import plan
from recipes.pipeline.rows import Fit, Row
from recipes.pipeline.setting import Setting
from recipes.pipeline.summary import About, summary
from recipes.pipeline.tasks import run_calls


@stage
def dial(work: Workspace, *, strength: float = 0.0, fit: Fit | None = None, base: Run | None = None) -> Metrics:
    """A policy that is one number: the base's, raised by the learning rate where a method is fitted."""
    start = 0.0 if base is None else json.loads((base.path / "policy.json").read_text())
    rate = 0.0 if fit is None else float(str(fit.settings["learning_rate"]))
    (work.folder / "policy.json").write_text(json.dumps(start + strength + rate))
    return {"optimises": {} if fit is None else {w.label: f"the sum at w = {w.label}" for w in fit.preferences}}


@stage
def ask(work: Workspace, *, row: str, policy: Run, weights: Weights) -> Metrics:
    """Two prompts; the policy's number goes to the objectives in proportion to the weights."""
    value = json.loads((policy.path / "policy.json").read_text())
    append_answers(
        work.folder / "cells.jsonl",
        [
            SampledAnswer(
                row=row, preference=weights.values, shift="none", item=prompt, prompt=prompt, kl=value, sample=s,
                values=tuple(value * w + 0.1 * s for w in weights), completion="yes",
            )
            for prompt in ("first", "second")
            for s in (0, 1)
        ],
    )  # fmt: skip
    return {"samples_per_response": 1}


@dataclass(frozen=True)
class Dials:
    """The setting: no comparisons, no reward models, one control."""

    out: Path
    objectives: tuple[str, ...] = ("left", "right")
    row_keys: frozenset[str] = frozenset()

    def reference(self) -> Sequence[Call]:
        return [dial.call(self.out / "base", strength=0.5)]

    def comparisons(self) -> Sequence[Call]:
        return []

    def reward_models(self) -> Mapping[str, Call]:
        return {}

    def more(self) -> Sequence[Call]:
        return []

    def asked(self, row: Row) -> Sequence[Weights]:
        return simplex_grid(2, 2)

    def fixes(self, row: Row) -> Mapping[str, object]:
        return {"beta": 0.2, "no_such_setting": 1}

    def fit(self, row: Row, fit: Fit, specialists: Mapping[str, Run]) -> Call:
        out = self.out / row.folder / fit.preferences[0].label
        return dial.call(out, fit=fit, base=self.reference()[-1].run).named(f"{row.name} {out.name}")

    def judge(self, row: Row, policy: Run, weights: Weights) -> Sequence[Call]:
        return [self.asking(row.name, policy, weights)]

    def asking(self, row: str, policy: Run, weights: Weights) -> Call:
        out = self.out / "cells" / row / weights.label
        return ask.call(out, row=row, policy=policy, weights=weights).named(f"ask {row} {weights.label}")

    def controls(self) -> Mapping[str, Sequence[Call]]:
        return {"reference": [self.asking("reference", self.reference()[-1].run, w) for w in simplex_grid(2, 2)]}


def test_a_third_setting_goes_through_plan_stages_and_summary(tmp_path: Path) -> None:
    setting: Setting = Dials(tmp_path)
    rows = [Row(name=name, method="dpo", settings={"learning_rate": r}) for name, r in (("low", 0.25), ("high", 1.0))]
    made = plan(setting, rows)
    assert made.fits["low"]["0.5,0.5"].arguments["fit"].settings == {"beta": 0.2, "learning_rate": 0.25}
    run_calls(made.calls, workers=0, label="dials")
    about = About(title="Dials", headline="left", info={"low": {"note": "turned a little"}})
    found = summary(made, about=about, config={"seed": 3}, seed=3)
    assert list(found.methods) == ["high", "low", "reference"] and found.kind == "sampled"
    assert [point["values"] for point in found.methods["high"]["front"]][0] == pytest.approx([0.05, 1.55])
    low = found.methods["low"]
    assert low["optimises"] == "the sum at each w" and low["note"] == "turned a little"
    assert list(found.controls) == ["reference"] and found.world_details["prompts"] == 2
    assert set(found.ledger) >= {"base", "low (all points)", "evaluate high (all points)", "total"}
    page = render(found.jsonable())
    assert "Dials" in page and "turned a little" in page
