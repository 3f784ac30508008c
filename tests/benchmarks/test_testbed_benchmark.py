"""The testbed benchmark: its plan, its table over seeds, its verdict and its page; and one small grid end to end."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.errors import UserError
from align.preferences import Weights
from align.runs import Call
from align.testbed.world import load_world
from benchmarks.testbed import page
from benchmarks.testbed import plan as planning
from benchmarks.testbed import table as tables
from recipes.pipeline.plan import Plan, ordered
from recipes.pipeline.tasks import check_calls

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def found() -> planning.Rows:
    return planning.read_file(FOLDER / "testbed" / "rows.yaml")


def calls_of(plans: dict[planning.Cell, Plan]) -> tuple[Call, ...]:
    return ordered(call for plan in plans.values() for call in plan.calls)


def test_the_rows_are_enough_and_name_real_methods(found: planning.Rows) -> None:
    """A method joins the benchmark by a row, which it need not have: it has to be measured first."""
    from align.methods import METHODS

    named = {row.method for row in found.rows}
    assert len(found.rows) >= 24 and named <= set(METHODS) and len(named) >= 24


def test_a_plan_has_every_cell_once_and_needs_nothing_that_is_missing(found: planning.Rows, tmp_path: Path) -> None:
    plans = planning.grid(found, out=tmp_path, worlds=["default", "three"], seeds=[0, 1], rows=found.rows)
    calls = calls_of(plans)
    check_calls(calls)
    everywhere = [row for row in found.rows if not row.worlds]
    assert len(everywhere) >= 24 and all(row.worlds in ((), ("default",)) for row in found.rows)
    counts = {cell: sum(map(len, plan.cells.values())) for cell, plan in plans.items()}
    assert counts["default", 1] == 5 * (len(found.rows) + len(planning.CONTROLS))
    assert counts["three", 1] == 7 * (len(everywhere) + len(planning.CONTROLS))
    # Worlds of one corpus share a reference: two seeds, two pretrainings.
    assert sum(call.name.startswith("pretrain") for call in calls) == 2
    # A family is trained once for all preferences, a method of points once for each.
    default = plans["default", 0]
    assert len(default.runs_of("joint_soup")) == 1 and len(default.runs_of("dpo")) == 5
    assert len(plans["three", 0].specialists["rewarded_soups"]) == 3


def test_fixed_points_follow_from_the_settings(found: planning.Rows) -> None:
    targets = {row.name: row.target for row in found.rows}
    assert {name: targets[name] for name in ("morlhf", "morlhf/grpo", "morlhf/grpo-token", "morlhf/gdpo")} == {
        "morlhf": "scalarised", "morlhf/grpo": "scalarised", "morlhf/grpo-token": "token_kl", "morlhf/gdpo": "gdpo",
    }  # fmt: skip
    assert targets["best_sft"] == "best_of_n" and targets["mod"] == "token_mod"
    assert targets["dpo"] == targets["morlhf@learned"] == targets["joint_soup"] == "none"
    assert {row.name: row.fixed_point for row in found.rows if row.fixed_point} == {}  # none has to be written down


@pytest.mark.parametrize(("file", "published"), [("rows", "."), ("best", "best"), ("harder", "harder")])
def test_published_rows_mean_what_the_files_say(file: str, published: str) -> None:
    """A row whose key had changed would be dropped from the page at the next sitting."""
    rows = planning.read_file(FOLDER / "testbed" / f"{file}.yaml")
    table = json.loads((ROOT / "docs" / "results" / published / "testbed.json").read_text())
    for name, about in table["methods"].items():
        assert rows.key(name) == about["key"], name
        assert tables.describe(rows, name) == {k: v for k, v in about.items() if k != "worlds"}, name


def test_three_objectives_are_asked_at_vertices_edges_and_middle() -> None:
    labels = [w.label for w in planning.preferences_of(load_world("three"))]
    assert labels == ["1,0,0", "0,1,0", "0,0,1", "0,0.5,0.5", "0.5,0,0.5", "0.5,0.5,0", "0.333333,0.333333,0.333333"]
    assert len(planning.preferences_of(load_world("default"))) == 5


def test_the_harder_rows_learn_from_labels_and_are_judged_on_new_topics(tmp_path: Path) -> None:
    found = planning.read_file(FOLDER / "testbed" / "harder.yaml")
    assert found.file.split == "heldout_topics"
    gold = {"best_of_n", "morlhf", "ppo", "joint_soup", "panacea", "best_sft"}  # methods that ask objectives
    for row in found.rows:
        assert row.method not in gold or row.learned or not row.contender, row.name
    calls = calls_of(planning.grid(found, out=tmp_path, worlds=["sparse"], seeds=[0, 1], rows=found.rows))
    homes = {call.arguments["judged"].home for call in calls if "judged" in call.arguments}
    homes |= {call.arguments["home"] for call in calls if "home" in call.arguments}
    assert homes == {"heldout_topics"}
    learned = [call for call in calls if call.arguments.get("kind") == "learned"]
    assert len(learned) == 5 and all("seed-0" in str(call.out) for call in learned)  # five weights, the first seed
    assert all(len(call.arguments["reward_models"]) == 2 for call in learned)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "nonsense"}, "method 'nonsense' is not one of"),
        ({"runs": "once"}, "runs is 'once'; choose from points, family"),
        ({"settings": {"learning": 1}}, "unknown key 'learning'"),
        ({"method": "joint_soup", "settings": {"rest": True}}, "unknown key 'rest'; it is called train_all now"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"specialists_of": "below"}, "no row above it"),
        ({"fixed_point": "learned"}, "fixed_point learned needs rewards: learned"),
        ({"shifts": ["cypher"]}, "shifts must be true, false or a list"),
    ],
)
def test_a_wrong_row_is_an_error_that_names_it_before_anything_runs(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    content = yaml.safe_load((FOLDER / "testbed" / "rows.yaml").read_text())
    content["rows"] = {"mine": {"method": "dpo", **change}, "below": {"method": "dpo"}}
    file = tmp_path / "odd.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(UserError, match=f"odd.yaml: rows: mine.*{message}"):
        planning.read_file(file)


def entry(share: float, **changes: Any) -> dict[str, Any]:
    """One seed's numbers of a row."""
    return {
        "regret_mean": share / 10, "regret_share": share, "matched_kl_hypervolume": 0.9, "raw_hypervolume": 0.9,
        "kl": 1.0, "worst_weight_regret": share / 5, "kendall_tau": {"helpful": 1.0, "harmless": None},
        "training_runs": 5, "samples_drawn": 10, "scores_read": 10, "flops": 1e9, "seconds": 3.0,
        "evaluation_seconds": 1.0, "samples_per_response": 1, "optimises": {"0.5,0.5": "J <b>at w</b>"}, "points": [],
    } | changes  # fmt: skip


def test_means_and_interval_over_seeds_by_hand() -> None:
    found = tables.over_seeds({0: entry(0.1), 1: entry(0.2), 2: entry(0.3)})
    assert found["regret_share"] == pytest.approx(0.2) and found["worst_weight_regret"] == pytest.approx(0.04)
    # t_{.975, 2} = 4.3027; standard error .1 / sqrt 3
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert found["regret_share_ci"] == pytest.approx([0.2 - half, 0.2 + half], abs=1e-5)
    assert found["kendall_tau"] == {"helpful": 1.0, "harmless": None}
    assert set(tables.KEYS) <= set(found)
    alone = tables.over_seeds({0: entry(0.1)})
    assert alone["regret_share_ci"] is None and "seed" in alone["regret_share_ci_over"]
    assert tables.over_seeds({0: entry(0.1, matched_kl_hypervolume=None)})["matched_kl_hypervolume"] is None


def table(shares: dict[str, float]) -> dict[str, Any]:
    whole = {"wrong_objective": None, "unfinished": None}
    methods = {}
    for name, share in shares.items():
        numbers = tables.over_seeds({0: entry(share)}) | whole
        methods[name] = {"control": name == "reference", "key": "k", "worlds": {"default": numbers}}
    return {
        "methods": methods, "worlds": {"default": {"hash": "h"}}, "seeds": [0], "controls": ["reference"],
        "environment": {"versions": dict.fromkeys(("torch", "transformers", "trl", "peft"), "1"), "cores": 2},
        "commit": "c",
    }  # fmt: skip


def test_the_verdict_counts_rows_and_wants_finite_regrets(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"row{i}" for i in range(24)]
    good = table(dict.fromkeys(names, 0.5))
    assert tables.verdict(good, rows=names) == 0
    assert tables.verdict(good, rows=names[:23]) == 1  # too few
    bad = table({**dict.fromkeys(names, 0.5), "row3": float("nan")})
    assert tables.verdict(bad, rows=names) == 1
    assert "row3 on default" in capsys.readouterr().err
    negative = table({**dict.fromkeys(names, 0.5), "row4": -0.5})
    assert tables.verdict(negative, rows=names) == 1  # below the optimum: the evaluation is wrong


def test_the_page_ranks_by_regret_share_and_escapes_in_figures(tmp_path: Path) -> None:
    page.write_page(table({"b<i>": 0.5, "a": 0.02, "reference": 1.0}), folder=tmp_path, command="--worlds default")
    text = (tmp_path / "testbed.md").read_text()
    assert text.index("| a |") < text.index("| b<i> |") < text.index("| *reference* |")
    assert "python -m benchmarks.testbed.run --worlds default" in text and "Smallest mean: `a`" in text
    assert "fewer than three seeds: no order is established" in text
    found = table({"a": 0.02, "b": 0.5, "reference": 1.0})
    found["methods"]["a"]["contender"] = False
    page.write_page(found | {"split": "heldout_topics"}, folder=tmp_path / "other", command="")
    other = (tmp_path / "other" / "testbed.md").read_text()
    assert "2 rows and 1 negative controls" in other and "Smallest mean: `b`" in other
    assert "exact on held-out topics" in other
    figure = (tmp_path / "testbed-default-shares.svg").read_text()
    assert "<i>" not in figure and "&lt;i&gt;" in figure
    assert json.loads((tmp_path / "testbed.json").read_text())["seeds"] == [0]


def test_a_leader_is_told_only_from_rows_that_paired_seeds_tell_it_from() -> None:
    """Differences to `a`, seed by seed: b .10, .10, .11 (t = 31, p .001); c .001, .2, .001 (t = 1, p .42).

    Holm over the two: .002 and .42. `bad` is above the reference on every seed (its interval, 2 +- .25, begins above
    1); `wild` in the mean alone.
    """
    shares = {
        "a": (0.02, 0.04, 0.03), "b": (0.12, 0.14, 0.14), "c": (0.021, 0.24, 0.031),
        "bad": (1.9, 2.0, 2.1), "wild": (0.1, 0.2, 3.3),
    }  # fmt: skip
    rows = {
        name: tables.over_seeds({s: entry(v) for s, v in enumerate(values)}) | {"control": False}
        for name, values in shares.items()
    }
    assert page.told_from(rows, ["a", "b"]) == 1 and page.told_from(rows, ["a", "c"]) == 0
    assert page.told_from(rows, ["a", "b", "c"]) == 1
    assert page.told_from(rows, ["a"]) is None
    found = page.summary(rows)
    assert found["worse"] == ["bad"] and found["worse_mean"] == ["wild"]
    assert found["passing"] == ["a", "b", "c"] and found["sure"] == ["a", "b"]  # c: .097 +- .31
    two = {name: tables.over_seeds({0: entry(0.1), 1: entry(0.2)}) | {"control": False} for name in "xy"}
    assert page.told_from(two, ["x", "y"]) is None


@pytest.mark.slow
def test_a_small_grid_end_to_end_and_again(tmp_path: Path) -> None:
    """Four rows of four kinds at the smoke budget; the second call trains nothing and gives the same numbers."""
    words = [sys.executable, "-m", "benchmarks.testbed.run", "--check"]
    words += ["--rows", "dpo", "best_of_n", "rewarded_soups", "--out"]
    numbers = []
    for _ in range(2):
        done = subprocess.run([*map(str, words), str(tmp_path / "b")], capture_output=True, text=True, timeout=900)
        assert done.returncode == 1, done.stderr[-2000:]  # a check of fewer than 24 rows does not pass
        numbers.append(json.loads((tmp_path / "b" / "testbed.json").read_text())["methods"])
    assert numbers[0] == numbers[1]
    shares = {row: found["worlds"]["default"]["regret_share"] for row, found in numbers[0].items()}
    assert shares["reference"] == pytest.approx(1.0) and 0 < shares["best_of_n"] < shares["length_only"]
    assert weights_of(numbers[0]["dpo"]) == [w.label for w in planning.preferences_of(load_world("default"))]


def weights_of(found: dict[str, Any]) -> list[str]:
    points = found["worlds"]["default"]["seeds"]["0"]["points"]
    return [Weights(tuple(point["preference"])).label for point in points]
