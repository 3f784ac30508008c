"""Calls run in order of their needs, once, over any number of workers; failures name their stage and leave nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from align.errors import UserError
from align.runs import Call, Metrics, Run, Workspace, stage
from recipes.pipeline.plan import ordered
from recipes.pipeline.tasks import check_calls, needs_of, run_calls

ROOT = Path(__file__).resolve().parents[3]


@stage
def note(work: Workspace, *, needs: Sequence[Run] = (), seconds: float = 0.0, value: int = 0) -> Metrics:
    """Write down which runs were there when this call began, and leave a mark each time that the body runs."""
    time.sleep(seconds)
    (work.folder / "needs.json").write_text(json.dumps([run.path.name for run in needs]))
    with open(work.folder.parent / "bodies.txt", "a") as handle:
        handle.write(work.folder.name.removesuffix(".partial") + "\n")
    (work.folder / "result.txt").write_text(str(value**2))
    return {"square": value**2}


@stage
def fail(work: Workspace, *, needs: Sequence[Run], user: bool) -> Metrics:
    raise UserError("rows.jsonl:3: fix it") if user else ValueError("no such luck")


def calls_of(folder: Path) -> list[Call]:
    needs = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ()}
    return [
        note.call(folder / name, needs=[str(folder / need) for need in wanted], seconds=0.2 * (name == "a"))
        for name, wanted in needs.items()
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_call_starts_after_all_that_it_needs(workers: int, tmp_path: Path) -> None:
    calls = calls_of(tmp_path)
    assert needs_of(calls) == {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ()}
    run_calls(calls, workers=workers, label="test")
    assert {p.parent.name: json.loads(p.read_text()) for p in tmp_path.glob("*/needs.json")} == {
        "a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": [],
    }  # fmt: skip


def test_one_process_keeps_the_order_of_the_list(tmp_path: Path) -> None:
    run_calls(calls_of(tmp_path), workers=0, label="test")
    assert (tmp_path / "bodies.txt").read_text().split() == list("abcde")


def test_lists_that_cannot_be_run_are_refused_and_plans_are_put_in_order(tmp_path: Path) -> None:
    one, other = note.call(tmp_path / "a"), note.call(tmp_path / "b", needs=[str(tmp_path / "a")])
    check_calls([one, other])
    with pytest.raises(ValueError, match="two calls are named a"):
        check_calls([one, one])
    with pytest.raises(ValueError, match="b takes the run of a, which does not come before it"):
        check_calls([other, one])
    assert ordered([other, one, one]) == (one, other)
    assert needs_of([other]) == {"b": ()}  # a run that no call of the plan makes is there already


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("user", [False, True])
def test_a_failure_stops_the_rest_and_names_its_stage(workers: int, user: bool, tmp_path: Path) -> None:
    """A UserError passes as it is; any other exception gets a note. What needs the failed stage never starts."""
    place = {name: str(tmp_path / name) for name in ("before", "broken", "after", "beside")}
    calls = [
        note.call(place["before"]),
        fail.call(place["broken"], needs=[place["before"]], user=user),
        note.call(place["after"], needs=[place["broken"]]),
        note.call(place["beside"]),
    ]
    with pytest.raises(UserError if user else ValueError) as caught:
        run_calls(calls, workers=workers, label="test")
    assert str(caught.value) == ("rows.jsonl:3: fix it" if user else "no such luck")
    notes = getattr(caught.value, "__notes__", [])
    assert any("'broken'" in text for text in notes) == (not user)
    assert {p.parent.name for p in tmp_path.glob("*/run.json")} == {"before"}


def test_workers_write_what_one_process_writes_and_a_second_call_reuses_it(tmp_path: Path) -> None:
    results = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        calls = [
            note.call(folder / name, value=i, needs=[str(folder / "one")] if i == 2 else [])
            for i, name in enumerate(("zero", "one", "two"))
        ]
        run_calls(calls, workers=workers, label="test")
        run_calls(calls, workers=0, label="test")
        assert sorted((folder / "bodies.txt").read_text().split()) == ["one", "two", "zero"]  # once each
        runs = {name: json.loads((folder / name / "run.json").read_text()) for name in ("zero", "one", "two")}
        kept = {n: {k: v for k, v in run.items() if k not in ("ledger", "environment")} for n, run in runs.items()}
        results.append((kept, [(folder / n / "result.txt").read_bytes() for n in runs]))
    assert results[0] == results[1]
    assert results[0][1] == [b"0", b"1", b"4"]


def test_a_changed_stage_alone_runs_again(tmp_path: Path) -> None:
    for value in (2, 3):
        run_calls(
            [note.call(tmp_path / "first", value=1), note.call(tmp_path / "second", value=value)], workers=0, label="t"
        )
    assert (tmp_path / "bodies.txt").read_text().split() == ["first", "second", "second"]
    assert (tmp_path / "second" / "result.txt").read_text() == "9"


PARENT = """
import sys
from pathlib import Path
from recipes.pipeline.tasks import run_calls
from test_pipeline import sleep_long
if __name__ == "__main__":
    run_calls([sleep_long.call(Path(sys.argv[1]) / f"run-{n}", mark=n) for n in ("a", "b")], workers=2, label="test")
"""


@stage
def sleep_long(work: Workspace, *, mark: str) -> Metrics:
    (work.folder.parent / mark).write_text(str(os.getpid()))
    time.sleep(60)
    return {}


def test_a_killed_parent_leaves_no_workers(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    command = [sys.executable, str(script), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}
    parent = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    marks = [tmp_path / "a", tmp_path / "b"]
    try:
        _wait(lambda: all(mark.is_file() and mark.read_text() for mark in marks), seconds=60)
        workers = [psutil.Process(int(mark.read_text())) for mark in marks]
        assert {worker.ppid() for worker in workers} == {parent.pid}
    finally:
        parent.kill()
        parent.wait()
    _wait(lambda: not any(_alive(worker) for worker in workers), seconds=15)


def _alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _wait(ready, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)
