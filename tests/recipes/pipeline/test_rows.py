"""What a plan refuses about its rows in one line, before any work, and what rows made of others are given."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from align.engines.problem import Problem
from align.errors import UserError
from align.methods import METHODS, mod
from align.preferences import Weights
from align.runs import Ledger, Run, Workspace
from benchmarks.testbed import plan as benchmark
from recipes.commands.demo import DEFAULTS
from recipes.commands.hh import DEFAULTS as HH_DEFAULTS
from recipes.config import build, read_yaml
from recipes.pipeline import fitting
from recipes.pipeline.plan import Plan, plan
from recipes.pipeline.rows import Fit, Row, read_rows
from recipes.pipeline.summary import shared
from recipes.real import setting as real
from recipes.real import stages
from recipes.real.stages import Data
from recipes.testbed.demo import Config, Demo, setting_of

Rows = Mapping[str, Mapping[str, Any]]
MORLHF = {"method": "morlhf", "settings": {"steps": 3}}


def demo_plan(rows: Rows) -> Plan:
    config = build(Config, {**read_yaml(DEFAULTS), "rows": rows}, where="demo.yaml")
    return plan(setting_of(config), read_rows(config.rows, where="demo.yaml", kind=Row))


def benchmark_plan(rows: Rows, *, smoke: bool = False) -> Plan:
    file = Path(benchmark.__file__).with_name("rows.yaml")
    found = benchmark.read_file(file)
    checked = read_rows(rows, where=file.name, kind=Row)
    plans = benchmark.grid(found, out=Path("runs"), worlds=["default"], seeds=[0], rows=checked, smoke=smoke)
    return plans["default", 0]


def hh_rows(changes: Mapping[str, Any]) -> Plan:
    values = read_yaml(HH_DEFAULTS)
    methods = {**values["methods"], "x": {"method": "dpo", **changes}}
    config = build(real.Config, {**values, "methods": methods, "data": "DATA"}, where="hh.yaml")
    return plan(*real.setting_of(config, where="hh.yaml"))


def fit_of(made: Plan, row: str, label: str = "0.5,0.5") -> Fit:
    fit = made.fits[row][label].arguments["fit"]
    assert isinstance(fit, Fit)
    return fit


@pytest.mark.parametrize(
    ("rows", "name", "beta"),
    [
        ({"mix": {"method": "mod"}}, "mix", 0.1),
        ({"mix": {"method": "mod", "settings": {"method_config": {"beta": 0.4}}}}, "mix", 0.4),
        ({"m": {"method": "morlhf", "settings": {"beta": 0.3}}, "mix": {"method": "mod", "specialists_of": "m"}},
         "mix", 0.3),
    ],
)  # fmt: skip
def test_a_mixture_knows_the_beta_of_its_specialists(rows: Rows, name: str, beta: float) -> None:
    fit = fit_of(demo_plan(rows), name)
    config = fit.config(specialists=("one", "other"))
    assert isinstance(config, mod.Config) and config.betas == (beta, beta)
    config.check(objectives=2)
    assert mod.gains(config, count=2, trained_at=None) == pytest.approx((beta / 0.1,) * 2)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"x": {"method": "rewarded_soups", "settings": {"method": "nosuch"}}}, "x: no method 'nosuch' to train"),
        ({"x": {"method": "rewarded_soups", "settings": {"method": "panacea"}}}, "x: no method 'panacea' to train"),
        ({"x": {"method": "mod", "settings": {"method_config": {"zz": 1}}}}, "method_config of morlhf has no key 'zz'"),
        ({"x": {"method": "mod", "smoke": {"method_config": {"zz": 1}}}}, "method_config of morlhf has no key 'zz'"),
        ({"m": MORLHF, "x": {"method": "dpo", "specialists_of": "m"}}, "x: method dpo takes no specialists"),
        ({"m": {"method": "panacea", "runs": "family"}, "x": {"method": "mod", "specialists_of": "m"}},
         "'m', which trains no policy per preference"),
        ({"m": {**MORLHF, "runs": "family"}, "x": {"method": "mod", "specialists_of": "m"}},
         "'m', which trains no policy per preference"),
        ({"a/b": MORLHF, "a_b": MORLHF}, "row a_b would share its folder with row a/b"),
        ({"x": {"method": "mod"}, "x_specialists": MORLHF}, "x/specialists would share its folder with row x_spec"),
        ({"optimum": MORLHF}, "row optimum would share its folder with the control optimum"),
        ({"reference": MORLHF}, "row reference would share its folder with the control reference"),
        ({"": MORLHF}, "row '' has no name that a folder could have"),
        ({"..": MORLHF}, "row '..' has no name that a folder could have"),
        ({"x": {**MORLHF, "worlds": ["default"]}}, "row x: worlds is not read"),
        ({"x": {"method": "lagrangian", "asks": "thresholds"}}, "row x: asks is not read"),
        ({"x": {**MORLHF, "fixed_point": "gdpo"}}, "row x: fixed_point is not read"),
        ({"x": {"method": "lagrangian", "asks": "thresholds", "runs": "family"}}, "x: asks: thresholds trains one run"),
    ],
)  # fmt: skip
def test_rows_that_could_not_run_are_refused_by_the_plan(rows: Rows, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        demo_plan(rows)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": "gold"}, "x: rewards: gold needs exact objectives"),
        ({"asks": "thresholds"}, "row x: asks is not read"),
        ({"worlds": ["default"]}, "row x: worlds is not read"),
        ({"fixed_point": "none"}, "row x: fixed_point is not read"),
    ],
)
def test_real_data_refuse_keys_of_the_testbed(changes: Mapping[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        hh_rows(changes)


@pytest.mark.parametrize("file", ["hh.yaml", "hh_methods.yaml"])
def test_committed_files_of_real_data_still_plan(file: str) -> None:
    values = {**read_yaml(HH_DEFAULTS), **read_yaml(HH_DEFAULTS.with_name(file)), "data": "DATA"}
    setting, rows = real.setting_of(build(real.Config, values, where=file), where=file)
    assert list(plan(setting, rows).fits) == list(values["methods"])


def test_a_source_without_a_vertex_is_one_line() -> None:
    class Inner(Demo):
        def asked(self, row: Row) -> Sequence[Weights]:
            return [Weights((0.5, 0.5))]

    base = setting_of(build(Config, read_yaml(DEFAULTS), where="demo.yaml"))
    setting = Inner(**{one.name: getattr(base, one.name) for one in dataclasses.fields(base)})
    rows = read_rows({"m": MORLHF, "x": {"method": "mod", "specialists_of": "m"}}, where="demo.yaml", kind=Row)
    with pytest.raises(UserError, match="row x: specialists_of m, which has no policy at 1,0"):
        plan(setting, rows)


def test_a_soup_of_learned_rows_is_reported_as_learned() -> None:
    soup = {"method": "rewarded_soups", "specialists_of": "m"}
    for rewards in ("gold", "learned"):
        made = demo_plan({"m": {**MORLHF, "rewards": rewards}, "soup": soup})
        row = made.row("soup")
        assert row is not None and made.rewards_of(row) == rewards
        assert any("reward-model" in call.name for call in shared(made, row)) == (rewards == "learned")


def test_smoke_settings_reach_planned_specialists() -> None:
    soup = {
        "method": "rewarded_soups", "settings": {"method_config": {"steps": 3, "num_generations": 4}},
        "smoke": {"method_config": {"steps": 1}},
    }  # fmt: skip
    for smoke, steps in ((False, 3), (True, 1)):
        made = benchmark_plan({"soup": soup}, smoke=smoke)
        for call in made.specialists["soup"].values():
            fit = call.arguments["fit"]
            assert isinstance(fit, Fit) and fit.method in METHODS
            assert (fit.settings["steps"], fit.settings["num_generations"]) == (steps, 4)


def test_the_order_of_objectives_is_known_to_the_data(tmp_path: Path) -> None:
    row = '{"prompt": "a", "chosen": "b", "rejected": "c", "objective": "%s"}\n'
    (tmp_path / "rows.jsonl").write_text(row % "helpful" + row % "harmless")
    one, other = (Data(str(tmp_path / "rows.jsonl"), (), names) for names in (real.NAMES, real.NAMES[::-1]))
    assert one.fingerprint != other.fingerprint


def test_scores_of_pairs_are_looked_up_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the reward models are listed, objectives come in the data's order, each with its own column."""
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"id": 1, "prompt": "p", "a": "x", "b": "y", "scores_a": [1.0, 2.0], "scores_b": [3.0, 4.0]})
    )
    made = Run(
        path=tmp_path, stage="pairs", config={}, metrics={"names": ["helpful", "harmless"]}, inputs={}, ledger={},
        fingerprint="",
    )  # fmt: skip
    problems: list[Problem[Weights]] = []
    monkeypatch.setattr(fitting, "fitted", lambda work, fit, problem, **more: problems.append(problem) or {})
    monkeypatch.setattr(stages, "checkpoint", lambda run: "reference")
    monkeypatch.setattr("align.objectives.load_normalizer", lambda path: None)
    monkeypatch.setattr("align.objectives.RewardModelObjective", lambda path, name: None)
    fit = Fit(method="dpo", settings={}, preferences=(Weights((0.5, 0.5)),))
    models = {"harmless": made, "helpful": made}
    stages.finetune.function(Workspace(tmp_path, Ledger()), reference=made, pairs=made, fit=fit, reward_models=models)
    assert {name: score(["p"], ["y"]) for name, score in problems[0].objectives.items()} == {
        "helpful": [3.0], "harmless": [4.0],
    }  # fmt: skip
    assert list(problems[0].objectives) == ["helpful", "harmless"]
