"""What an objective is: a named callable in the shape of TRL's reward functions, where higher is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from align.data.columns import Said, prompt_text, turns_in
from align.errors import UserError
from align.turns import is_chat, turns_from


@runtime_checkable
class Objective(Protocol):
    """`(prompts, completions, **columns) -> scores`, one per completion; None says "does not apply" (never 0).

    Prompts and completions are texts; those of this package take chat messages as well (`as_texts`).

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


def as_texts(prompts: Sequence[object], completions: Sequence[object]) -> tuple[list[str], list[str]]:
    """Prompts and completions as texts; chat messages, as TRL gives them for conversational rows, become transcripts.

    Of a completion in several messages the last one is the reply, and the others belong to its prompt. UserError for
    anything else, and unless there are equally many.
    """
    if len(prompts) != len(completions):
        raise UserError(f"an objective was given {len(prompts)} prompts but {len(completions)} completions")
    pairs = [_as_text(*pair, number=i) for i, pair in enumerate(zip(prompts, completions, strict=True))]
    return [prompt for prompt, _ in pairs], [completion for _, completion in pairs]


def _as_text(prompt: object, completion: object, *, number: int) -> tuple[str, str]:
    asked, said = _said(prompt, f"prompt {number}"), _said(completion, f"completion {number}")
    if isinstance(said, tuple):
        *earlier, last = said
        if last.role != "assistant":
            raise UserError(f"completion {number} ends with a turn of the {last.role}'s; give a reply at its end")
        asked, said = ((*turns_in(asked), *earlier) if earlier else asked), last.content
    return prompt_text(asked, place=f"prompt {number}") if isinstance(asked, tuple) else asked, said


def _said(value: object, place: str) -> Said:
    if isinstance(value, str):
        return value
    if is_chat(value):
        return turns_from(value, place=place)
    raise UserError(f"{place} is a {type(value).__name__}, neither text nor chat messages; give one of the two")


def check_names(objectives: Mapping[str, Objective] | Sequence[Objective]) -> tuple[str, ...]:
    """The objectives' names in order; UserError on a repeated one (TRL would average the two under one key)."""
    listed = list(objectives.values()) if isinstance(objectives, Mapping) else list(objectives)
    names = tuple(objective.__name__ for objective in listed)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"two objectives are both called {repeated[0]!r}; give each its own name=")
    return names
