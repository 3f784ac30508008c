"""A stage's signature read as a key: which parameters are runs, what of a value is recorded, what of it is the key."""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.runs.reading import Run, open_run
from align.runs.values import jsonable

Metrics = Mapping[str, object]


@dataclass(frozen=True)
class Parameter:
    """One keyword of a stage: what its annotation makes of it (`runs`: None for configuration), and its default."""

    name: str
    annotation: object
    runs: str | None
    default: object

    def has_default(self, value: object) -> bool:
        return self.default is not inspect.Parameter.empty and jsonable(value) == jsonable(self.default)


def parameters_of(function: Callable[..., Metrics]) -> tuple[Parameter, ...]:
    hints = typing.get_type_hints(function, localns=_Names(function))
    _, *rest = inspect.signature(function).parameters.values()
    parameters = []
    for one in rest:
        where = f"stage {function.__name__}, parameter {one.name}"
        if one.kind is not inspect.Parameter.KEYWORD_ONLY:
            raise TypeError(f"{where}: put it after a *, so that its name is in the key")
        if one.name not in hints:
            raise TypeError(f"{where}: annotate it, for the annotation says how it is known")
        hint = _without_none(hints[one.name])
        if hint is Path:
            raise TypeError(f"{where}: a path is no key; take a Run, or a value with a fingerprint of its content")
        parameters.append(Parameter(one.name, hint, _runs(hint, where), one.default))
    return tuple(parameters)


class _Names(dict[str, object]):
    """Names of annotations that only a type checker imports: a class that stands for nothing."""

    def __init__(self, function: Callable[..., Metrics]) -> None:
        super().__init__()
        self.known = {**vars(builtins), **getattr(inspect.unwrap(function), "__globals__", {})}

    def __missing__(self, name: str) -> object:
        if name in self.known:
            raise KeyError(name)
        return Run if name == "Run" else type(name, (), {"__class_getitem__": classmethod(lambda cls, item: cls)})


def _without_none(hint: object) -> object:
    """`X` of `X | None`; any other annotation as it is."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        return parts[0] if len(parts) == 1 else hint
    return hint


def _runs(hint: object, where: str) -> str | None:
    """The shape of a parameter of runs ("one", "many", "named"), None for configuration; TypeError for any other."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Run:
        return "one"
    if Run not in arguments:
        if _mentions_run(hint):
            raise TypeError(f"{where}: runs are given as Run, Run | None, Sequence[Run] or Mapping[str, Run]")
        return None
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "named"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return "many"
    raise TypeError(f"{where}: runs are given as Run, Run | None, Sequence[Run] or Mapping[str, Run]")


def _mentions_run(hint: object) -> bool:
    return hint is Run or any(_mentions_run(part) for part in typing.get_args(hint))


def _is_place(value: object) -> bool:
    return isinstance(value, (str, Path, Run))


def _holds_run(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_run(part) for part in value.values())
    if isinstance(value, (list, tuple)):
        return any(_holds_run(part) for part in value)
    return isinstance(value, Run)


def check_argument(parameter: Parameter, value: object) -> None:
    """TypeError for a run given as configuration, or a value in place of a run."""
    if parameter.runs is None:
        if _holds_run(value):
            raise TypeError(f"{parameter.name} is given a run; annotate it Run, so that it is an input")
        return
    fits = {
        "one": _is_place(value) or value is None,
        "many": isinstance(value, (list, tuple)) and all(_is_place(part) for part in value),
        "named": isinstance(value, Mapping) and all(_is_place(part) for part in value.values()),
    }
    if not (fits[parameter.runs] or value is None):
        raise TypeError(f"{parameter.name} takes {parameter.runs} run or path, not {value!r}"[:300])


def _folder(value: object) -> Path:
    if isinstance(value, Run):
        return value.path
    if isinstance(value, (str, Path)):
        return Path(value)
    raise TypeError(f"{value!r} is neither a run nor a path"[:300])


def folders_of(value: object) -> dict[str, Path]:
    """The folders of the runs that one argument gives, by what follows the parameter's name in the key."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return {f" {name}": _folder(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return {f" {number}": _folder(part) for number, part in enumerate(value)}
    return {"": _folder(value)}


def opened(value: object) -> Run | None | dict[str, Run] | tuple[Run, ...]:
    """An argument with its runs read from disk as they are now."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {str(name): open_run(_folder(part)) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(open_run(_folder(part)) for part in value)
    return open_run(_folder(value))


def recorded(value: object, *, otherwise: str) -> object:
    try:
        return jsonable(value)
    except TypeError:
        return otherwise


def keyed(value: object, annotation: object) -> object:
    """A value in a key: of a dataclass the fields that differ from their default, with its name where it may vary."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return jsonable(value)
    differing: dict[str, object] = {} if type(value) is annotation else {"kind": type(value).__name__}
    for field in dataclasses.fields(value):
        content = jsonable(getattr(value, field.name))
        if field.default is not dataclasses.MISSING and content == jsonable(field.default):
            continue
        if field.default_factory is not dataclasses.MISSING and content == jsonable(field.default_factory()):
            continue
        differing[field.name] = content
    return differing
