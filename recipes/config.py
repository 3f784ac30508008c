"""Options of a command: a dataclass filled from its defaults, then a YAML file, then flags; an unknown key is an error.

`parse` makes one flag per field (`max_steps` -> `--max-steps`), reads `--config FILE.yaml`, and takes
`--set section.key=value` for the sections, which are dataclasses of the library.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from align.errors import UserError
from recipes.typed import Dataclass, build, coerced, field_types, imported, nearest, read_yaml, shown, yaml_value

__all__ = ["build", "coerced", "option", "parse", "read_yaml", "section_field", "with_flags"]

T = TypeVar("T")
_SHIELD = "\0"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def option(default: object = dataclasses.MISSING, *, help: str) -> Any:
    """A dataclass field with its line of help; without a default it must be given by the user."""
    metadata = {"help": help}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section_field(home: str, *, help: str) -> Any:
    """A field that is a dataclass of the library, `module:Class`; its module is imported when one is built, not before.

    The field's annotation is the class's bare name, which may stand under TYPE_CHECKING: `align X --help` stays quick.
    """
    return dataclasses.field(default_factory=lambda: imported(home)(), metadata={"help": help, "section": home})


def with_flags(section: T, **flags: object) -> T:
    """The section with the flags that were given (not None) over its keys."""
    given = {name: value for name, value in flags.items() if value is not None}
    return dataclasses.replace(typing.cast(Any, section), **given) if given else section


def _arms(hint: object) -> tuple[object, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_text(hint: object) -> bool:
    if get_origin(hint) is Literal:
        return all(isinstance(value, str) for value in get_args(hint))
    return str in _arms(hint) or Path in _arms(hint)


def _element(hint: object) -> object | None:
    """The element type of a list-like hint, else None."""
    return next((get_args(arm)[0] for arm in _arms(hint) if get_origin(arm) in (tuple, list)), None)


def _from_flag(raw: bool | str | list[str], hint: object, flag: str) -> object:
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, list):
        return [_from_text(word, _element(hint), flag) for word in raw]
    return _from_text(raw, hint, flag)


def _from_text(text: str, hint: object, flag: str) -> object:
    text = text.removeprefix(_SHIELD)
    if _is_text(hint):
        return text
    if not text.strip():
        raise UserError(f"--{flag.replace('_', '-')} is empty; give a value or leave it out")
    return yaml_value(text, flag)


def _add_flags(parser: argparse.ArgumentParser, cls: type[Dataclass], positional: Sequence[str]) -> None:
    hints, sections = field_types(cls), []
    for f in dataclasses.fields(cls):
        hint, text = hints[f.name], f.metadata.get("help", "")
        if f.default not in (dataclasses.MISSING, None, ()):
            text += f" (default: {f.default})"
        text, flag, many = text.replace("%", "%%"), "--" + f.name.replace("_", "-"), _element(hint) is not None
        if "section" in f.metadata or hint is dict or get_origin(hint) in (dict, Mapping):
            sections.append(f"  {f.name}: {text}\n")
        elif f.name in positional:
            parser.add_argument(f.name, nargs="*" if many else "?", default=argparse.SUPPRESS, help=text)
        elif hint is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        elif many:
            parser.add_argument(
                flag, nargs="+", action="extend", default=argparse.SUPPRESS, metavar=f.name.upper(), help=text
            )
        else:
            parser.add_argument(flag, default=argparse.SUPPRESS, metavar=f.name.upper(), help=text)
    if sections:
        parser.epilog = "sections of the YAML file, or --set SECTION.KEY=VALUE:\n" + "".join(sections)
    parser.add_argument("--config", metavar="FILE", help="YAML file with these options; flags win over it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="one dotted key of the YAML file"
    )


def _shield(argv: Sequence[str]) -> list[str]:
    """Mark words like `-0.5,1.5`, which argparse would take for flags."""
    return [_SHIELD + word if re.match(r"-\.?\d", word) else word for word in argv]


def _put(values: dict[str, object], assignment: str, program: str) -> None:
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise UserError(f"{program}: --set {shown(assignment)[1:-1]} has no value; write --set section.key=value")
    *sections, last = key.split(".")
    for name in sections:
        inside = values.get(name) or {}
        if not isinstance(inside, Mapping):
            raise UserError(f"{program}: --set {shown(key)}: {name} is no section of keys, but {shown(inside)}")
        copy: dict[str, object] = dict(inside)
        values[name], values = copy, copy
    values[last] = yaml_value(text, f"{program}: --set {key[:100]}")


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
    fields = typing.cast(type[Dataclass], cls)
    parser = _Parser(
        program, description=about, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_flags(parser, fields, positional)
    known, rest = parser.parse_known_args(_shield(sys.argv[1:] if argv is None else argv))
    flags = vars(known)
    if rest:
        valid = [text for action in parser._actions for text in action.option_strings]
        raise UserError(f"{program}: unknown option {shown(rest[0])[1:-1]}; {nearest(rest[0].split('=')[0], valid)}")
    file, assignments = flags.pop("config"), flags.pop("set")
    values = {**(read_yaml(defaults) if defaults else {}), **(read_yaml(file) if file else {})}
    source, hints = str(file) if file else program, field_types(fields)
    for key in values:
        if key not in hints:
            raise UserError(f"{source}: unknown key {shown(key)}; {nearest(str(key), list(hints))}")
    given = {name: _from_flag(raw, hints[name], name) for name, raw in flags.items()}
    values |= given
    for assignment in assignments:
        _put(values, assignment, program)
    return build(cls, values | given, where=source), source
