"""Tasks run in order of their needs, once, over any number of workers; failures name their stage and leave nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from align.errors import UserError
from align.runs import Ledger, run_stage
from recipes.pipeline.tasks import Task, check_tasks, run_tasks

ROOT = Path(__file__).resolve().parents[3]


def note(*, folder: str, name: str, needs: tuple[str, ...] = (), seconds: float = 0.0) -> None:
    """Write down that `needs` were there when this task began."""
    place = Path(folder)
    missing = [need for need in needs if not (place / need).is_file()]
    time.sleep(seconds)
    (place / name).write_text(f"missing {missing}\n")


def fail(*, folder: str, name: str, user: bool) -> None:
    raise UserError("rows.jsonl:3: mend it") if user else ValueError("no such luck")


def stage(*, folder: str, name: str, value: int) -> None:
    """A real stage: its body leaves a mark each time that it runs."""

    def body(place: Path, ledger: Ledger) -> dict:
        with open(Path(folder) / "bodies.txt", "a") as handle:
            handle.write(name + "\n")
        (place / "result.txt").write_text(str(value**2))
        return {"square": value**2}

    run_stage(Path(folder) / name, stage="square", config={"value": value}, body=body)


def tasks_of(folder: Path) -> list[Task]:
    needs = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ()}
    return [
        Task(name, note, {"folder": str(folder), "name": name, "needs": wanted, "seconds": 0.2 * (name == "a")}, wanted)
        for name, wanted in needs.items()
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_task_starts_after_all_that_it_needs(workers: int, tmp_path: Path) -> None:
    run_tasks(tasks_of(tmp_path), workers=workers, label="test")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys("abcde", "missing []\n")


def test_one_process_keeps_the_order_of_the_list(tmp_path: Path) -> None:
    run_tasks(tasks_of(tmp_path), workers=0, label="test")
    times = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert sorted(times, key=lambda name: times[name]) == list("abcde")


def test_lists_that_cannot_be_run_are_refused() -> None:
    one, other = Task("a", note, {}), Task("b", note, {}, ("a",))
    check_tasks([one, other])
    with pytest.raises(ValueError, match="two tasks are called a"):
        check_tasks([one, one])
    with pytest.raises(ValueError, match="task b needs a, which does not come before it"):
        check_tasks([other, one])
    with pytest.raises(ValueError, match="task b needs a"):
        run_tasks([other], workers=0, label="test")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("user", [False, True])
def test_a_failure_stops_the_rest_and_names_its_stage(workers: int, user: bool, tmp_path: Path) -> None:
    """A UserError passes as it is; any other exception gets a note. What needs the failed stage never starts."""
    folder = str(tmp_path)
    tasks = [
        Task("before", note, {"folder": folder, "name": "before"}),
        Task("broken", fail, {"folder": folder, "name": "broken", "user": user}, ("before",)),
        Task("after", note, {"folder": folder, "name": "after"}, ("broken",)),
        Task("beside", note, {"folder": folder, "name": "beside"}),
    ]
    with pytest.raises(UserError if user else ValueError) as caught:
        run_tasks(tasks, workers=workers, label="test")
    assert str(caught.value) == ("rows.jsonl:3: mend it" if user else "no such luck")
    notes = getattr(caught.value, "__notes__", [])
    assert any("'broken'" in text for text in notes) == (not user)
    assert {p.name for p in tmp_path.iterdir()} == {"before"}


def test_workers_write_what_one_process_writes_and_a_second_call_reuses_it(tmp_path: Path) -> None:
    results = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        tasks = [
            Task(name, stage, {"folder": str(folder), "name": name, "value": i}, ("one",) if i == 2 else ())
            for i, name in enumerate(("zero", "one", "two"))
        ]
        run_tasks(tasks, workers=workers, label="test")
        run_tasks(tasks, workers=0, label="test")
        assert sorted((folder / "bodies.txt").read_text().split()) == ["one", "two", "zero"]  # once each
        runs = {name: json.loads((folder / name / "run.json").read_text()) for name in ("zero", "one", "two")}
        kept = {n: {k: v for k, v in run.items() if k not in ("ledger", "environment")} for n, run in runs.items()}
        results.append((kept, [(folder / n / "result.txt").read_bytes() for n in runs]))
    assert results[0] == results[1]
    assert results[0][1] == [b"0", b"1", b"4"]


def test_a_changed_stage_alone_runs_again(tmp_path: Path) -> None:
    def tasks(value: int) -> list[Task]:
        first = Task("first", stage, {"folder": str(tmp_path), "name": "first", "value": 1})
        return [first, Task("second", stage, {"folder": str(tmp_path), "name": "second", "value": value}, ("first",))]

    run_tasks(tasks(2), workers=0, label="test")
    run_tasks(tasks(3), workers=0, label="test")
    assert (tmp_path / "bodies.txt").read_text().split() == ["first", "second", "second"]
    assert (tmp_path / "second" / "result.txt").read_text() == "9"


PARENT = """
import sys
sys.path.insert(0, sys.argv[2])
from recipes.pipeline.tasks import Task, run_tasks
from test_pipeline import sleep_long
if __name__ == "__main__":
    tasks = [Task(n, sleep_long, {"folder": sys.argv[1], "name": n}) for n in ("a", "b")]
    run_tasks(tasks, workers=2, label="test")
"""


def sleep_long(*, folder: str, name: str) -> None:
    (Path(folder) / name).write_text(str(os.getpid()))
    time.sleep(60)


def test_a_killed_parent_leaves_no_workers(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    command = [sys.executable, str(script), str(tmp_path), str(ROOT / "tests")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
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
