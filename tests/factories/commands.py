"""`align ARGUMENTS` in a process of its own that starts as a copy of the tests' process: nothing is imported twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parents[2]


def run_forked(
    arguments: Sequence[str], *, timeout: float = 400, prepare: Callable[[], object] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command in a fork of this process, from the repository's root; its exit code and what it wrote.

    A fresh process spends five CPU seconds on importing torch, transformers and trl; a fork has them. That a fresh
    process starts, and what it imports, is tested in tests/recipes/commands/test_cli.py and tests/house.

    Args:
        prepare: called in the child before the command, to limit what it may use.

    Raises:
        subprocess.TimeoutExpired: after `timeout` seconds; the process is killed.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = _start(arguments, out, err, prepare)
        code = _wait(child, seconds=timeout)
        out.seek(0)
        err.seek(0)
        done = subprocess.CompletedProcess(["align", *arguments], code or 0, out.read(), err.read())
    if code is None:
        raise subprocess.TimeoutExpired(done.args, timeout, done.stdout, done.stderr)
    return done


def kill_when(arguments: Sequence[str], *, ready: Callable[[], bool], seconds: float = 400) -> None:
    """Start the command, wait for `ready`, and kill its whole process group without warning."""
    with open(os.devnull, "w") as nowhere:
        child = _start(arguments, nowhere, nowhere, os.setsid)
    ended = False
    deadline = time.monotonic() + seconds
    try:
        while not ready():
            ended = os.waitpid(child, os.WNOHANG)[0] != 0
            assert not ended, "the command ended before it could be killed"
            assert time.monotonic() < deadline, "the moment to kill never came"
            time.sleep(0.005)
    finally:
        if not ended:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _start(arguments: Sequence[str], out: IO[str], err: IO[str], prepare: Callable[[], object] | None) -> int:
    """Fork; the child runs the command and ends. The child's process id."""
    child = os.fork()
    if child == 0:
        _command(list(arguments), out, err, prepare)
    return child


def _command(arguments: list[str], out: IO[str], err: IO[str], prepare: Callable[[], object] | None) -> NoReturn:
    """The child: its own standard output and error, then the command; never returns to the tests."""
    code: int | None = 1
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        sys.argv = ["align", *arguments]
        os.chdir(ROOT)
        if prepare is not None:
            prepare()
        from recipes import cli

        code = cli.main(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) or stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def _wait(child: int, *, seconds: float) -> int | None:
    """The child's exit code; None after so many seconds, when it is killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
