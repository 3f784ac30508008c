"""The model that makes shifts: an instruction in, its answer or Missing out, each asked once and kept on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from align.errors import UserError
from evals.append import append_lines, cut_unfinished_line
from evals.backends.base import Backend, Completion, Generation
from evals.items import Missing, Prompt, digest


class Chat(Protocol):
    """One instruction in, the answer or Missing out."""

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, instruction: str) -> str | Missing: ...


class BackendChat:
    """A backend asked greedily; an answer that is cut at `max_new_tokens` is Missing."""

    def __init__(self, backend: Backend, *, max_new_tokens: int = 512) -> None:
        self.backend, self.max_new_tokens = backend, max_new_tokens

    @property
    def fingerprint(self) -> str:
        return f"{self.backend.fingerprint}:{self.max_new_tokens}"

    def __call__(self, instruction: str) -> str | Missing:
        config = Generation(self.max_new_tokens, temperature=0.0)
        (answer,) = self.backend.generate([Prompt.user(instruction)], config=config, seeds=[0])
        if isinstance(answer, Completion) and not answer.finished:
            return Missing("llm_truncated", "the answer of the model that makes the shift was cut at its token limit")
        return answer.text if isinstance(answer, Completion) else answer


class Maker:
    """Asks `chat` and keeps what it answers in `path`, so that a resumed run has the same prompts.

    A failure is not kept and is asked again by the next run. The key holds the chat's fingerprint and the instruction.
    """

    def __init__(self, chat: Chat, *, path: Path) -> None:
        self.chat, self.path = chat, path
        self.kept = _read(path)

    def __call__(self, instruction: str) -> str | Missing:
        key = digest(self.chat.fingerprint, instruction)
        if key in self.kept:
            return self.kept[key]
        answer = self.chat(instruction)
        if isinstance(answer, Missing):
            return answer
        append_lines(self.path, [json.dumps({"key": key, "answer": answer}) + "\n"])
        self.kept[key] = answer
        return answer


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    cut_unfinished_line(path, beginning=b'{"key": ')
    kept: dict[str, str] = {}
    lines: Sequence[str] = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            kept[row["key"]] = str(row["answer"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: no answer can be read ({error}); delete that line and rerun") from error
    return kept
