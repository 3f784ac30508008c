"""What the recipes share: options by section, fingerprints of inputs, claims, the closing line."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from align.errors import UserError
from align.runs import RUN_FILE, Run, open_run, split_head
from recipes.config import build

T = TypeVar("T")


def section(cls: type[T], values: Mapping[str, object], *, where: str, name: str, **flags: object) -> T:
    """One section of a config as its library dataclass; flags that were given (not None) win over its keys."""
    given = {key: value for key, value in flags.items() if value is not None}
    known = set(inspect.signature(cls).parameters)
    for key in given:
        if key not in known:
            raise UserError(
                f"{where}: --{key.replace('_', '-')} does not apply here; section {name} has no key {key!r}"
            )
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: {name} is {values!r}; give a section of keys")
    return build(cls, {**values, **given}, where=f"{where}: {name}")


def named(entries: Sequence[str], *, what: str) -> dict[str, str]:
    """{"helpful": "runs/rm"} from ["helpful=runs/rm"]; without a name the value is the name. UserError on a repeat."""
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not name or (equals and not value):
            raise UserError(f"{what} {entry!r} is not NAME=PATH; give both sides")
        if name in found:
            raise UserError(f"{what} {name!r} is given twice; give each its own name")
        found[name] = value if equals else name
    return found


def content_key(source: str | Path) -> str:
    """What a run's fingerprint says about an input: a run's own fingerprint, the hash of the bytes, or the hub id."""
    place, label = split_head(str(source))
    if label is not None:
        return f"{content_key(place)}@{label}"
    path = Path(source).expanduser()
    if not path.exists() and ":" in path.name:  # a data set directory with :split
        stem, _, split = str(path).rpartition(":")
        return f"{content_key(stem)}:{split}" if Path(stem).exists() else str(source)
    if (path / RUN_FILE).is_file():
        return open_run(path).fingerprint
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    if not files:
        return str(source)
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0")
        with open(file, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]


def joined_claims(claims: Mapping[str, str]) -> str:
    """What a row optimises, from what each of its points says (weights label -> words): once where they agree."""
    points: dict[str, list[str]] = {}
    for label, text in claims.items():
        points.setdefault(text.replace(f"w = {label}", "each w"), []).append(label)
    if len(points) < 2:
        return "".join(points)
    parts = [f"w = {' and '.join(labels)}: {text.replace('each w', 'that w')}" for text, labels in points.items()]
    return "; ".join(parts)


def closing_line(run: Run) -> str:
    """One line for the terminal: where the run is, its plain-number metrics and what it cost."""
    numbers = [f"{key} {value:.4g}" for key, value in run.metrics.items() if isinstance(value, (int, float))]
    cost = f"{run.ledger['seconds']:.1f} s"
    return f"{run.path}: {', '.join([*numbers, cost])}"
