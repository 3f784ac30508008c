"""`align evaluate MODEL --suite` and `align compare`, as a user runs them, on the tiny model and made rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from recipes.commands import compare, evaluate
from recipes.commands import suites as evaluate_suites

WORDS = ("tea", "glue", "rope", "bees", "clay", "ink")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, write_rows: Callable[..., Path]) -> Path:
    rows = [
        {"id": f"r{i}", "prompt": f"how do I use {w}?", "label": "harmful" if i % 2 else "benign"}
        for i, w in enumerate(WORDS)
    ]
    return write_rows(tmp_path_factory.mktemp("suite") / "made.jsonl", rows)


def run(model: Path, suite: Path, out: Path, *more: str) -> dict[str, Any]:
    arguments = ["--suite", str(suite), "--out", str(out), "--max-new-tokens", "6", "--max-missing", "0.9", *more]
    assert evaluate.main([str(model), *arguments]) == 0
    return json.loads((out / "table.json").read_text())


def test_one_command_from_model_to_table_and_again(tiny_model: Path, suite: Path, tmp_path: Path) -> None:
    first = run(tiny_model, suite, tmp_path / "a", "--shift", "lowercase", "base64", "--export", "jsonl", "parquet")
    (name,) = first["suites"]
    shifts = first["suites"][name]["outcomes"]["shifts"]
    assert set(shifts) == {"none", "lowercase", "base64"}
    size = (tmp_path / "a" / "cells.jsonl").stat().st_size
    again = run(tiny_model, suite, tmp_path / "a", "--shift", "lowercase", "base64")
    assert again["hash"] == first["hash"] and (tmp_path / "a" / "cells.jsonl").stat().st_size == size
    rows = [json.loads(line) for line in (tmp_path / "a" / f"{name}.jsonl").read_text().splitlines()]
    page = (tmp_path / "a" / "report.html").read_text()
    assert first["hash"] in page and "--shift lowercase base64" in page and str(suite) in page
    assert len(rows) == 18 and {r["request"] for r in rows} == {f"how do I use {w}?" for w in WORDS}
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(tmp_path / "a" / f"{name}.parquet").num_rows == 18


def test_a_family_of_policies_is_asked_for_a_preference(tiny_model: Path, suite: Path, tmp_path: Path) -> None:
    from align.policies.base import PointFamily

    family = tmp_path / "family"
    family.mkdir()
    PointFamily("dpo", {"0.5,0.5": str(tiny_model)}).save(family)
    table = run(family, suite, tmp_path / "out", "--weights", "0.5,0.5", "--measure", "completion")
    assert table["model"] == "family@0.5,0.5"
    with pytest.raises(UserError, match="add --weights"):
        run(family, suite, tmp_path / "out", "--measure", "completion")


def test_a_killed_run_ends_with_the_same_table(tiny_model: Path, suite: Path, tmp_path: Path) -> None:
    whole = run(tiny_model, suite, tmp_path / "a", "--shift", "lowercase", "--batch-size", "2")
    cells = tmp_path / "b" / "cells.jsonl"
    cells.parent.mkdir()
    lines = (tmp_path / "a" / "cells.jsonl").read_text().splitlines(keepends=True)
    cells.write_text("".join(lines[:9]) + lines[9][:40])  # what a kill -9 leaves behind
    assert run(tiny_model, suite, tmp_path / "b", "--shift", "lowercase", "--batch-size", "2")["hash"] == whole["hash"]


def test_two_evaluations_are_compared_item_by_item(
    tiny_model: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        run(tiny_model, suite, tmp_path / name, "--shift", "lowercase")
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b"), "--max-missing", "0.9"]) == 0
    assert "lowercase" in capsys.readouterr().out
    table = json.loads((tmp_path / "b" / "comparison.json").read_text())["suites"]
    page = (tmp_path / "b" / "comparison.html").read_text()
    assert json.loads((tmp_path / "a" / "table.json").read_text())["fingerprint"] in page and "lowercase" in page
    (suite_table,) = table.values()
    changes = [side["change"]["value"] for sides in suite_table["shifts"].values() for side in sides.values()]
    assert changes and set(changes) == {0.0}, "a policy does not differ from itself"
    with pytest.raises(UserError, match=r"no outcomes\.jsonl"):
        compare.main([str(tmp_path / "a"), str(tmp_path)])
    with pytest.raises(UserError, match="two folders"):
        compare.main([str(tmp_path / "a")])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shift", "base65"], "base6"),
        (["--measure", "vibes"], "no measurement 'vibes'"),
        (["--samples", "3"], "add --temperature"),
        (["--limit", "0"], "limit must be at least 1"),
        (["--max-missing", "1"], "share in"),
        (["--measure", "rewards"], "needs --objectives"),
        (["--export", "csv"], "cannot export"),
        (["--template", "chat"], "no chat template"),
        (["--judge", "vibes"], "judge 'vibes'"),
        (["--weights", "1,0"], "single model"),
        (["--measure", "against_reference"], "no adapter"),
        (["--batch-size", "0"], "at least 1"),
    ],
)
def test_a_mistake_is_one_line(
    tiny_model: Path, suite: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run(tiny_model, suite, tmp_path, *arguments)


def test_a_config_file_that_names_a_suite_is_understood(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("suite: [xstest]\n")
    assert evaluate.names_a_suite(["m", "--config", str(file)]) and evaluate.names_a_suite(["m", f"--config={file}"])
    file.write_text("runs: [runs/dpo]\n")
    assert not evaluate.names_a_suite(["m", "--config", str(file)])
    assert not evaluate.names_a_suite(["runs/dpo", "--data", "x"])


def test_measurements_follow_the_suites_kind_and_their_needs() -> None:
    def config(**values: Any) -> evaluate_suites.Config:
        return evaluate_suites.Config(model="m", suite=("s",), **values)

    assert evaluate_suites.measures_of(config(), "safety") == ["completion", "verdict", "comprehension"]
    assert evaluate_suites.measures_of(config(), "choice") == ["choices"]
    assert evaluate_suites.measures_of(config(), "text") == ["bits"]
    assert evaluate_suites.measures_of(config(), "qa") == ["completion"]
    assert evaluate_suites.measures_of(config(), "reward_pairs") == ["pairs"]
    with pytest.raises(UserError, match="kind vibes has no measurement"):
        evaluate_suites.measures_of(config(), "vibes")
    assert evaluate_suites.measures_of(config(measure=("margin", "verdict")), "choice") == [
        "completion", "verdict", "margin",
    ]  # fmt: skip


def test_items_of_one_base_item_are_one_cluster() -> None:
    from evals.items import Item
    from evals.measure.cells import ask
    from evals.shifts import parse_shifts
    from evals.tables.suite_outcomes import outcomes_of

    items = [Item("a", "x", "harmful", columns={"cluster": "base"}), Item("b", "y", "harmful")]
    plan = ask(items, suite="s", shifts=parse_shifts(["none"]))
    cells = [cell.measured("verdict", {"verdict": "BAD"}) for cell in plan]
    assert [o.cluster for o in outcomes_of(cells)] == ["base", "b"]
