"""A stage's folder from its start to its name: written aside, resumed, finished once, never another's."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from align.errors import UserError, disk_is_full
from align.runs.environment import environment
from align.runs.folders import (
    MARK,
    Identity,
    alone_in,
    beside,
    differences,
    is_empty,
    publish,
    read_mark,
    write_mark,
)
from align.runs.ledger import Ledger
from align.runs.reading import RUN_FILE, Run, open_run
from align.runs.values import fingerprint, write_json

Body = Callable[[Path, Ledger], Mapping[str, object]]


def run_stage(
    path: str | Path,
    *,
    stage: str,
    config: object,
    body: Body,
    inputs: Mapping[str, str] | None = None,
    replace: bool = False,
) -> Run:
    """Run `body(folder, ledger) -> metrics` once for this fingerprint and return the finished run.

    A finished run with another fingerprint is refused, in one line that names what differs. With `replace` (what the
    plan of an experiment asks for) one of the same stage makes way: it is kept as `<path>.replaced`, or the next free
    name (`-2`, ...). Unfinished work of another call is kept as `<path>.partial-2`. Both are reported on stderr;
    nothing finished is ever removed.

    Raises UserError for that, under torchrun with several processes, when `path` or `<path>.partial` is a folder that
    no stage made, when another process works on it, and when the disk fills (the unfinished folder keeps its `.partial`
    name). Whatever else `body` raises passes through, with the same guarantee.
    """
    key = fingerprint({"stage": stage, "config": config, "inputs": inputs or {}})
    identity = Identity(stage=stage, config=config, inputs=dict(inputs or {}), fingerprint=key)
    return finish(Path(path), identity=identity, body=body, replace=replace)


def finish(path: Path, *, identity: Identity, body: Body, replace: bool) -> Run:
    """The machinery of `run_stage` and `@stage`, which say in `identity` what the run is known by."""
    _one_process()
    done = _standing(path, identity, replace=replace)
    if done is not None:
        return done
    partial = path.with_name(path.name + ".partial")
    _clear(partial, identity)
    try:
        with alone_in(partial):
            recorded = (partial / RUN_FILE).is_file() and open_run(partial).fingerprint == identity.fingerprint
            if not recorded:  # else it was killed between its last line and its name
                write_mark(partial, identity)
                _work(partial, identity, body)
            write_mark(partial, identity, finished=True)
            _standing(path, identity, replace=replace)  # what came meanwhile is refused as if it had been there
            aside = publish(partial, path)
    except Exception as error:
        if disk_is_full(error):
            raise UserError(
                f"no space left on the disk while writing {partial}; free some space and run the same command again"
            ) from error
        raise
    if aside is not None:
        print(f"align: {path} held an earlier run; it is kept as {aside} until you delete it", file=sys.stderr)
    return open_run(path)


def _one_process() -> None:
    """UserError under torchrun or accelerate with several processes: all of them would write into the same folder."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1" and size.isdigit():
        raise UserError(
            f"this was started as {size} processes (WORLD_SIZE), but a stage works in one; run the command without "
            "torchrun or accelerate launch, on one GPU"
        )


def _work(partial: Path, identity: Identity, body: Body) -> None:
    ledger = Ledger()
    with ledger.clock():
        metrics = body(partial, ledger)
    content = {
        "stage": identity.stage,
        "config": identity.config,
        "inputs": identity.inputs,
        "fingerprint": identity.fingerprint,
        "metrics": metrics,
        "ledger": ledger,
        "environment": environment(),
    }
    write_json(partial / RUN_FILE, content)


def _standing(path: Path, identity: Identity, *, replace: bool) -> Run | None:
    """The finished run of this identity; None where the folder is free; UserError where something else stands there."""
    if path.name in ("", ".."):
        raise UserError(f"{path} cannot be a run directory; give --out a folder of its own")
    if not os.path.lexists(path) or (path.is_dir() and not path.is_symlink() and not any(path.iterdir())):
        return None
    if not (path / RUN_FILE).is_file():
        raise UserError(f"{path} exists and is not a run; give another --out, or move it away")
    run = open_run(path)
    if run.fingerprint == identity.fingerprint:
        return run
    if not replace or run.stage != identity.stage:
        earlier = Identity(stage=run.stage, config=run.config, inputs=run.inputs, fingerprint=run.fingerprint)
        raise UserError(
            f"{path} holds a finished run that differs from this call ({differences(earlier, identity)}); "
            "give another --out, or delete that folder first"
        )
    if read_mark(path) is None:
        raise UserError(
            f"{path} was written by an earlier version of this program, which other settings cannot replace; give "
            "another --out, or move it away"
        )
    return None


def _clear(partial: Path, identity: Identity) -> None:
    """Leave `partial` free, or with the unfinished work of this very call; UserError for what no stage made."""
    if not os.path.lexists(partial):
        return
    mark = read_mark(partial)
    if not partial.is_dir() or (mark is None and not is_empty(partial)):
        raise UserError(
            f"{partial} is in the way and no stage of this version made it (it has no {MARK}); move it away, or give "
            "another --out"
        )
    if mark is None or mark.fingerprint == identity.fingerprint or is_empty(partial):
        return
    with alone_in(partial):
        aside = beside(partial.with_name(partial.name.removesuffix(".partial")), "partial")
        os.rename(partial, aside)
    print(
        f"align: {partial} held the unfinished work of another call ({differences(mark, identity)}); it is kept as "
        f"{aside}",
        file=sys.stderr,
    )
