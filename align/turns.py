"""Conversations as text and back, without loss: the transcript that rows, reports and objectives hold as their prompt.

A prompt is a text. One that begins with a role's marker (Human:, Assistant: or System: behind an empty line) is a
transcript of turns; any other is a single question by the user. Where a turn quotes a marker, a word joiner (U+2060)
stands before the quoted role, so that it is no border: `turns_of(transcript(turns)) == turns`, to the last space. How a
model reads the turns is the business of its prompt format (align/models/formats.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from align.errors import UserError

MARKERS = {"system": "\n\nSystem:", "user": "\n\nHuman:", "assistant": "\n\nAssistant:"}
ROLES = {marker: role for role, marker in MARKERS.items()}
JOINER = "\u2060"
# Other names of the roles: ShareGPT's and those of some model families.
SYNONYMS = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "developer": "system"}

_NAMES = "System|Human|Assistant"
_MARKER = re.compile(rf"\n\n({_NAMES}):")
_QUOTED = re.compile(rf"\n\n({JOINER}*)({_NAMES}):")
_ESCAPED = re.compile(rf"\n\n{JOINER}({JOINER}*)({_NAMES}):")


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in MARKERS:
            raise ValueError(f"role {self.role!r} is not one of {', '.join(MARKERS)}")

    @property
    def message(self) -> dict[str, str]:
        """The turn as a chat template takes it."""
        return {"role": self.role, "content": self.content}


def transcript(turns: Sequence[Turn], *, open_reply: bool = True) -> str:
    """The turns as one text; with `open_reply` it ends with the marker of the reply that is asked for.

    Without it a last turn by the assistant is one that the reply continues.
    """
    parts = (f"{MARKERS[turn.role]} {_QUOTED.sub(_quote, turn.content)}" for turn in turns)
    return "".join(parts) + (MARKERS["assistant"] if open_reply else "")


def is_transcript(prompt: str) -> bool:
    """Whether the prompt holds turns, not one plain question."""
    return prompt.startswith(tuple(MARKERS.values()))


def turns_of(prompt: str) -> tuple[Turn, ...]:
    """The turns of a prompt: those of a transcript, else one question by the user, white space and all.

    The open marker of the reply at the end of a transcript is no turn; a last turn by the assistant is what the reply
    is to continue.
    """
    if not is_transcript(prompt):
        return (Turn("user", prompt),)
    borders = list(_MARKER.finditer(prompt))
    ends = [border.start() for border in borders[1:]] + [len(prompt)]
    turns = [
        Turn(ROLES[border.group()], _ESCAPED.sub(_unquote, prompt[border.end() : end].removeprefix(" ")))
        for border, end in zip(borders, ends, strict=True)
    ]
    if turns[-1].role == "assistant" and not turns[-1].content.strip():
        turns.pop()
    return tuple(turns)


def last_question(prompt: str) -> int | None:
    """The place where the content of the last user turn begins: 0 in a plain question; None where no turn is a user's.

    What is inserted there is read as the beginning of that turn, to the last space.
    """
    if not is_transcript(prompt):
        return 0
    border = prompt.rfind(MARKERS["user"])
    if border < 0:
        return None
    place = border + len(MARKERS["user"])
    return place + prompt.startswith(" ", place)


def turns_from(messages: object, *, place: str) -> tuple[Turn, ...]:
    """Chat messages, {"role", "content"} or {"from", "value"}, as turns; UserError naming `place` and what is wrong.

    Content in parts is joined where all of them are text.
    """
    if not is_chat(messages):
        raise UserError(f"{place}: chat messages are a list of objects with role and content, not {messages!r:.60}")
    turns = []
    for message in messages:  # type: ignore[attr-defined]
        role = str(message.get("role", message.get("from")))
        role = SYNONYMS.get(role, role)
        content = message.get("content", message.get("value"))
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = _joined(content)
        if role not in MARKERS or not isinstance(content, str):
            given = f"role {role!r} and {type(content).__name__} content"
            raise UserError(f"{place}: chat message with {given}; use system, user, assistant with text content")
        turns.append(Turn(role, content))
    return tuple(turns)


def is_chat(value: object) -> bool:
    """Whether the value is a list of chat messages."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(m, Mapping) for m in value)


def _joined(parts: Sequence[object]) -> str | None:
    """The text of content in parts; None where a part is no text (an image, a call)."""
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    given = [text for text in texts if isinstance(text, str)]
    return "".join(given) if len(given) == len(texts) else None


def _quote(found: re.Match[str]) -> str:
    return f"\n\n{JOINER}{found[1]}{found[2]}:"


def _unquote(found: re.Match[str]) -> str:
    return f"\n\n{found[1]}{found[2]}:"
