"""What an objective is: a named callable in the shape of TRL's reward functions, where higher is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from align.errors import UserError


@runtime_checkable
class Objective(Protocol):
    """`(prompts, completions, **columns) -> scores`, one per completion; None says "does not apply" (never 0).

    `__name__` is the objective's name in logs, tables and files, distinct within an experiment. The text of a
    completion holds no end token. Objectives can be pickled, and ignore columns that they do not know.
    """

    __name__: str

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]: ...


class Negated:
    """Minus another objective: a cost turned into something of which higher is better."""

    def __init__(self, objective: Objective, *, name: str | None = None) -> None:
        self.objective = objective
        self.__name__ = name or f"minus_{objective.__name__}"

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float | None]:
        return [None if s is None else -s for s in self.objective(prompts, completions, **columns)]


def check_texts(prompts: Sequence[object], completions: Sequence[object]) -> None:
    """UserError unless prompts and completions are equally many plain strings (standard format, not messages)."""
    if len(prompts) != len(completions):
        raise UserError(f"an objective was given {len(prompts)} prompts but {len(completions)} completions")
    for kind, texts in (("prompt", prompts), ("completion", completions)):
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(
                    f"{kind} {i} is a {type(text).__name__}, not text; give plain strings (render chats to text first)"
                )


def check_names(objectives: Mapping[str, Objective] | Sequence[Objective]) -> tuple[str, ...]:
    """The objectives' names in order; UserError on a repeated one (TRL would average the two under one key)."""
    listed = list(objectives.values()) if isinstance(objectives, Mapping) else list(objectives)
    names = tuple(objective.__name__ for objective in listed)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"two objectives are both called {repeated[0]!r}; give each its own name=")
    return names
