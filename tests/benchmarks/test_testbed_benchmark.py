"""The testbed benchmark: its plan, its table over seeds, its verdict and its page; and one small grid end to end."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from align.preferences import Weights
from align.testbed.world import load_world
from benchmarks.testbed import page
from benchmarks.testbed import plan as planning
from benchmarks.testbed import table as tables

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def rows() -> planning.Rows:
    return planning.read_rows(FOLDER / "testbed" / "rows.yaml")


def test_the_rows_are_enough_and_name_real_methods(rows: planning.Rows) -> None:
    """A method joins the benchmark by a row, which it need not have: it has to be measured first."""
    from align.methods import METHODS

    assert len(rows.rows) >= 24
    named = {spec["method"] for spec in rows.rows.values()}
    assert named <= set(METHODS) and len(named) >= 24


def test_a_plan_has_every_cell_once_and_needs_nothing_that_is_missing(rows: planning.Rows, tmp_path: Path) -> None:
    from recipes.pipeline.tasks import check_tasks

    names = list(rows.rows)
    plan = planning.make_plan(rows, out=tmp_path, worlds=["default", "three"], seeds=[0, 1], rows=names, smoke=False)
    check_tasks(plan.tasks)
    everywhere = [name for name in names if "worlds" not in rows.rows[name]]
    assert len(everywhere) >= 24
    assert all(spec.get("worlds", ["default"]) == ["default"] for spec in rows.rows.values())
    assert len(plan.cells) == 2 * (5 * len(names) + 7 * len(everywhere) + (5 + 7) * len(planning.CONTROLS))
    places = [task.arguments["out"] for task in plan.tasks]
    assert len(places) == len(set(places))
    # Worlds of one corpus share a reference: two seeds, two pretrainings.
    assert sum(task.name.startswith("pretrain") for task in plan.tasks) == 2
    # A family is trained once for all preferences, a method of points once for each.
    assert len(plan.fits["default", 0, "joint_soup"]) == 1 and len(plan.fits["default", 0, "dpo"]) == 5
    assert len(plan.made_of["three", 0, "rewarded_soups"]) == 3


def test_three_objectives_are_asked_at_vertices_edges_and_middle() -> None:
    labels = [w.label for w in planning.preferences_of(load_world("three"))]
    assert labels == ["1,0,0", "0,1,0", "0,0,1", "0,0.5,0.5", "0.5,0,0.5", "0.5,0.5,0", "0.333333,0.333333,0.333333"]
    assert len(planning.preferences_of(load_world("default"))) == 5


def test_the_harder_rows_learn_from_labels_and_are_judged_on_new_topics(tmp_path: Path) -> None:
    rows = planning.read_rows(FOLDER / "testbed" / "harder.yaml")
    assert rows.split == "heldout_topics"
    gold = {"best_of_n", "morlhf", "ppo", "joint_soup", "panacea", "best_sft"}  # methods that ask objectives
    for row, spec in rows.rows.items():
        assert spec["method"] not in gold or spec.get("rewards") == "learned" or spec["contender"] is False, row
    plan = planning.make_plan(
        rows, out=tmp_path, worlds=["sparse"], seeds=[0, 1], rows=list(rows.rows), smoke=False
    )  # fmt: skip
    judged = [t for t in plan.tasks if "split" in t.arguments]
    assert {t.arguments["split"] for t in judged} == {"heldout_topics"}
    assert {t.name.split()[0] for t in judged} >= {"facts", "evaluate", "reference", "prediction"}
    learned = [t for t in plan.tasks if t.arguments.get("kind") == "learned"]
    assert len(learned) == 5 and all("seed-0" in t.arguments["out"] for t in learned)  # five weights, the first seed
    assert all(len(t.arguments["reward_models"]) == 2 for t in learned)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "nonsense"}, "method 'nonsense' is not one of"),
        ({"runs": "once"}, "runs must be points or family"),
        ({"settings": {"learning": 1}}, "unknown key 'learning'"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"specialists_of": "below"}, "no row above it"),
        ({"fixed_point": "learned"}, "fixed_point learned needs rewards: learned"),
    ],
)
def test_a_wrong_row_is_told_before_anything_runs(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    import yaml

    content = yaml.safe_load((FOLDER / "testbed" / "rows.yaml").read_text())
    content["rows"] = {"mine": {"method": "dpo", **change}, "below": {"method": "dpo"}}
    file = tmp_path / "rows.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(UserError, match=message):
        planning.read_rows(file)


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
    assert "python -m benchmarks.testbed.run --worlds default" in text and "Best: `a`" in text
    found = table({"a": 0.02, "b": 0.5, "reference": 1.0})
    found["methods"]["a"]["contender"] = False
    page.write_page(found | {"split": "heldout_topics"}, folder=tmp_path / "other", command="")
    other = (tmp_path / "other" / "testbed.md").read_text()
    assert "2 rows and 1 controls" in other and "Best: `b`" in other and "exact on held-out topics" in other
    figure = (tmp_path / "testbed-default-shares.svg").read_text()
    assert "<i>" not in figure and "&lt;i&gt;" in figure
    assert json.loads((tmp_path / "testbed.json").read_text())["seeds"] == [0]


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
