"""Models and summaries derived from runs: known by their own content, and never written over a stranger's file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from align.errors import UserError
from align.runs.folders import Identity, beside, publish, write_mark
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


def keep_strangers(file: Path, *pages: Path, key: str = "provenance") -> None:
    """Set aside a JSON file, and the pages of its name, that no call like this wrote (it is no object with `key`).

    Each is kept as `NAME.replaced`, and a line on stderr reports it.
    """
    content = read_record(file)
    if isinstance(content, dict) and key in content:
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
