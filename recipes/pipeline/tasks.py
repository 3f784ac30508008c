"""Stages as tasks with dependencies, run over worker processes of one thread each; a finished stage is not run again.

A task is a module-level function and plain arguments; results are files on disk, so a task returns nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from align.errors import UserError
from align.threads import one_thread


@dataclass(frozen=True)
class Task:
    """One stage: `call(**arguments)` once every task named in `needs` is done. Earlier tasks of the list go first."""

    name: str
    call: Callable[..., Any]
    arguments: Mapping[str, Any]
    needs: tuple[str, ...] = field(default=())


def _exit_with_parent(parent: int) -> None:
    """A killed parent leaves no worker behind: its children are adopted, and the parent's number changes."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _start_worker(parent: int) -> None:
    one_thread()
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def check_tasks(tasks: Sequence[Task]) -> None:
    """ValueError on a name used twice, or a need that does not stand earlier in the list (which rules out circles)."""
    seen: set[str] = set()
    for task in tasks:
        if task.name in seen:
            raise ValueError(f"two tasks are called {task.name}")
        missing = [need for need in task.needs if need not in seen]
        if missing:
            raise ValueError(f"task {task.name} needs {missing[0]}, which does not come before it")
        seen.add(task.name)


def run_tasks(tasks: Sequence[Task], *, workers: int, label: str, deadline: float | None = None) -> int:
    """Run all tasks over `workers` processes (0: in this one, in order), with a progress bar or lines on stderr.

    The first failure stops new tasks from starting, waits for those that run, and is raised. No task starts after
    `deadline` (on the clock of time.monotonic); returns how many have not run.
    """
    check_tasks(tasks)
    if workers < 0:
        raise UserError(f"workers is {workers}; give a number of processes, or 0 to run everything in this one")
    progress = _Progress(label, len(tasks))
    if workers == 0:
        try:
            for number, task in enumerate(tasks):
                if _late(deadline):
                    return len(tasks) - number
                progress.started(task.name)
                with _named(task.name):
                    task.call(**task.arguments)
                progress.finished(task.name)
        finally:
            progress.close()
        return 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),)) as pool:
        try:
            return _drain(tasks, pool=pool, workers=workers, progress=progress, deadline=deadline)
        finally:
            progress.close()


@contextmanager
def _named(stage: str) -> Iterator[None]:
    """Let an exception say in which stage it happened; a UserError names its own place."""
    try:
        yield
    except UserError:
        raise
    except BrokenProcessPool as error:
        raise UserError(
            f"a worker process died in or beside stage {stage!r} (out of memory?); run it again with fewer --workers"
        ) from error
    except Exception as error:
        error.add_note(f"while running stage {stage!r}")
        raise


def _late(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > deadline


def _drain(
    tasks: Sequence[Task], *, pool: ProcessPoolExecutor, workers: int, progress: _Progress, deadline: float | None
) -> int:
    waiting, done = list(tasks), set()
    running: dict[Future[Any], str] = {}
    while running or (waiting and not _late(deadline)):
        for task in [] if _late(deadline) else [t for t in waiting if set(t.needs) <= done][: workers - len(running)]:
            waiting.remove(task)
            running[pool.submit(task.call, **task.arguments)] = task.name
            progress.started(task.name)
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            name = running.pop(future)
            with _named(name):
                future.result()
            done.add(name)
            progress.finished(name)
    return len(waiting)


class _Progress:
    """A bar on a terminal; elsewhere one line per finished task."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.count = label, total, 0
        self.running: dict[str, float] = {}
        self.bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=label, unit="stage", dynamic_ncols=True)

    def started(self, name: str) -> None:
        self.running[name] = time.monotonic()
        if self.bar is not None:
            self.bar.set_postfix_str(", ".join(self.running))

    def finished(self, name: str) -> None:
        self.count += 1
        seconds = time.monotonic() - self.running.pop(name)
        if self.bar is not None:
            self.bar.update(1)
            self.bar.set_postfix_str(", ".join(self.running))
        elif seconds >= 0.5:
            print(f"{self.label}: {self.count}/{self.total} {name} ({seconds:.1f} s)", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
