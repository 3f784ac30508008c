"""Append-only files of lines: a batch is on the disk when it returns; a line that a kill cut short is cut off."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from align.errors import UserError

BLOCK = 65536


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append lines, each with its newline, and flush them to disk; UserError when the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{path}: cannot write cells ({error.strerror}); free some space and run it again") from error


def cut_unfinished_line(path: Path, *, beginning: bytes = b"{") -> None:
    """Cut off a last line without its newline, which was never finished; nothing where the file is not there.

    UserError, and the file stays as it is, when that line does not begin as ours do: a stranger's file.
    """
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.seek(end)
            start_of_line = file.read(len(beginning))
            if start_of_line != beginning[: len(start_of_line)]:
                raise UserError(f"{path}: its last line is none of this program's; move the file away")
            file.truncate(end)
