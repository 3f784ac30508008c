"""A plan's calls run over worker processes of one thread each, every call after the runs that it takes.

A call is a stage with its arguments (align/runs/stage.py); results are files on disk, and a finished one is only read.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError
from align.runs import Call, Run
from align.runs.threads import one_thread

if TYPE_CHECKING:
    from tqdm import tqdm


def needs_of(calls: Sequence[Call]) -> dict[str, tuple[str, ...]]:
    """Call -> the calls of the plan whose runs it takes, by name; runs that no call makes are there already."""
    makers = {call.out: call.name for call in calls}
    return {call.name: tuple(makers[folder] for folder in call.needs if folder in makers) for call in calls}


def check_calls(calls: Sequence[Call]) -> None:
    """ValueError on a name or folder used twice, or a run that a later call makes (which rules out circles)."""
    needs, names, folders = needs_of(calls), set[str](), set[Path]()
    for call in calls:
        if call.name in names or call.out in folders:
            raise ValueError(f"two calls are named {call.name} or write {call.out}")
        later = [need for need in needs[call.name] if need not in names]
        if later:
            raise ValueError(f"{call.name} takes the run of {later[0]}, which does not come before it")
        names.add(call.name)
        folders.add(call.out)


def _exit_with_parent(parent: int) -> None:
    """A killed parent leaves no worker behind: its children are adopted, and the parent's number changes."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _start_worker(parent: int) -> None:
    one_thread()
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def run_calls(calls: Sequence[Call], *, workers: int, label: str, deadline: float | None = None) -> int:
    """Run all calls over `workers` processes (0: in this one, in order), with a progress bar or lines on stderr.

    The first failure stops new calls from starting, waits for those that run, and is raised. No call starts after
    `deadline` (on the clock of time.monotonic); returns how many have not run.
    """
    check_calls(calls)
    if workers < 0:
        raise UserError(f"workers is {workers}; give a number of processes, or 0 to run everything in this one")
    progress = _Progress(label, len(calls))
    if workers == 0:
        try:
            for number, call in enumerate(calls):
                if _late(deadline):
                    return len(calls) - number
                progress.started(call.name)
                with _named(call.name):
                    call()
                progress.finished(call.name)
        finally:
            progress.close()
        return 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),)) as pool:
        try:
            return _drain(calls, pool=pool, workers=workers, progress=progress, deadline=deadline)
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
    calls: Sequence[Call], *, pool: ProcessPoolExecutor, workers: int, progress: _Progress, deadline: float | None
) -> int:
    waiting, done, needs = list(calls), set[str](), needs_of(calls)
    running: dict[Future[Run], str] = {}
    while running or (waiting and not _late(deadline)):
        ready = [] if _late(deadline) else [c for c in waiting if set(needs[c.name]) <= done]
        for call in ready[: workers - len(running)]:
            waiting.remove(call)
            running[pool.submit(call)] = call.name
            progress.started(call.name)
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            name = running.pop(future)
            with _named(name):
                future.result()
            done.add(name)
            progress.finished(name)
    return len(waiting)


class _Progress:
    """A bar on a terminal; elsewhere one line per finished call."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.count = label, total, 0
        self.running: dict[str, float] = {}
        self.bar: tqdm[None] | None = None
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
