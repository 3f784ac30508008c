"""`align demo`, the real command on a tiny world: complete, repeatable, resumable, and its controls fail the gate."""

from __future__ import annotations

import json
import math
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from align.preferences import simplex_grid
from align.runs import open_run
from align.testbed.world import SHIFTS, load_world
from evals.measure.answers import read_exact
from evals.tables.under_shift.parts import PARTS
from factories.commands import kill_when
from recipes.commands.demo import DEFAULTS
from recipes.pipeline.plan import Plan, plan
from recipes.pipeline.rows import Row, read_rows
from recipes.pipeline.summary import trains_on_pairs
from recipes.pipeline.tasks import check_calls, needs_of
from recipes.testbed.demo import CONTROLS, Config, destination, setting_of

Command = Callable[..., subprocess.CompletedProcess[str]]
METHODS = ("morlhf", "dpo", "rewarded_soups", "morlhf@learned")
TINY = """
world: tiny
workers: 0
model: {hidden: 24, layers: 1, heads: 2, intermediate: 48, context: 16, init_std: 0.2}
pretrain: {documents: 5000, packed: false, block: 16, batch_size: 64, learning_rate: 0.02, save_steps: null}
sft: {documents: 400, batch_size: 64, learning_rate: 0.002, save_steps: null}
comparisons: 100
reward_model: {epochs: 1.0, batch_size: 32, learning_rate: 0.003, save_steps: null}
rows:
  morlhf:
    method: morlhf
    rewards: gold
    settings: {steps: 6, batch_size: 32, num_generations: 4, learning_rate: 0.002, save_steps: 1}
  dpo:
    method: dpo
    rewards: gold
    settings: {labels: scalarised, epochs: 1.0, batch_size: 32, learning_rate: 0.001}
  rewarded_soups: {method: rewarded_soups, rewards: gold, specialists_of: morlhf}
  morlhf@learned:
    method: morlhf
    rewards: learned
    settings: {steps: 2, batch_size: 16, num_generations: 4, learning_rate: 0.002}
preference_steps: 2
shift_steps: 1
dense: 20
controls: {temperature: 1.5, overspend: 10, n: 256}
"""


def plan_of(config: Config) -> Plan:
    return plan(setting_of(config), read_rows(config.rows, where="demo.yaml", kind=Row))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("demo-config") / "tiny.yaml"
    file.write_text(TINY)
    return file


@pytest.fixture(scope="module")
def run(config: Path, run_command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One undisturbed demo."""
    out = tmp_path_factory.mktemp("demo") / "run"
    done = run_command("demo", "--config", config, "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"report: {out / 'report.html'}" in done.stdout and "regret share" in done.stdout
    return out


@pytest.fixture(scope="module")
def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def published(value: Any) -> Any:
    """A summary without `ledger` and `provenance`, at every depth."""
    if isinstance(value, dict):
        return {k: published(v) for k, v in value.items() if k not in ("ledger", "provenance")}
    return [published(v) for v in value] if isinstance(value, list) else value


def test_the_summary_has_every_number_that_the_report_and_the_bars_read(summary: dict[str, Any], run: Path) -> None:
    assert summary["world"] == load_world("tiny").hash and summary["world_details"]["responses"] == 133
    assert set(summary["methods"]) == {"reference", *METHODS, *CONTROLS}
    needed = {"regret", "regret_share", "regret_share_ci", "matched_kl_hypervolume", "raw_hypervolume", "front", "kl"}
    for name, entry in summary["methods"].items():
        assert needed | {"bits_per_byte", "ledger", "optimises", "note", "rewards", "passes"} <= set(entry), name
        assert entry["regret_share_ci"] is None and "seed" in entry["regret_share_ci_over"]
        assert [point["preference"] for point in entry["front"]] == [list(w.values) for w in simplex_grid(2, 2)]
    for name in METHODS:
        entry = summary["methods"][name]
        assert entry["ledger"]["flops"] > 0 and entry["ledger"]["seconds"] > 0 and entry["kl"] > 0
        bits = entry["bits_per_byte"]
        assert bits["change"] == pytest.approx(bits["after"] - bits["before"]) and 0 < bits["before"] < 8
    assert set(summary["shifts"]) >= set(SHIFTS)
    for shift, rows in summary["shifts"].items():  # seen prompts are no shift: a row must name them
        assert set(rows) >= {"reference", *(METHODS if shift != "seen_prompts" else ())}
        for row in rows.values():
            assert {"gap", "gap_ci", "gain_retained", "competing", "mismatched"} <= set(row)
            assert row["optimum"] + row["regret_rise"] == pytest.approx(row["drop"], abs=1e-9)
            if row["mismatched"] is not None:  # held-out topics have nothing to carry over from
                assert sum(row[part] for part in PARTS) == pytest.approx(row["drop"], abs=1e-9)
    assert {"config", "versions", "seed", "commit", "platform", "threads"} <= set(summary["provenance"])
    assert summary["ledger"]["total"]["samples_drawn"] > 0
    assert {"conflict", "reward_models", "notes"} <= set(summary)
    page = (run / "report.html").read_text()
    assert all(name in page for name in METHODS) and "<script src" not in page


def test_the_optimum_is_exact_and_the_perturbed_one_predicted(summary: dict[str, Any]) -> None:
    best = summary["optimum"]
    assert best["regret"] < 1e-6 and len(best["front"]) == 21
    measured, predicted = (best["perturbed"][f"{name}_per_preference"] for name in ("regret", "predicted"))
    assert len(measured) == 3 and min(measured) > 1e-3
    assert measured == pytest.approx(predicted, abs=1e-6)
    assert best["perturbed"]["regret"] == pytest.approx(sum(measured) / 3)
    assert best["perturbed"]["predicted"] == pytest.approx(sum(predicted) / 3)
    spans = list(summary["world_details"]["conflict_dial"]["front_span"].values())
    assert spans[0] < 1e-6 < spans[1] and spans == sorted(spans)
    for row in summary["methods"].values():  # nothing is better than the optimum, at any preference
        assert all(point["regret"] > -1e-9 for point in row["front"])


def test_the_controls_fail_the_gate(summary: dict[str, Any]) -> None:
    controls = summary["controls"]
    assert set(controls) == {"reference", *CONTROLS}
    assert not any(entry["passes"] for entry in controls.values())
    assert controls["reference"]["regret_share"] == 1
    assert controls["kl_overspender"]["regret_share"] > 0.25 and controls["length_only"]["regret_share"] > 0.25
    assert controls["best_of_n"]["regret_share"] < 0.25 and controls["best_of_n"]["samples_per_response"] == 256


def test_on_policy_training_learns_and_a_soups_vertex_is_its_specialist(summary: dict[str, Any]) -> None:
    assert summary["methods"]["morlhf"]["regret_share"] < 0.95
    soup, own = (summary["methods"][name]["front"] for name in ("rewarded_soups", "morlhf"))
    assert [soup[i]["values"] for i in (0, 2)] == [own[i]["values"] for i in (0, 2)]
    assert soup[1]["values"] != own[1]["values"]


def test_a_second_run_reuses_everything(run: Path, config: Path, run_command: Command, summary: dict[str, Any]) -> None:
    times = {p: p.stat().st_mtime_ns for p in run.rglob("run.json")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_command("demo", "--config", config, "--out", run)
    assert done.returncode == 0, done.stderr[-3000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 30  # seconds of work, not of waiting
    assert len(times) >= 36 and {p: p.stat().st_mtime_ns for p in run.rglob("run.json")} == times
    assert published(json.loads((run / "summary.json").read_text())) == published(summary)


def test_killed_in_another_directory_and_resumed_it_gives_the_same_summary(
    config: Path, run_command: Command, summary: dict[str, Any], tmp_path: Path
) -> None:
    """Two workers, `kill -9` while a policy is between two checkpoints; the second call has no workers."""
    out = tmp_path / "elsewhere"
    command = ["demo", "--config", str(config), "--out", str(out)]

    def ready() -> bool:
        return any((out / "methods" / "morlhf").rglob("checkpoint-*/trainer_state.json"))

    kill_when([*command, "--workers", "2"], ready=ready)
    unfinished = list(out.rglob("*.partial"))
    assert unfinished and not (out / "summary.json").exists()
    done = run_command("demo", "--config", config, "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(out.rglob("*.partial"))
    assert_close(published(json.loads((out / "summary.json").read_text())), published(summary))


def assert_close(found: Any, expected: Any, place: str = "summary") -> None:
    """Equal everywhere, numbers to 1e-6."""
    assert type(found) is type(expected), place
    if isinstance(expected, dict):
        assert list(found) == list(expected), place
        for key in expected:
            assert_close(found[key], expected[key], f"{place}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for i, entry in enumerate(expected):
            assert_close(found[i], entry, f"{place}[{i}]")
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=0, abs_tol=1e-6), f"{place}: {found} is not {expected}"
    else:
        assert found == expected, place


@pytest.mark.parametrize("stage", ["cells/best_of_n/all", "cells/dpo/1,0"])
def test_cells_left_by_an_interrupted_evaluation_are_not_counted_twice(
    stage: str, run: Path, config: Path, tmp_path: Path
) -> None:
    """The folder as `kill -9` leaves it: all cells but the last one and a half, no run.json."""
    from recipes.config import parse

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    whole = read_exact(copy / stage / "cells.jsonl")
    partial = copy / f"{stage}.partial"
    (copy / stage).rename(partial)
    fingerprint = json.loads((partial / "run.json").read_text())["fingerprint"]
    (partial / "run.json").unlink()
    (partial / "fingerprint").write_text(fingerprint + "\n")
    lines = (partial / "cells.jsonl").read_text().splitlines(keepends=True)
    (partial / "cells.jsonl").write_text("".join(lines[:-1])[:-40])
    settings, _ = parse(Config, ["--config", str(config), "--out", str(copy)], program="align demo", about="")
    next(call for call in plan_of(settings).calls if call.out == copy / stage)()
    assert read_exact(copy / stage / "cells.jsonl") == whole
    assert open_run(copy / stage).fingerprint == fingerprint


def test_every_seed_and_world_has_its_own_directory() -> None:
    places = [destination(Config(seed=s, world=w)) for s in (0, 1, 2) for w in ("default", "opposed")]
    assert places[0] == Path("runs/demo") and len(set(places)) == 6
    assert destination(Config(out="there", seed=4)) == Path("there")


def default_config(**changes: Any) -> Config:
    from recipes.config import build, read_yaml

    return build(Config, {**read_yaml(DEFAULTS), **changes}, where="demo.yaml")


def test_the_default_plan_compares_every_method_at_five_preferences() -> None:
    config = default_config()
    made = plan_of(config)
    labels = [w.label for w in made.setting.asked(made.rows[0])]
    assert labels == ["0,1", "0.25,0.75", "0.5,0.5", "0.75,0.25", "1,0"]
    assert {"morlhf", "morlhf@learned", "dpo", "dpo/mle", "modpo", "rewarded_soups"} <= set(made.fits)
    assert all(list(points) == labels for points in made.fits.values())
    assert config.workers == 2 and config.dense >= 200
    check_calls(made.calls)
    needs = needs_of(made.calls)
    assert {"reward-model-helpful", "reward-model-harmless"} <= set(needs["morlhf@learned 0.5,0.5"])
    assert {"morlhf 0,1", "morlhf 1,0"} <= set(needs["rewarded_soups 0.5,0.5"])


def test_one_more_row_is_one_entry_of_the_file() -> None:
    """A new row changes nothing else: five trainings and five evaluations more."""
    rows = default_config().rows
    kto = {"method": "kto", "rewards": "learned", "settings": {"labels": "scalarised"}, "shifts": False}
    before, after = plan_of(default_config()), plan_of(default_config(rows={**rows, "kto@learned": kto}))
    old = {call.name: (call.out, dict(call.arguments)) for call in before.calls}
    new = {call.name: (call.out, dict(call.arguments)) for call in after.calls}
    assert {name: new[name] for name in old} == old
    labels = [w.label for w in after.setting.asked(after.rows[0])]
    more = {f"kto@learned {label}" for label in labels} | {f"evaluate kto@learned {label}" for label in labels}
    assert set(new) - set(old) == more


def test_specialists_that_no_row_trains_are_planned_before_what_is_made_of_them() -> None:
    soup = {"method": "rewarded_soups", "settings": {"method": "dpo", "method_config": {"epochs": 1.0}}}
    made = plan_of(default_config(rows={"soup": soup}))
    names = [call.name for call in made.calls]
    trained = ["soup/specialists 1,0", "soup/specialists 0,1"]
    assert [name for name in names if "specialists" in name] == trained
    assert set(trained) <= set(needs_of(made.calls)["soup 0.5,0.5"])
    assert list(made.fits) == ["soup"] and "soup/specialists" not in made.cells
    first = next(call for call in made.calls if call.name == trained[0]).arguments["fit"]
    assert first.method == "dpo" and first.settings["epochs"] == 1.0 and first.settings["beta"] == 0.1


@pytest.mark.parametrize(
    ("spec", "charged"),
    [
        ({"method": "dpo"}, True),
        ({"method": "kto"}, True),
        ({"method": "cpo"}, True),  # its Config names scores, not labels
        ({"method": "morlhf"}, False),
        ({"method": "rewarded_soups"}, False),  # its specialists are rows of their own
        ({"method": "panacea"}, False),
        ({"method": "panacea", "settings": {"data": "pairs"}}, True),
    ],
)
def test_rows_on_pairs_are_charged_for_them(spec: dict[str, Any], charged: bool) -> None:
    assert trains_on_pairs(Row(name="row", **spec)) == charged


def test_an_unknown_world_is_one_line(run_command: Command, tmp_path: Path) -> None:
    done = run_command("demo", "--world", "nowhere", "--out", tmp_path / "x")
    assert done.returncode == 2 and done.stderr.strip().count("\n") == 0 and "no world 'nowhere'" in done.stderr
    assert not (tmp_path / "x").exists()
    with pytest.raises(UserError):
        setting_of(Config(world="nowhere"))
