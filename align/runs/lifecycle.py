"""A stage's folder from its start to its name: written aside, resumed, finished once."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from align.errors import UserError, disk_is_full
from align.runs.environment import environment
from align.runs.ledger import Ledger
from align.runs.reading import RUN_FILE, Run, open_run
from align.runs.values import fingerprint, write_json


def _finished(path: Path, key: str) -> Run | None:
    if not (path / RUN_FILE).is_file():
        return None
    run = open_run(path)
    return run if run.fingerprint == key else None


def _check_place(path: Path) -> None:
    """UserError for a folder that no stage wrote: finishing there would delete what it holds."""
    if not path.name:
        raise UserError(f"{path} cannot be a run directory; give --out a folder of its own")
    if path.exists() and not (path / RUN_FILE).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not a run; give another --out, or move it away")


def _open_partial(partial: Path, key: str) -> None:
    """Keep the work of an interrupted call with the same fingerprint, drop any other."""
    marker = partial / "fingerprint"
    if not (marker.is_file() and marker.read_text().strip() == key):
        for entry in partial.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    marker.write_text(key + "\n")


@contextmanager
def _alone_in(partial: Path) -> Iterator[None]:
    """Hold the folder against other processes (a killed one lets go); UserError when one keeps it for 10 seconds."""
    partial.mkdir(parents=True, exist_ok=True)
    handle = os.open(partial, os.O_RDONLY)
    try:
        for _ in range(50):  # the workers of a killed parent need a moment to end
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.2)
            except OSError:  # a file system without locks: as if alone
                break
        else:
            raise UserError(f"another process is working in {partial}; wait for it, or end it and run this again")
        if not (partial.is_dir() and os.path.samestat(os.fstat(handle), os.stat(partial))):
            raise UserError(f"another process has just finished {partial}; run the same command again")
        yield
    finally:
        os.close(handle)


def _publish(partial: Path, path: Path) -> None:
    """Give a finished folder its name; an earlier run of that name is set aside first, so that no kill halves it."""
    earlier = path.with_name(path.name + ".replaced")
    shutil.rmtree(earlier, ignore_errors=True)
    if path.exists():
        os.rename(path, earlier)
    os.rename(partial, path)
    shutil.rmtree(earlier, ignore_errors=True)


@dataclass(frozen=True)
class Identity:
    """What a run is known by, and the configuration and inputs that it records."""

    stage: str
    config: object
    inputs: Mapping[str, str]
    fingerprint: str


def run_stage(
    path: str | Path,
    *,
    stage: str,
    config: object,
    body: Callable[[Path, Ledger], Mapping[str, object]],
    inputs: Mapping[str, str] | None = None,
    replace: bool = False,
) -> Run:
    """Run `body(folder, ledger) -> metrics` once for this fingerprint and return the finished run.

    Raises UserError when the disk fills (the unfinished folder keeps its `.partial` name), when `path` is a folder that
    is no run, and when another process works on it. Whatever else `body` raises passes through, with the same
    guarantee.
    """
    key = fingerprint({"stage": stage, "config": config, "inputs": inputs or {}})
    identity = Identity(stage=stage, config=config, inputs=dict(inputs or {}), fingerprint=key)
    return finish(Path(path), identity=identity, body=body, replace=replace)


def finish(
    path: Path, *, identity: Identity, body: Callable[[Path, Ledger], Mapping[str, object]], replace: bool
) -> Run:
    """The machinery of `run_stage` and `@stage`, which say in `identity` what the run is known by."""
    _check_place(path)
    key = identity.fingerprint
    done = _finished(path, key)
    if done is not None:
        return done
    partial = path.with_name(path.name + ".partial")
    ledger = Ledger()
    try:
        with _alone_in(partial):
            if _finished(partial, key) is None:  # else it was killed between its last line and its name
                _open_partial(partial, key)
                with ledger.clock():
                    metrics = body(partial, ledger)
                content = {
                    "stage": identity.stage,
                    "config": identity.config,
                    "inputs": identity.inputs,
                    "fingerprint": key,
                    "metrics": metrics,
                    "ledger": ledger,
                    "environment": environment(),
                }
                write_json(partial / RUN_FILE, content)
            _publish(partial, path)
    except Exception as error:
        if disk_is_full(error):
            raise UserError(
                f"no space left on the disk while writing {partial}; free some space and run the same command again"
            ) from error
        raise
    return open_run(path)
