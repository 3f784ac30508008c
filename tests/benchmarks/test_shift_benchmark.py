"""The shift benchmark: its plans, its tables from cells on disk, its page, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.errors import UserError
from align.testbed.world import load_world
from benchmarks.shift import hh as shift_hh
from benchmarks.shift import page as shift_page
from benchmarks.shift import plan as planning
from benchmarks.shift import table as tables
from benchmarks.testbed import plan as testbed_plan
from factories import synthetic
from recipes.pipeline.plan import ordered
from recipes.pipeline.tasks import check_calls, needs_of

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"

GRID = ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0))

ABOUT = {
    "environment": {"versions": dict.fromkeys(("torch", "transformers", "trl", "peft")), "cores": 2},
    "commit": "c",
}


@pytest.fixture(scope="module")
def file() -> tuple[planning.Rows, dict[str, planning.Arm]]:
    return planning.read_file(FOLDER / "shift" / "shift.yaml")


@pytest.fixture(scope="module")
def found(file: tuple[planning.Rows, dict[str, planning.Arm]]) -> planning.Rows:
    return file[0]


@pytest.fixture(scope="module")
def arms(file: tuple[planning.Rows, dict[str, planning.Arm]]) -> dict[str, planning.Arm]:
    return file[1]


@pytest.fixture(scope="module")
def trained() -> testbed_plan.Rows:
    return testbed_plan.read_file(FOLDER / "testbed" / "rows.yaml")


def test_the_bars_are_in_the_config(found: planning.Rows, arms: dict[str, planning.Arm]) -> None:
    assert len(found.front.rows) >= 6 and len(found.front.shifts) >= 4 and found.front.steps in (2, 4)
    assert len(found.hh.rows) >= 4 and len(found.hh.shifts) >= 4 and found.hh.controls
    held_out = [set(range(1, 5)) - set(arm.spellings) for arm in arms.values() if arm.spellings]
    assert all({s} in held_out for s in range(1, 5))  # every family is left out once, the others trained on


def test_the_front_reuses_the_testbed_benchmark_and_adds_cells(
    found: planning.Rows, trained: testbed_plan.Rows, tmp_path: Path
) -> None:
    plans = planning.front_plans(found.front, trained=trained, out=tmp_path, seeds=[0, 1])
    calls = ordered(call for plan in plans.values() for call in plan.calls)
    check_calls(calls)
    rows = trained.named(found.front.rows)
    base = testbed_plan.grid(trained, out=tmp_path, worlds=["default"], seeds=[0, 1], rows=rows)
    fits = {c.out: c.arguments for p in base.values() for row in p.rows for c in p.runs_of(row.name)}
    made = {call.out: call.arguments for call in calls}
    assert fits and all(made[out] == arguments for out, arguments in fits.items())
    assert not any("/cells/" in str(call.out) for call in calls)  # nothing of the plain evaluation is run again
    count, steps = len(found.front.rows), found.front.steps
    assert sum(len(c) for p in plans.values() for c in p.cells.values()) == 2 * (1 + (steps + 1) * (count + 2) + 1)


def test_the_mitigation_trains_every_arm_on_its_spellings(
    found: planning.Rows, arms: dict[str, planning.Arm], trained: testbed_plan.Rows, tmp_path: Path
) -> None:
    plans = planning.mitigation_plans(found.mitigation, list(arms.values()), trained=trained, out=tmp_path, seeds=[0])
    calls = plans[0].calls
    check_calls(calls)
    named, needs = {call.name: call for call in calls}, needs_of(calls)
    fit = named["without_2 [spellings 0]"].arguments["fit"]
    assert fit.spellings == (0, 1, 3, 4) and fit.settings["beta"] == 0.1
    assert named["beta_0.4 [spellings 0]"].arguments["fit"].settings["beta"] == 0.4
    assert needs["average_1 [spellings 0]"] == ("plain [spellings 0]", "without_1 [spellings 0]")
    judged = named["cells plain 1,0 [spellings 0]"].arguments["judged"]
    assert judged.shifts == ("cipher", "cipher_2", "cipher_3", "cipher_4")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spellings": [0, 9]}, "spellings of world spellings are 0 to 4"),
        ({"spellings": [0], "average_of": ["plain"]}, "either spellings, average_of or graft"),
        ({"average_of": ["nowhere"]}, "'nowhere', which is no trained arm"),
        ({"graft": {"heads": "plain"}}, "layers: ARM or embeddings: ARM, not heads"),
        ({"speling": [0]}, "unknown key 'speling'"),
    ],
)
def test_bad_arms_are_refused(change: dict, words: str, tmp_path: Path) -> None:
    values = yaml.safe_load((FOLDER / "shift" / "shift.yaml").read_text(encoding="utf-8"))
    values["mitigation"]["arms"]["bad"] = change
    file = tmp_path / "rows.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(UserError, match=f"rows.yaml: arms: bad.*{words}"):
        planning.read_file(file)


def test_hh_without_a_finished_run_is_refused(found: planning.Rows, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sft is not finished; run `align hh"):
        shift_hh.hh_plan(found.hh, run=tmp_path, out=tmp_path)


def runs_of(shifts: list[str], rows: dict[str, float]) -> dict[int, list[dict[str, Any]]]:
    """Three seeds of rows at strengths; under the first shift a row has half its strength (a planted mismatch)."""
    runs: dict[int, list[dict[str, Any]]] = {}
    prompts = synthetic.topics(5)
    for seed in (0, 1, 2):
        for number, shift in enumerate(("none", *shifts)):
            scale = (0.5 if number == 1 else 1.0) * (1 + 0.02 * seed)
            strengths = {row: s * scale for row, s in rows.items()}
            runs.setdefault(seed, []).extend(
                synthetic.exact_answers(strengths, prompts=prompts, shift=shift, preferences=GRID)
            )
    return runs


@pytest.fixture(scope="module")
def front(found: planning.Rows) -> dict[str, Any]:
    rows = {"reference": 0.0, "strong": 0.9, "weak": 0.4, "kl_overspender": 5.0}
    spec = planning.Front(world="default", rows=["strong", "weak"], shifts=["cipher", "control"], steps=2)
    return tables.front_table(runs_of(spec.shifts, rows), spec=spec, world=load_world("default"))


def test_a_planted_mismatch_is_on_the_page_and_the_reference_retains_null(
    front: dict[str, Any], tmp_path: Path
) -> None:
    cipher = front["shifts"]["cipher"]
    assert cipher["rows"]["strong"]["regret_rise"]["value"] > 0.005
    assert abs(cipher["rows"]["strong"]["optimum"]["value"]) < 1e-12
    assert abs(front["shifts"]["control"]["rows"]["strong"]["regret_rise"]["value"]) < 1e-12
    assert front["shifts"]["control"]["rows"]["strong"]["gain_retained"]["value"] == pytest.approx(1)
    assert all(s["rows"]["reference"]["gain_retained"]["value"] is None for s in front["shifts"].values())
    assert front["methods"] == ["strong", "weak"] and front["controls"] == ["reference", "kl_overspender"]
    shift_page.write_page({**ABOUT, "front": front}, folder=tmp_path, command="--publish x")
    text = (tmp_path / "shift.md").read_text(encoding="utf-8")
    assert "| *reference* | null | null |" in text and "*kl_overspender*" in text
    assert "- **cipher**: even the optimum changes by" in text
    assert json.loads((tmp_path / "shift.json").read_text(encoding="utf-8"))["front"]["seeds"] == [0, 1, 2]
    for name in ("shift-front.svg", "shift-split.svg"):
        assert (tmp_path / name).read_text(encoding="utf-8").startswith("<svg")


def test_parts_that_were_not_run_stay_as_published_and_say_so(front: dict[str, Any]) -> None:
    old = {"commit": "old", "front": {"world": {"name": "w"}, "shifts": {}}, "mitigation": {"arms": {}}}
    table = tables.with_published({"commit": "new", "front": front}, old, run=["front"])
    assert table["mitigation"] == old["mitigation"] and table["front"] is front
    assert table["made"] == {"mitigation": "old", "front": "new"}
    again = tables.with_published({"commit": "newer"}, table, run=["hh"])
    assert again["made"] == {"mitigation": "old", "front": "new"} and "hh" not in again
    assert set(table["parts"]["default"]) == {"cipher", "control"}
    lost = {"value": 0.2, "ci_seeds": None, "ci_items": [0.1, 0.3]}
    row = dict.fromkeys(("surface", "competing", "carried_over", "mismatched"), lost)
    found = tables.four_parts({"cipher": {"rows": {"a": row, "undivided": {"drop": lost}}}})
    assert found == {"cipher": {"a": dict.fromkeys(row, {"value": 0.2, "ci": [0.1, 0.3]})}}


def test_a_lead_needs_the_topics_and_the_seeds() -> None:
    def side(difference: float, p_holm: float, seeds: list[float] | None) -> dict[str, Any]:
        return {"difference": difference, "p_holm": p_holm, "ci_seeds": seeds}

    ahead, behind = side(0.1, 0.01, [0.05, 0.15]), side(-0.1, 0.01, [-0.15, -0.05])
    unsure, few = side(-0.1, 0.01, [-0.3, 0.1]), side(-0.1, 0.01, None)
    pairs = [(ahead, ahead), (ahead, behind), (ahead, unsure), (unsure, behind), (unsure, unsure), (ahead, few)]
    found = [tables.verdict({"home": home, "away": away}) for home, away in pairs]
    assert found == ["kept", "inverted", "lost", "new", "level", "inverted"]
    assert tables.verdict({"home": side(0.1, 0.06, None), "away": ahead}) == "new"


def test_a_graft_takes_one_half_of_the_weights(tmp_path: Path) -> None:
    from align.models import ModelConfig, build_model, load_model, save_model
    from align.policies.base import PointFamily
    from align.policies.load import load_family
    from align.preferences import Weights
    from align.runs import run_stage
    from align.testbed.vocabulary import build_tokenizer
    from benchmarks.shift import stages as shift_stages

    shape = ModelConfig(hidden=8, layers=1, heads=2, context=16)
    models = [build_model(shape, build_tokenizer(), seed=seed) for seed in (0, 1)]

    def reference(folder: Path, ledger: Any) -> dict:
        save_model(models[0], build_tokenizer(), folder / "model")
        return {}

    def part(folder: Path, ledger: Any) -> dict:
        save_model(models[1], build_tokenizer(), folder / "point")
        PointFamily("made", {"1,0": str(folder / "point")}).save(folder)
        return {}

    run_stage(tmp_path / "reference", stage="made", config={}, body=reference, inputs={})
    run_stage(tmp_path / "part", stage="made", config={}, body=part, inputs={})
    for keep, words, rest in (("layers", models[0], models[1]), ("embeddings", models[1], models[0])):
        out = str(tmp_path / keep)
        parts = {"part": str(tmp_path / "part"), "reference": str(tmp_path / "reference")}
        shift_stages.graft(out, **parts, keep=keep, weights=(Weights((1.0, 0.0)),))
        made = load_model(load_family(out).points["1,0"])
        assert (made.get_input_embeddings().weight == words.get_input_embeddings().weight).all()
        assert made.get_output_embeddings().weight is made.get_input_embeddings().weight  # one table of words
        for (name, ours), (_, theirs) in zip(made.named_parameters(), rest.named_parameters(), strict=True):
            assert "embed" in name or (ours == theirs).all(), name


def test_groups_gather_arms_that_leave_one_family_out() -> None:
    arms = {"plain": (0,), "without_1": (0, 2), "without_2": (0, 1), "beta_0.4": (0,), "plus_12": (0, 1, 2)}
    assert tables._groups(arms) == {
        "plain": ["plain"], "without (1 families)": ["without_1", "without_2"], "beta_0.4": ["beta_0.4"],
        "plus (2 families)": ["plus_12"],
    }  # fmt: skip


def test_the_mitigation_table_says_what_was_planted(found: planning.Rows) -> None:
    """Under a family that an arm never saw it has half its strength; `plain` saw none."""
    world, prompts = load_world("spellings"), synthetic.topics(5)
    spec = planning.Mitigation(
        world="spellings", method="morlhf", settings={}, weights=[list(w) for w in GRID], documents=1, demonstrations=1,
        arms={},
    )  # fmt: skip
    arms = {
        name: planning.Arm(name=name, method="morlhf", spellings=spellings)
        for name, spellings in {"plain": (0,), "without_1": (0, 2, 3, 4)}.items()
    }
    strengths = {"none": (0.8, 0.7), "cipher": (0.4, 0.6), **{f"cipher_{s}": (0.4, 0.7) for s in (2, 3, 4)}}
    runs = {
        seed: [
            cell
            for shift, (plain, arm) in strengths.items()
            for cell in synthetic.exact_answers(
                {"reference": 0.0, "plain": plain, "without_1": arm}, prompts=prompts, shift=shift, preferences=GRID
            )
        ]
        for seed in (0, 1, 2)
    }
    ledger = dict.fromkeys(arms, {"cpu_seconds": 1.0})
    table = tables.mitigation_table(runs, spec=spec, arms=arms, world=world, ledger=ledger)
    held = table["groups"]["without (3 families)"]["held_out"]
    assert held["regret_rise_reduction"]["value"] > 0 and held["regret_reduction"]["value"] > 0
    assert [entry["held_out"] for entry in table["matrix"]["without_1"].values()] == [True, False, False, False]
    assert table["groups"]["without (3 families)"]["cost"]["J"]["value"] < 0
    assert table["matrix"]["reference"]["cipher"]["regret_rise"]["value"] == pytest.approx(0, abs=1e-12)
    text = shift_page.page({**ABOUT, "mitigation": table}, command="")
    assert "\n- `without (3 families)` reduces it on held-out families by +" in text
    assert "| without_1 | 0, 2, 3, 4 |" in text
