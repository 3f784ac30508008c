"""Shifts named on the command line: by name or family, made by a language model, or from a file of translations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError
from recipes.suites.options import Options

if TYPE_CHECKING:
    from evals.shifts.base import Shift
    from evals.shifts.maker import Maker

NO_MAKER = "a shift made by a language model needs one: add --shift-model MODEL or llm:MODEL@http://HOST/v1"


def shifts_of(options: Options, *, out: Path) -> list[Shift]:
    """The shifts of `options.shift`, each once, the plain prompts first.

    A file of translations is FILE, or FILE:de,fr for some of its languages, or FILE:original=prompt,de,fr where the
    requests stand in another column than `en`. What `options.shift_model` answers is kept in OUT/shifts.jsonl.
    """
    from evals.shifts import LLM_SHIFTS, parse_shifts

    asks = maker_of(options, out=out) if any(name in LLM_SHIFTS for name in options.shift) else None
    shifts: dict[str, Shift] = {}
    for name in ("none", *options.shift):
        file = translation_file(name)
        for shift in parse_shifts([name], ask=asks) if file is None else _translated(*file):
            shifts.setdefault(shift.name, shift)
    return list(shifts.values())


def check_shifts(options: Options) -> None:
    """UserError for a name that is no shift, or a shift by a language model where none is named; loads no model."""
    from evals.items import Missing
    from evals.shifts import LLM_SHIFTS, parse_shifts

    for name in options.shift:
        if name in LLM_SHIFTS and options.shift_model is None:
            raise UserError(NO_MAKER)
        if translation_file(name) is None:
            parse_shifts([name], ask=lambda instruction: Missing("not_asked"))


def maker_of(options: Options, *, out: Path) -> Maker:
    """What makes the shifts that need a language model; UserError where none is named."""
    from evals.shifts.maker import BackendChat, Maker

    if options.shift_model is None:
        raise UserError(NO_MAKER)
    if options.shift_model.startswith("llm:"):
        from evals.backends.keys import read_keys
        from evals.backends.openai_api import chat_of

        chat = chat_of(options.shift_model.removeprefix("llm:"), keys=read_keys(options.api_key_env))
        return Maker(chat, path=out / "shifts.jsonl")
    from evals.backends.transformers import TransformersBackend

    return Maker(BackendChat(TransformersBackend.load(options.shift_model)), path=out / "shifts.jsonl")


def translation_file(name: str) -> tuple[str, str] | None:
    """(file, its options) where the name is a file of rows, else None."""
    from evals.suites import FILE_ENDS

    if name.endswith(FILE_ENDS):
        return name, ""
    path, colon, options = name.rpartition(":")
    return (path, options) if colon and path.endswith(FILE_ENDS) else None


def _translated(file: str, options: str) -> list[Shift]:
    from evals.shifts.language import read_translations

    original, languages = "en", []
    for part in [part.strip() for part in options.split(",") if part.strip()]:
        if part.startswith("original="):
            original = part.removeprefix("original=")
        else:
            languages.append(part)
    return read_translations(file, original=original, languages=languages)
