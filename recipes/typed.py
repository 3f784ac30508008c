"""From YAML to typed dataclasses: each value is checked against its field; a mistake names its place and the fix."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar, Union, get_args, get_origin

import yaml

from align.errors import UserError
from align.runs import name_today

T = TypeVar("T")
LARGEST = 2**63 - 1  # no count, seed or size is larger; beyond it libraries overflow
# beside YAMLError, what PyYAML raises on dates that no calendar has, 5,000 digits, deep nesting and misused tags
_ODD_VALUES = (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError)
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 80, 80


class Dataclass(Protocol):
    """Any dataclass, or one's class."""

    __dataclass_fields__: typing.ClassVar[dict[str, dataclasses.Field[object]]]


def shown(value: object) -> str:
    """`repr(value)`, cut: aliases of a YAML file can stand for millions of values, numbers for thousands of digits."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an int of more digits than Python writes
        return f"a {type(value).__name__} too long to show"


def nearest(key: str, valid: Sequence[str]) -> str:
    """The hint of an error about an unknown key: its name today, else the most similar valid one, else all of them."""
    if name_today(key) in valid:
        return f"it is called {name_today(key)} now"
    near = difflib.get_close_matches(key[:100], valid, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(valid)}"


def yaml_value(text: str, where: str) -> object:
    """The value that a YAML text stands for; UserError naming `where` (and the line) for all that the loader raises."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark and "\n" in text else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", "unreadable")
        raise UserError(f"{where}{line} is not valid YAML ({reason}); fix it") from error
    except _ODD_VALUES as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:100]
        raise UserError(f"{where} holds a value that cannot be read ({reason}); fix it") from error


def read_yaml(path: str | Path) -> dict[str, object]:
    """The mapping in a YAML file; UserError naming the file (and line) when it is missing or is not a mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"config file {path} cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}); save the file as UTF-8") from error
    values = yaml_value(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, not keys and values; write one `key: value` per line")
    return values


def imported(home: str) -> type[Dataclass]:
    """The class that `module:Class` names."""
    module, _, name = home.partition(":")
    return getattr(importlib.import_module(module), name)


def field_types(cls: type[Dataclass]) -> dict[str, object]:
    """Field -> its type; `dict` for the sections, whose classes are imported only when one is built."""
    homes = [f.metadata["section"] for f in dataclasses.fields(cls) if "section" in f.metadata]
    return typing.get_type_hints(cls, localns={home.partition(":")[2]: dict for home in homes})


def build(cls: type[T], values: object, *, where: str) -> T:
    """The dataclass `cls` from a mapping, types checked, nested ones built; UserError names `where` and the key."""
    return typing.cast(T, _built(typing.cast(type[Dataclass], cls), values, where))


def _built(cls: type[Dataclass], values: object, where: str) -> object:
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is {shown(values)}; give a section of keys")
    hints = field_types(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in values:
        if key not in fields:
            raise UserError(f"{where}: unknown key {shown(key)}; {nearest(str(key), list(fields))}")
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: {name} is missing; give --{name.replace('_', '-')} or set it in the YAML file")
    made = {}
    for key, value in values.items():
        section = fields[key].metadata.get("section")
        made[key] = coerced(value, imported(section) if section else hints[key], f"{where}: {key}")
    return cls(**made)


def coerced(value: object, hint: object, where: str) -> object:
    """`value` as type `hint`; UserError naming `where` when it is something else."""
    origin, arms = get_origin(hint), get_args(hint)
    if hint in (typing.Any, object):
        return value
    if origin in (Union, types.UnionType):
        return _one_of(value, arms, where)
    if origin is Literal:
        if value not in arms:
            raise UserError(f"{where} is {shown(value)}; choose from {', '.join(map(str, arms))}")
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _built(hint, value, where)
    if origin in (tuple, list) or getattr(origin, "__name__", "") == "Sequence":
        return _listed(value, hint, where)
    if hint in (dict, Mapping) or origin in (dict, Mapping) or getattr(origin, "__name__", "") == "Mapping":
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {shown(value)}; give a section of keys")
        return dict(value)
    return _scalar(value, hint, where)


def _one_of(value: object, arms: tuple[object, ...], where: str) -> object:
    if value is None and type(None) in arms:
        return None
    failure: UserError | None = None
    for arm in (a for a in arms if a is not type(None)):
        try:
            return coerced(value, arm, where)
        except UserError as error:
            failure = failure or error
    raise failure or UserError(f"{where} is {shown(value)}, which fits none of the types it may have")


def _listed(value: object, hint: object, where: str) -> object:
    origin, arms = get_origin(hint), get_args(hint)
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
        raise UserError(f"{where} is {shown(value)}; give a list")
    kinds = arms[:1] * len(value) if origin is not tuple or arms[1:] == (...,) else arms
    if len(kinds) != len(value):
        raise UserError(f"{where} has {len(value)} entries; give {len(kinds)}")
    items = [coerced(v, kind, f"{where}[{i}]") for i, (v, kind) in enumerate(zip(value, kinds, strict=True))]
    return items if origin is list else tuple(items)


def _scalar(value: object, hint: object, where: str) -> object:
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:  # YAML reads 1e-4 as text
            return float(value)
        except (ValueError, OverflowError):
            pass
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(hint, type) or not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{where} is {shown(value)}; give a value of type {getattr(hint, '__name__', hint)}")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise UserError(f"{where} is {shown(value)}; give a whole number below 2**63")
    return value
