"""A Python function of a file as one objective or several: `path/to/file.py:function`, in the shape of TRL's rewards.

    def brevity(prompts, completions, **kwargs):            # one number or None for each completion
        return [-len(text.split()) for text in completions]

    def style(completions, answer):                         # `answer` is a column of the rows
        return [{"right": text.strip() == a, "short": -len(text)} for text, a in zip(completions, answer)]

    style.components = ("right", "short")                   # two objectives: NAME.right and NAME.short

A component called "total" is the objective NAME itself; `(total, {component: score})` is read as such a mapping.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.objectives.base import Objective
from align.objectives.by_content import Scores, objectives_of

TEXTS = ("prompts", "completions")
OF_TRL = ("trainer_state", "log_extra", "log_metric", "environments")  # of the trainer, not of a completion
Function = Callable[..., Sequence[object]]


class FunctionScorer:
    """A function of a file, loaded again where it is unpickled; it is asked once for each content.

    Its parameters beside prompts and completions are columns of the rows (or `completion_ids`). UserError for a file or
    function that is not there, and where the function fails or gives something else than a score for each completion.
    """

    learned, batch = False, 1_000_000

    def __init__(self, path: str | Path, function: str) -> None:
        self.path, self.function = str(path), function
        loaded = load_function(path, function)
        self._loaded: Function | None = loaded
        named = [p for p in inspect.signature(loaded).parameters.values() if p.kind is not p.VAR_KEYWORD]
        self.keywords = len(named) < len(inspect.signature(loaded).parameters)
        self.texts = tuple(p.name for p in named if p.name in TEXTS)
        odd = [p.name for p in named if p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY) or p.name in OF_TRL]
        if odd:
            raise UserError(f"{self.place} takes {odd[0]}, which an objective is not given; leave it out")
        others = [p for p in named if p.name not in TEXTS]
        self.columns = tuple(p.name for p in others if p.default is p.empty)
        self.optional = tuple(p.name for p in others if p.default is not p.empty)
        components = getattr(loaded, "components", None)
        if components is not None and (isinstance(components, str) or not all(isinstance(c, str) for c in components)):
            raise UserError(f"{self.place}.components is {components!r}; give a tuple of names")
        self.many = components is not None
        self.parts: tuple[str, ...] = tuple(components) if components else (function,)
        self.identity = hashlib.sha256(Path(path).read_bytes() + b"\0" + function.encode()).hexdigest()[:16]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_loaded": None}

    @property
    def place(self) -> str:
        return f"{self.path}:{self.function}"

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[Scores]:
        if self._loaded is None:
            self._loaded = load_function(self.path, self.function)
        texts = {"prompts": list(prompts), "completions": list(completions)}
        asked = texts if self.keywords else {name: texts[name] for name in self.texts}
        try:
            values = list(self._loaded(**asked, **columns))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.place} failed ({_what(error, self.path)}); fix the function") from error
        if len(values) != len(completions):
            raise UserError(f"{self.place} gave {len(values)} scores for {len(completions)} completions; give one each")
        return [self._scores(value) for value in values]

    def check(self, table: Mapping[str, Mapping[str, object]]) -> None:
        """Any value is the function's own business."""

    def _scores(self, value: object) -> Scores:
        if not self.many:
            return (self._number(value),)
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping):
            value = {"total": value[0], **value[1]}
        if value is None:
            return (None,) * len(self.parts)
        if not isinstance(value, Mapping) or not set(self.parts) <= set(value):
            raise UserError(
                f"{self.place} gave {str(value)[:80]} for a completion; give a mapping with {', '.join(self.parts)}"
            )
        return tuple(self._number(value[part]) for part in self.parts)

    def _number(self, value: object) -> float | None:
        if value is None:
            return None
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            hint = f"; for several scores set {self.function}.components" if isinstance(value, (Mapping, tuple)) else ""
            raise UserError(f"{self.place} gave {str(value)[:80]}, which is no number{hint}") from None
        if not math.isfinite(number):
            raise UserError(f"{self.place} gave {number}; give finite numbers, and None for 'does not apply'")
        return number


def load_function(path: str | Path, function: str) -> Function:
    """The function of a Python file, which is run once for it; UserError naming the fault."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file} is no file; write path/to/file.py:function")
    name = f"objective_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{file} is no Python file; write path/to/file.py:function")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{file} cannot be imported ({_what(error, str(file))}); fix the file") from error
    found = getattr(module, function, None)
    if not callable(found):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        near = difflib.get_close_matches(function, names, n=1) or names[:5]
        raise UserError(f"{file} has no function {function!r}; it has {', '.join(near) or 'none'}")
    return found


def _what(error: Exception, path: str) -> str:
    """The error in a few words, with its line in the user's file."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    file = os.path.abspath(path)  # as importlib names it
    lines = [entry.lineno for entry in traceback.extract_tb(error.__traceback__) if entry.filename == file]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def function(argument: str, *, name: str) -> list[Objective]:
    """The objectives of `path/to/file.py:function`."""
    path, colon, called = argument.rpartition(":")
    if not colon or not called.isidentifier():
        raise UserError("a function is written path/to/file.py:function; give both")
    return objectives_of(FunctionScorer(path, called), name=name)
