"""`--out`: no command removes, changes or reuses what it did not write, and each says in one line how to go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from align.errors import UserError
from align.policies.base import PointFamily
from align.runs import open_run, run_stage
from evals.tables.export import export_file
from recipes import cli

Rows = dict[str, Path]
STAGES = ("pretrain", "sft", "reward-model", "finetune", "evaluate")


@pytest.fixture
def words(tiny_model: Path, tiny_rows: Rows, tmp_path: Path) -> Callable[[str], list[str]]:
    """The words of a command but for its --out; none gets as far as training."""
    family = tmp_path / "family"
    family.mkdir()
    PointFamily("dpo", {"0.5,0.5": str(tiny_model)}).save(family)
    model, objectives = ["--model", tiny_model], ["--objectives", "long=length", "short=length"]
    known = {
        "pretrain": ["--data", tiny_rows["text"]],
        "sft": [*model, "--data", tiny_rows["demonstrations"]],
        "reward-model": [*model, "--data", tiny_rows["comparisons"]],
        "finetune": ["morlhf", *model, *objectives, "--data", tiny_rows["prompts"]],
        "evaluate": [family, "--reference", tiny_model, *objectives, "--data", tiny_rows["prompts"]],
    }

    def command(name: str) -> list[str]:
        return [name, *map(str, known[name])]

    return command


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    code = cli.main(list(map(str, arguments)))
    error = capsys.readouterr().err
    assert code == 2, error
    assert [line for line in error.splitlines() if line.startswith("align: error: ")] == [error.splitlines()[-1]]
    return error.splitlines()[-1]


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("command", STAGES)
@pytest.mark.parametrize("way", ["out", "partial", "partial behind a link"])
def test_a_strangers_folder_is_refused_and_kept(
    way: str, command: str, words: Callable[[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "work" / "x"
    thesis = out.with_name("elsewhere" if "link" in way else "x" if way == "out" else "x.partial")
    thesis.mkdir(parents=True)
    (thesis / "thesis.txt").write_text("precious")
    if "link" in way:
        out.with_name("x.partial").symlink_to(thesis)
    before = tree(out.parent)
    error = refused(capsys, *words(command), "--out", out)
    assert ("exists and is not a run" if way == "out" else "x.partial is in the way") in error
    assert "give another --out" in error and tree(out.parent) == before


@pytest.mark.parametrize("command", STAGES)
def test_a_finished_run_of_another_call_is_refused_and_kept(
    command: str, words: Callable[[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "work" / "x"
    earlier = run_stage(out, stage="another stage", config={}, body=lambda folder, ledger: {})
    (out / "thesis.txt").write_text("precious")
    (out.parent / "x.replaced").mkdir()
    before = tree(out.parent)
    error = refused(capsys, *words(command), "--out", out)
    assert "holds a finished run that differs from this call (it is a run of the stage another stage, not" in error
    assert "give another --out, or delete that folder first" in error
    assert tree(out.parent) == before and open_run(out) == earlier


@pytest.mark.parametrize("method", ["dpo", "morlhf"])
def test_a_method_given_a_folder_with_a_strangers_points(method: str, tiny_model: Path, tmp_path: Path) -> None:
    """The Python API: what a user has below the folder stays, and a point of that name is refused."""
    from align.engines.problem import Problem
    from align.methods import METHODS
    from align.objectives import build_objective
    from align.preferences import Weights
    from align.runs import Ledger, Workspace

    (tmp_path / "points" / "0.5,0.5").mkdir(parents=True)
    (tmp_path / "points" / "0.5,0.5" / "thesis.txt").write_text("precious")
    (tmp_path / "points" / "1,0.partial").mkdir()
    (tmp_path / "points" / "1,0.partial" / "thesis.txt").write_text("precious")
    before = tree(tmp_path)
    objectives = {name: build_objective({"kind": "length", "name": name}) for name in ("long", "wordy")}
    rows = [{"id": str(i), "prompt": f"explain tea {i}", "a": " sure", "b": " sorry"} for i in range(4)]
    prompts = [{"id": row["id"], "prompt": row["prompt"]} for row in rows]
    for weights, message in ((Weights((0.5, 0.5)), "exists and is not a run"), (Weights((1.0, 0.0)), "is in the way")):
        problem = Problem(
            reference=str(tiny_model), objectives=objectives, preferences=[weights], comparisons=rows, prompts=prompts
        )
        with pytest.raises(UserError, match=message):
            config = METHODS[method].Config(**({"labels": "objectives"} if method == "dpo" else {}))
            METHODS[method].fit(config, problem, Workspace(tmp_path, Ledger()))
    assert tree(tmp_path) == before


def test_training_in_a_folder_with_a_strangers_checkpoints(tiny_model: Path, tmp_path: Path) -> None:
    from align.training.common import drop_checkpoints, resume_point

    (tmp_path / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    before = tree(tmp_path)
    with pytest.raises(UserError, match="checkpoints is in the way and no training made it"):
        resume_point(tmp_path)
    drop_checkpoints(tmp_path)
    assert tree(tmp_path) == before


@pytest.fixture
def suite(write_rows: Callable[..., Path], tmp_path: Path) -> list[object]:
    """The words of an evaluation of one made suite."""
    rows = [{"id": str(i), "prompt": f"explain tea {i}", "label": "benign"} for i in range(3)]
    return ["--suite", write_rows(tmp_path / "made.jsonl", rows), "--measure", "completion", "--max-new-tokens", "2"]


@pytest.mark.parametrize("name", ["table.json", "summary.json", "report.html", "outcomes.jsonl", "provenance.json"])
def test_suites_refuse_a_folder_with_a_file_that_they_would_write(
    name: str, tiny_model: Path, suite: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("precious")
    error = refused(capsys, "suites", tiny_model, *suite, "--out", out)
    assert f"holds {name}, which no evaluation of suites wrote there; give another --out" in error
    assert tree(out) == {name: b"precious"}


@pytest.mark.parametrize("content", ["no newline", '{"a": 1}\n', '{"a": 1}'])
def test_suites_keep_a_strangers_cells(
    content: str, tiny_model: Path, suite: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "cells.jsonl").write_text(content)
    assert "cells.jsonl:1: " in refused(capsys, "suites", tiny_model, *suite, "--out", out)
    assert (out / "cells.jsonl").read_text() == content


@pytest.mark.parametrize("name", ["cells", "outcomes", "shifts"])
def test_an_export_never_takes_the_name_of_the_store(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{name}.jsonl is a file of the evaluation itself; rename the suite's file"):
        export_file(tmp_path, suite=name, kind="jsonl")
    assert export_file(tmp_path, suite=name, kind="parquet").name == f"{name}.parquet"


def test_two_suites_of_one_name_are_refused(
    tiny_model: Path, suite: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = tmp_path / "deep" / "made.jsonl"
    twin.parent.mkdir()
    twin.write_text((tmp_path / "made.jsonl").read_text())
    words = [*suite[:2], twin, *suite[2:]]
    assert "two suites are called 'made'" in refused(capsys, "suites", tiny_model, *words, "--out", tmp_path / "out")


def test_two_runs_or_prompt_files_of_one_name_are_refused(
    words: Callable[[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_rows: Rows
) -> None:
    twin = tmp_path / "deep" / "family"
    twin.mkdir(parents=True)
    (twin / "family.json").write_text((tmp_path / "family" / "family.json").read_text())
    command = words("evaluate")
    error = refused(capsys, command[0], twin, *command[1:], "--out", tmp_path / "x")
    assert "two runs are called 'family'; write ROW=RUN" in error
    error = refused(capsys, *command, tiny_rows["comparisons"], "--out", tmp_path / "x")
    assert "--data names two sources of prompts in distribution" in error
    assert json.loads((twin / "family.json").read_text())["kind"] == "points"


def test_a_summary_that_no_recipe_wrote_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from align.runs.derived import keep_strangers

    like = {"kind": "suites", "title": "mine", "provenance": {}}
    summary, page = tmp_path / "summary.json", tmp_path / "report.html"
    page.write_text("precious")
    keep_strangers(summary, page, like=like)
    assert tree(tmp_path) == {"report.html.replaced": b"precious"}
    assert f"it is kept as {page}.replaced" in capsys.readouterr().err
    for content in ("[1]", "no JSON", '{"title": "mine"}'):
        summary.write_text(content)
        keep_strangers(summary, page, like=like)
        assert not summary.exists()
    kept = {f"summary.json.replaced{n}": c for n, c in (("", b"[1]"), ("-2", b"no JSON"), ("-3", b'{"title": "mine"}'))}
    assert tree(tmp_path) == {"report.html.replaced": b"precious", **kept}
    ours = '{"kind": "suites", "title": "mine", "provenance": {}}'
    for content in ('{"provenance": {}}', ours.replace("suites", "testbed"), ours.replace("mine", "another")):
        summary.write_text(content)
        page.write_text("its page")
        keep_strangers(summary, page, like=like)
        assert not summary.exists() and not page.exists()
    summary.write_text(ours)
    page.write_text("our page")
    keep_strangers(summary, page, like=like)
    assert summary.read_text() == ours and page.read_text() == "our page"


def test_a_report_is_not_written_over_its_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = tmp_path / "summary.json"
    summary.write_text('{"kind": "sampled"}')
    assert cli.main(["report", str(tmp_path), "--out", str(summary)]) == 2
    assert "would overwrite" in capsys.readouterr().err and summary.read_text() == '{"kind": "sampled"}'
