"""What the recipes share: options by section, fingerprints of inputs, objectives by name, claims, the closing line."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from align.errors import UserError
from align.runs import RUN_FILE, Run, open_run, split_head
from recipes.config import build

if TYPE_CHECKING:
    from align.objectives.base import Objective

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


def load_objectives(entries: Sequence[str | Mapping[str, object]]) -> dict[str, Objective]:
    """Objectives by name, in the order given.

    An entry is `name=reward model run` (`name=run@LABEL`: one of its outputs), `name=kind` of a rule that needs no
    options (`long=length` scores the number of words, so that longer is better), or a mapping `{name, kind, ...}` from
    a YAML file with the options of `align.objectives.build_objective` (`{name: brevity, kind: length,
    longer_is_better: false}`).
    """
    from align.objectives import OBJECTIVES, RewardModelObjective, build_objective, check_names

    if not entries:
        raise UserError("no objective is given; give --objectives helpful=runs/rm-helpful harmless=runs/rm-harmless")
    objectives: list[Objective] = [build_objective(entry) for entry in entries if not isinstance(entry, str)]
    for name, source in named([entry for entry in entries if isinstance(entry, str)], what="objective").items():
        if source in OBJECTIVES and not Path(source).exists():
            objectives.append(build_objective({"kind": source, "name": name}))
        else:
            _check_reward_model(name, split_head(source)[0])
            objectives.append(RewardModelObjective(source, name=name))
    check_names(objectives)
    return {objective.__name__: objective for objective in objectives}


def _check_reward_model(name: str, place: str) -> None:
    """UserError for a place that is no folder and cannot be a hub id: now, not after a minute or hours."""
    from align.objectives import OBJECTIVES
    from align.runs import model_dir

    if not Path(place).exists() and "/" not in place:
        raise UserError(
            f"objective {name}={place}: {place} is no folder, no kind of rule ({', '.join(OBJECTIVES)}) and no hub id "
            "(OWNER/NAME); rules with options stand in a YAML file"
        )
    model_dir(place)


def objective_keys(entries: Sequence[str | Mapping[str, object]]) -> dict[str, str]:
    """What a fingerprint says about each entry of `load_objectives`."""
    from align.runs import fingerprint

    texts = named([entry for entry in entries if isinstance(entry, str)], what="objective")
    keys = {f"objective {name}": content_key(source) for name, source in texts.items()}
    for i, entry in enumerate(entries):
        if not isinstance(entry, str):
            places = {k: content_key(v) for k, v in entry.items() if isinstance(v, str) and Path(v).exists()}
            keys[f"objective {entry.get('name', i)}"] = fingerprint({"entry": entry, "contents": places})
    return keys


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
