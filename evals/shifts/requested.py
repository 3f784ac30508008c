"""Shifts as a user names them: by name or family, by a language model, or from files of translations or rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from align.errors import UserError
from evals.items import Missing
from evals.shifts import LLM_SHIFTS, parse_shifts
from evals.shifts.base import Shift
from evals.shifts.from_rows import from_rows
from evals.shifts.language import read_translations
from evals.shifts.maker import BackendChat, Maker

NO_MAKER = "a shift made by a language model needs one: add --shift-model MODEL or llm:MODEL@http://HOST/v1"


def requested_shifts(names: Sequence[str], *, model: str | None, keys: Mapping[str, str], answers: Path) -> list[Shift]:
    """The shifts of `names`, each once, the plain prompts first.

    A file of translations is FILE, or FILE:de,fr for some of its languages, or FILE:original=prompt,de,fr where the
    requests stand in another column than `en`. `model` makes the shifts that need a language model; what it answers is
    kept in the file `answers`. `like:ROWS` and `many_shot:FILE[:K,K]` are made of rows (`evals/shifts/from_rows.py`).
    """
    ask = maker_of(model, keys=keys, answers=answers) if any(name in LLM_SHIFTS for name in names) else None
    shifts: dict[str, Shift] = {}
    for name in ("none", *names):
        for shift in from_rows(name) or _others(name, ask):
            shifts.setdefault(shift.name, shift)
    return list(shifts.values())


def _others(name: str, ask: Maker | None) -> list[Shift]:
    file = translation_file(name)
    return parse_shifts([name], ask=ask) if file is None else _translated(*file)


def promises(names: Sequence[str]) -> list[str]:
    """What a group's name does not hold, a line for each group that is named."""
    if "jailbroken" not in names:
        return []
    own = [shift.name for shift in parse_shifts("jailbroken") if "shorter" in shift.differs]
    return [
        "jailbroken is the list of Wei et al. 2023 in structure: its two shifts that need a language model are not in "
        f"it, and the templates of {', '.join(own)} are shorter ones in our own words; rates are not those of the paper"
    ]


def check_shifts(names: Sequence[str], *, model: str | None) -> None:
    """UserError for a name that is no shift, or a shift by a language model where none is named; loads no model."""
    for name in names:
        if name in LLM_SHIFTS and model is None:
            raise UserError(NO_MAKER)
        if from_rows(name) is None and translation_file(name) is None:
            parse_shifts([name], ask=lambda instruction: Missing("not_asked"))


def maker_of(model: str | None, *, keys: Mapping[str, str], answers: Path) -> Maker:
    """What makes the shifts that need a language model; UserError where none is named."""
    if model is None:
        raise UserError(NO_MAKER)
    if model.startswith("llm:"):
        from evals.backends.openai_api import chat_of

        return Maker(chat_of(model.removeprefix("llm:"), keys=dict(keys)), path=answers)
    from evals.backends.transformers import TransformersBackend

    return Maker(BackendChat(TransformersBackend.load(model)), path=answers)


def translation_file(name: str) -> tuple[str, str] | None:
    """(file, its options) where the name is a file of rows, else None."""
    from evals.suites import FILE_ENDS

    if name.endswith(FILE_ENDS):
        return name, ""
    path, colon, options = name.rpartition(":")
    return (path, options) if colon and path.endswith(FILE_ENDS) else None


def _translated(file: str, options: str) -> list[Shift]:
    original, languages = "en", []
    for part in [part.strip() for part in options.split(",") if part.strip()]:
        if part.startswith("original="):
            original = part.removeprefix("original=")
        else:
            languages.append(part)
    return read_translations(file, original=original, languages=languages)
