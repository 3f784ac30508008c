"""Shifts named on the command line: by name or family, made by a language model, or from a file of translations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.errors import UserError


def shifts_of(config: Any, *, out: Path) -> list[Any]:
    """The shifts of `config.shift`, each once, the plain prompts first.

    A file of translations is FILE, or FILE:de,fr for some of its languages, or FILE:original=prompt,de,fr where the
    requests stand in another column than `en`. What `config.shift_model` answers is kept in OUT/shifts.jsonl.
    """
    from evals.shifts import LLM_SHIFTS, parse_shifts

    asks = maker_of(config, out=out) if any(name in LLM_SHIFTS for name in config.shift) else None
    found: dict[str, Any] = {}
    for name in ("none", *config.shift):
        file = translation_file(name)
        for shift in parse_shifts([name], ask=asks) if file is None else _translated(*file):
            found.setdefault(shift.name, shift)
    return list(found.values())


def maker_of(config: Any, *, out: Path) -> Any:
    """What makes the shifts that need a language model; UserError where none is named."""
    from evals.shifts.maker import BackendChat, Maker

    if config.shift_model is None:
        raise UserError("a shift made by a language model needs one: add --shift-model MODEL or llm:MODEL@http://HOST/v1")
    if config.shift_model.startswith("llm:"):
        from evals.backends.keys import read_keys
        from evals.backends.openai_api import chat_of

        chat: Any = chat_of(config.shift_model.removeprefix("llm:"), keys=read_keys(config.api_key_env))
    else:
        from evals.backends.transformers import TransformersBackend

        chat = BackendChat(TransformersBackend.load(config.shift_model))
    return Maker(chat, path=out / "shifts.jsonl")


def translation_file(name: str) -> tuple[str, str] | None:
    """(file, its options) where the name is a file of rows, else None."""
    from evals.suites import FILE_ENDS

    if name.endswith(FILE_ENDS):
        return name, ""
    path, colon, options = name.rpartition(":")
    return (path, options) if colon and path.endswith(FILE_ENDS) else None


def _translated(file: str, options: str) -> list[Any]:
    from evals.shifts.language import read_translations

    original, languages = "en", []
    for part in [part.strip() for part in options.split(",") if part.strip()]:
        if part.startswith("original="):
            original = part.removeprefix("original=")
        else:
            languages.append(part)
    return read_translations(file, original=original, languages=languages)
