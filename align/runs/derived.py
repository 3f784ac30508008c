"""Models and summaries derived from runs: known by their own content, and never written over a stranger's file."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from align.errors import UserError
from align.runs.folders import Identity, beside, publish, write_mark
from align.runs.values import fingerprint, jsonable, write_json


def derive(out: Path, *, record: Mapping[str, object], file: str, make: Callable[[Path], None]) -> str:
    """The folder `out` of a model that `make(folder)` derives from others, known by its `record`, kept in `file`.

    Made aside and then published, unless the same one stands there; one with another record is kept as `X.replaced`,
    and a line on stderr reports it. UserError, before anything is made, when `out` holds files and not `file`: then
    something else stands there.
    """
    if read_record(out / file) == jsonable(record):
        return str(out)
    check_derived(out, file=file)
    temporary = beside(out, f"partial-{os.getpid()}")
    try:
        make(temporary)
        put_in_place(temporary, out, record=record, file=file)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return str(out)


def put_in_place(temporary: Path, out: Path, *, record: Mapping[str, object], file: str) -> None:
    """Publish a finished derived model with its `record`, unless another process made the same one meanwhile."""
    check_derived(out, file=file)
    write_json(temporary / file, record)
    write_mark(
        temporary, Identity(stage=file, config=record, inputs={}, fingerprint=fingerprint(record)), finished=True
    )
    if read_record(out / file) == jsonable(record):
        return
    try:
        aside = publish(temporary, out)
    except OSError:
        if read_record(out / file) != jsonable(record):
            raise
        return
    if aside is not None:
        print(f"align: {out} held another model; it is kept as {aside} until you delete it", file=sys.stderr)


def check_derived(out: Path, *, file: str) -> None:
    """UserError when a folder for a derived model holds anything without the `file` that such a model has."""
    if os.path.lexists(out) and not (out / file).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is in the way: it has no {file}, so no call like this made it; move it away")


def keep_strangers(file: Path, *pages: Path, like: Mapping[str, object]) -> None:
    """Set aside a JSON file, and the pages of its name, that no call wrote which writes a file `like` this one.

    Such a call's file is an object with a provenance, and with the kind and the title of `like`. Each is kept as
    `NAME.replaced`, and a line on stderr reports it.
    """
    content = read_record(file)
    alike = isinstance(content, dict) and all(content.get(name) == like.get(name) for name in ("kind", "title"))
    if isinstance(content, dict) and "provenance" in content and alike:
        return
    for one in (file, *pages):
        if os.path.lexists(one):
            aside = beside(one, "replaced")
            os.rename(one, aside)
            print(f"align: {one} was written by something else; it is kept as {aside}", file=sys.stderr)


def read_record(file: Path) -> object:
    """The JSON of a file that a derived model keeps; None where it is missing or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
