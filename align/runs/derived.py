"""Models derived from others (soups, merged adapters): made once, known by a record, never in a stranger's place."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from align.errors import UserError
from align.runs.folders import Identity, publish, write_mark
from align.runs.values import fingerprint, jsonable, write_json


def put_in_place(temporary: Path, out: Path, *, record: Mapping[str, object], file: str) -> None:
    """Publish a model that was derived from others, with its `record` in `file`, unless the same one stands there.

    UserError, before anything moves, when `out` holds files and not `file`: then something else stands there.
    """
    check_derived(out, file=file)
    write_json(temporary / file, record)
    write_mark(
        temporary, Identity(stage=file, config=record, inputs={}, fingerprint=fingerprint(record)), finished=True
    )
    if read_record(out / file) == jsonable(record):  # another process made the same meanwhile
        return
    try:
        publish(temporary, out)
    except OSError:
        if not (out / file).is_file():
            raise


def check_derived(out: Path, *, file: str) -> None:
    """UserError when a folder for a derived model holds anything without the `file` that such a model has."""
    if os.path.lexists(out) and not (out / file).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is in the way: it has no {file}, so no call like this made it; move it away")


def read_record(file: Path) -> object:
    """The JSON of a file that a derived model keeps; None where it is missing or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
