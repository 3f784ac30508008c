"""Values as JSON: what a run records, its fingerprint, and files that a reader sees whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.errors import UserError


def jsonable(value: object) -> Any:
    """`value` as plain JSON types: dataclasses to dicts, tuples to lists, paths to text; TypeError otherwise."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return jsonable(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written to a run's JSON")


# Settings that have another name since results were published, today's name first. Fingerprints are of the former name,
# so that the keys of published rows and of runs on disk stay what they were; adapter files may hold the former one too.
FORMER_NAMES = {"train_all": "rest"}


def later(default: Any) -> Any:
    """A field of a config that came after runs were published: at its default it is in no fingerprint, which is then
    what it was before there was the field.
    """
    return dataclasses.field(default=default, metadata={"later": True})


def name_today(name: str) -> str:
    """What the setting that was called `name` is called today."""
    return next((today for today, former in FORMER_NAMES.items() if former == name), name)


def _known_by(value: object) -> Any:
    """`value` as JSON under FORMER_NAMES, without the fields of `later` that are at their default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = (f for f in dataclasses.fields(value) if not _is_later_default(f, getattr(value, f.name)))
        value = {f.name: getattr(value, f.name) for f in kept}
    if isinstance(value, Mapping):
        return {FORMER_NAMES.get(str(name), str(name)): _known_by(part) for name, part in value.items()}
    return [_known_by(part) for part in value] if isinstance(value, (list, tuple)) else jsonable(value)


def _is_later_default(field: dataclasses.Field[Any], part: object) -> bool:
    return bool(field.metadata.get("later")) and part == field.default and type(part) is type(field.default)


def fingerprint(value: object) -> str:
    """First 16 hex digits of the SHA-256 of `value` as JSON: with FORMER_NAMES, without `later` fields at default."""
    text = json.dumps(_known_by(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, value: object) -> None:
    """Write JSON to a temporary file of this call's own, then rename it: no reader sees half, no writer another's."""
    write_text(path, json.dumps(jsonable(value), indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """The same for any text."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: str | Path) -> object:
    """The JSON of a file; UserError naming the file, and the line of the damage, when it is missing or none."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; run the command that writes it") from error
    except (ValueError, RecursionError) as error:  # bad syntax, another encoding, endless digits or brackets
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())[:200]}); write it again") from error
