"""Folders that a stage made, kept apart from a user's by a mark: only what carries it is ever replaced or removed.

The mark is a small file, `.align-run.json`: what the folder is for and, once it is finished, every file that the stage
left in it. A folder without the mark, or a file that the mark does not list, is a user's. A finished folder in the way
of another is never removed, marked or not: it is set aside under a free name.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from align.errors import UserError
from align.runs.values import jsonable, write_json

try:
    import fcntl
except ImportError:  # Windows: two commands with the same --out are not kept apart there
    fcntl = None  # type: ignore[assignment]

MARK = ".align-run.json"
_OURS = re.compile(re.escape(MARK) + r"(\.[0-9]+-[0-9a-f]{8}\.tmp)?")  # the mark, or one half written (values.py)


@dataclass(frozen=True)
class Identity:
    """What a run is known by (`fingerprint`), and the configuration and inputs that it records."""

    stage: str
    config: object
    inputs: Mapping[str, str]
    fingerprint: str


def write_mark(folder: Path, identity: Identity, *, finished: bool = False) -> None:
    """Mark a folder as the work of a stage; a finished one lists its files, each as bytes and time of change in ns."""
    write_json(folder / MARK, {**dataclasses.asdict(identity), "files": _files(folder) if finished else None})


def read_mark(folder: Path) -> Identity | None:
    """What a marked folder is for; None for a folder that carries no mark of ours."""
    content = _mark(folder)
    stage, inputs, key = content.get("stage"), content.get("inputs"), content.get("fingerprint")
    if not (isinstance(stage, str) and isinstance(inputs, dict) and isinstance(key, str)):
        return None
    return Identity(stage=stage, config=content.get("config"), inputs=inputs, fingerprint=key)


def _mark(folder: Path) -> dict[str, object]:
    try:
        content = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _files(folder: Path) -> dict[str, list[int]]:
    """Every file and link below the folder but the mark: relative path to bytes and time of change; follows no link."""
    stamps = {}
    for root, folders, files in os.walk(folder):
        for name in [*files, *(f for f in folders if os.path.islink(os.path.join(root, f)))]:
            file = Path(root, name)
            state = file.lstat()
            stamps[file.relative_to(folder).as_posix()] = [state.st_size, state.st_mtime_ns]
    return {name: stamp for name, stamp in stamps.items() if not _OURS.fullmatch(name)}


def holds_only_its_own(folder: Path) -> bool:
    """Whether a finished folder carries our mark and no file but those that its stage left, as it left them."""
    known = _mark(folder).get("files")
    if folder.is_symlink() or not isinstance(known, dict):
        return False
    return all(known.get(name) == stamp for name, stamp in _files(folder).items())


def is_empty(folder: Path) -> bool:
    """Whether nothing but a mark (or one that a kill left unfinished) is in a folder."""
    return all(_OURS.fullmatch(entry.name) for entry in folder.iterdir())


def beside(path: Path, kind: str) -> Path:
    """The first free name among `X.kind`, `X.kind-2`, `X.kind-3`, ..."""
    number, free = 1, path.with_name(f"{path.name}.{kind}")
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}.{kind}-{number}")
    return free


def publish(partial: Path, path: Path) -> Path | None:
    """Give a finished folder its name. What stood there is set aside as the first free `X.replaced`, and stays.

    Returns where it was set aside; None where nothing stood there.
    """
    aside = None
    if path.is_symlink() or (path.exists() and any(path.iterdir())):
        aside = beside(path, "replaced")
        os.rename(path, aside)
    elif path.exists():
        path.rmdir()  # an empty folder
    os.rename(partial, path)
    return aside


@functools.cache
def _say_once_what_is_missing() -> None:
    print(
        "align: made for POSIX systems; here (no fcntl) run directories are not locked, so do not start two commands "
        "on one, and peak memory is not measured",
        file=sys.stderr,
    )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes (a killed one lets go); UserError when one keeps it for 10 seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        _say_once_what_is_missing()
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
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
            raise UserError(f"another process is working in {folder}; wait for it, or end it and run this again")
        if not (folder.is_dir() and os.path.samestat(os.fstat(handle), os.stat(folder))):
            raise UserError(f"another process has just finished {folder}; run the same command again")
        yield
    finally:
        os.close(handle)


def differences(earlier: Identity, identity: Identity, *, most: int = 3) -> str:
    """What tells two runs apart, in words: "seed 1, not 2" has the earlier run's value first."""
    if earlier.stage != identity.stage:
        return f"it is a run of the stage {earlier.stage}, not {identity.stage}"
    old, new = _flat(_record(earlier)), _flat(_record(identity))
    words = []
    for name in sorted(old.keys() | new.keys()):
        before, now = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if before != now:
            another = name.startswith("input ") and _ABSENT not in (before, now)
            words.append(f"another {name}" if another else f"{name[:60]} {_short(before)}, not {_short(now)}")
    more = f"; and {len(words) - most} more" if len(words) > most else ""
    return "; ".join(words[:most]) + more if words else "another version of this program wrote it"


def _record(identity: Identity) -> dict[str, object]:
    return {"": identity.config, **{f"input {name}": key for name, key in identity.inputs.items()}}


_ABSENT = "absent"


def _short(value: object) -> str:
    text = value if value is _ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    """Nested mappings with dotted names; everything else as one value."""
    value = jsonable(value)
    if not isinstance(value, dict) or not value:
        return {} if value == {} and not prefix else {prefix or "config": value}
    flat: dict[str, object] = {}
    for name, content in value.items():
        flat |= _flat(content, f"{prefix}.{name}" if prefix and name else prefix or name)
    return flat
