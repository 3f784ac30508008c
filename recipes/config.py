"""Recipe options: a dataclass filled from its defaults, then a YAML file, then flags; an unknown key is an error.

`parse` makes one flag per field (`max_steps` -> `--max-steps`), reads `--config FILE.yaml`, and takes
`--set section.key=value` for the dictionary fields, whose contents `build` checks against the dataclass of the library
function that they configure.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from align.errors import UserError

T = TypeVar("T")
_SHIELD = "\0"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def option(default: Any = dataclasses.MISSING, *, help: str) -> Any:
    """A dataclass field with its line of help; without a default it must be given by the user."""
    metadata = {"help": help}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _nearest(key: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(valid)}"


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as type `hint`; UserError naming `where` when it is something else."""
    origin, arms = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(value, arms, where)
    if origin is Literal:
        if value not in arms:
            raise UserError(f"{where} is {value!r}; choose from {', '.join(map(str, arms))}")
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where=where)
    if origin in (tuple, list) or getattr(origin, "__name__", "") == "Sequence":
        if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
            raise UserError(f"{where} is {value!r}; give a list")
        kinds = arms[:1] * len(value) if origin is not tuple or arms[1:] == (...,) else arms
        if len(kinds) != len(value):
            raise UserError(f"{where} has {len(value)} entries; give {len(kinds)}")
        items = [_coerce(v, kind, f"{where}[{i}]") for i, (v, kind) in enumerate(zip(value, kinds, strict=True))]
        return items if origin is list else tuple(items)
    if hint in (dict, Mapping) or origin in (dict, Mapping) or getattr(origin, "__name__", "") == "Mapping":
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {value!r}; give a section of keys")
        return dict(value)
    return _coerce_scalar(value, hint, where)


def _coerce_union(value: Any, arms: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in arms:
        return None
    failure: UserError | None = None
    for arm in (a for a in arms if a is not type(None)):
        try:
            return _coerce(value, arm, where)
        except UserError as error:
            failure = failure or error
    raise failure or UserError(f"{where} is {value!r}, which fits none of the types it may have")


def _coerce_scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is float and not isinstance(value, bool):
        try:  # YAML reads 1e-4 as text
            return float(value)
        except (TypeError, ValueError):
            pass
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{where} is {value!r}; give a value of type {getattr(hint, '__name__', hint)}")
    return value


def build(cls: type[T], values: Any, *, where: str) -> T:
    """The dataclass `cls` from a mapping, types checked, nested ones built; UserError names `where` and the key."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is {values!r}; give a section of keys")
    hints = typing.get_type_hints(cls)
    fields = [f for f in dataclasses.fields(typing.cast(Any, cls)) if f.init]
    names = [f.name for f in fields]
    for key in values:
        if key not in names:
            raise UserError(f"{where}: unknown key {key!r}; {_nearest(str(key), names)}")
    for f in fields:
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(
                f"{where}: {f.name} is missing; give --{f.name.replace('_', '-')} or set it in the YAML file"
            )
    return cls(**{key: _coerce(value, hints[key], f"{where}: {key}") for key, value in values.items()})


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; UserError naming the file (and line) when it is missing or is not a mapping."""
    try:
        with open(path, encoding="utf-8") as handle:
            values = yaml.safe_load(handle)
    except OSError as error:
        raise UserError(f"config file {path} cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{place} is not valid YAML ({getattr(error, 'problem', error)}); mend it") from error
    if not isinstance(values or {}, dict):
        raise UserError(f"{path} holds {type(values).__name__}, not keys and values; write one `key: value` per line")
    return values or {}


def _takes(hint: Any, kind: Any) -> bool:
    return hint is kind or (get_origin(hint) in (Union, types.UnionType) and kind in get_args(hint))


def _is_text(hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return all(isinstance(v, str) for v in get_args(hint))
    return _takes(hint, str) or _takes(hint, Path)


def _element(hint: Any) -> Any | None:
    """The element type of a list-like hint, else None."""
    for arm in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
        if get_origin(arm) in (tuple, list):
            return get_args(arm)[0]
    return None


def _from_text(text: str, hint: Any, flag: str) -> Any:
    return text if _is_text(hint) else _yaml_value(text, flag)


def _yaml_value(text: str, flag: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{flag}: {text!r} is not valid YAML ({getattr(error, 'problem', error)}); mend it") from error


def _add_flags(parser: argparse.ArgumentParser, cls: Any, positional: Sequence[str]) -> None:
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        hint, text = hints[f.name], f.metadata.get("help", "")
        if f.default not in (dataclasses.MISSING, None, ()):
            text += f" (default: {f.default})"
        text = text.replace("%", "%%")
        if hint in (dict, dict[str, Any]) or get_origin(hint) is dict:
            parser.epilog = (
                parser.epilog or "sections of the YAML file, or --set SECTION.KEY=VALUE:\n"
            ) + f"  {f.name}: {text}\n"
        elif f.name in positional:
            arity = "?" if _element(hint) is None else "*"
            parser.add_argument(f.name, nargs=arity, default=argparse.SUPPRESS, help=text)
        elif hint is bool:
            name = "--" + f.name.replace("_", "-")
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            many = {"nargs": "+", "action": "extend"} if _element(hint) is not None else {}
            name, shown = "--" + f.name.replace("_", "-"), f.name.upper()
            parser.add_argument(name, default=argparse.SUPPRESS, metavar=shown, help=text, **typing.cast(Any, many))
    parser.add_argument("--config", metavar="FILE", help="YAML file with these options; flags win over it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="one dotted key of the YAML file"
    )


def _shield(argv: Sequence[str]) -> list[str]:
    """Mark words like `-0.5,1.5`, which argparse would take for flags."""
    return [_SHIELD + word if re.match(r"-\.?\d", word) else word for word in argv]


def _unshield(raw: Any) -> Any:
    if isinstance(raw, list):
        return [_unshield(word) for word in raw]
    return raw.removeprefix(_SHIELD) if isinstance(raw, str) else raw


def _put(values: dict[str, Any], assignment: str, program: str) -> None:
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise UserError(f"{program}: --set {assignment} has no value; write --set section.key=value")
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(values.get(section) or {}, Mapping):
            raise UserError(f"{program}: --set {assignment}: {section} is no section of keys, but {values[section]!r}")
        values[section] = dict(values.get(section) or {})
        values = values[section]
    values[last] = _yaml_value(text, f"{program}: --set {key}")


def parse(
    cls: type[T],
    argv: Sequence[str] | None,
    *,
    program: str,
    about: str,
    positional: Sequence[str] = (),
    defaults: Path | None = None,
) -> tuple[T, str]:
    """The config and the words that name its source ("sft.yaml", or the program) in later error messages.

    `defaults` is a YAML file of the recipe's own that stands below --config, which stands below flags.

    UserError on an unknown flag or key (with the nearest valid one), a wrong type or a missing required option.
    """
    parser = _Parser(
        program, description=about, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_flags(parser, cls, positional)
    known, rest = parser.parse_known_args(_shield(sys.argv[1:] if argv is None else argv))
    flags = {name: _unshield(raw) for name, raw in vars(known).items()}
    if rest:
        valid = [text for action in parser._actions for text in action.option_strings]
        raise UserError(f"{program}: unknown option {rest[0]}; {_nearest(rest[0].split('=')[0], valid)}")
    file, assignments = flags.pop("config"), flags.pop("set")
    values = {**(read_yaml(defaults) if defaults else {}), **(read_yaml(file) if file else {})}
    source = str(file) if file else program
    build_names = [f.name for f in dataclasses.fields(typing.cast(Any, cls))]
    for key in values:
        if key not in build_names:
            raise UserError(f"{source}: unknown key {key!r}; {_nearest(str(key), build_names)}")
    for assignment in assignments:
        _put(values, assignment, program)
    hints = typing.get_type_hints(cls)
    for name, raw in flags.items():
        element = _element(hints[name])
        if element is not None:
            values[name] = [_from_text(item, element, name) for item in raw]
        else:
            values[name] = raw if isinstance(raw, bool) else _from_text(raw, hints[name], name)
    return build(cls, values, where=source), source
