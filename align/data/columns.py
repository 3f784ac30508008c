"""Rows in the columns that people use (TRL's, Alpaca's, ShareGPT's): what each says as its prompt and as its replies.

- TRL: `messages`; `prompt` with `completion`, with `completion` and `label`, or with `chosen` and `rejected`, which may
  hold the whole conversations; each of them text or chat messages.
- Alpaca: `instruction`, `input`, `output`, with `system` and `history` where they are there.
- ShareGPT: `conversations` of {"from", "value"}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from align.data.load import Row
from align.errors import UserError
from align.turns import MARKERS, Turn, is_chat, is_transcript, transcript, turns_from, turns_of

Said = str | tuple[Turn, ...]  # a text as it stands in its column, or the turns of chat messages

# Other names of the columns, each read where the first is not there.
SYNONYMS = {
    "messages": ("conversations", "conversation"),
    "prompt": ("instruction", "question"),
    "completion": ("output", "response"),
}
_ANY_HUMAN = re.compile(r"(\r?\n){2}Human:")
NO_REPLY = "the conversation does not end with a reply by the assistant"
EMPTY = "empty reply in a transcript"
TWO_REPLIES = "two turns of the assistant in a row"
NOTHING_BEFORE = "a reply with no turn before it"


def renamed(row: Mapping[str, Any]) -> Row:
    """The row with TRL's names of its columns."""
    found = dict(row)
    for name, others in SYNONYMS.items():
        given = [row[other] for other in others if row.get(other) is not None]
        # An `output` is a completion only where there is something that it answers.
        if found.get(name) is None and given and (name != "completion" or found.get("prompt") is not None):
            found[name] = given[0]
    context = row.get("input")
    if row.get("prompt") is None and isinstance(row.get("instruction"), str) and isinstance(context, str):
        found["prompt"] = f"{row['instruction']}\n\n{context}" if context.strip() else row["instruction"]
    return found


def said(row: Mapping[str, Any], name: str, *, place: str) -> Said | None:
    """What a column holds, None where it is missing; UserError for neither text nor chat messages."""
    value = row.get(name)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):  # a single message
        value = [value]
    if is_chat(value):
        return turns_from(value, place=place)
    if isinstance(value, (list, tuple)) and not value:
        raise UserError(f"{place}: column '{name}' is a conversation without a message; fill it in or delete the row")
    raise UserError(f"{place}: column '{name}' is {type(value).__name__}; make it text (or chat messages)")


def asked(row: Mapping[str, Any], *, place: str) -> Said | None:
    """The prompt of a row with TRL's names: its `prompt`, else `messages` that end with the user's turn, behind its
    `system` and `history`; None where it has none.

    Raises:
        UserError: an empty prompt.
    """
    prompt, messages = said(row, "prompt", place=place), row.get("messages")
    if isinstance(prompt, str) and not prompt.strip():
        raise UserError(f"{place}: empty prompt; fill it in or leave the column out for full transcripts")
    if prompt is None and isinstance(messages, (list, tuple)):
        turns = said(row, "messages", place=place)
        prompt = turns if isinstance(turns, tuple) and turns[-1].role == "user" else None
    first = earlier(row, place=place)
    return (*first, *turns_in(prompt)) if first and prompt is not None else prompt


def turns_in(said: Said) -> tuple[Turn, ...]:
    """The turns of a column; a plain text is a question."""
    return said if isinstance(said, tuple) else turns_of(tidy(said))


def earlier(row: Mapping[str, Any], *, place: str) -> tuple[Turn, ...]:
    """The turns of `system` and `history`, which stand before a prompt or a conversation."""
    system, history = row.get("system"), row.get("history")
    turns = [Turn("system", system)] if isinstance(system, str) and system.strip() else []
    for pair in history if isinstance(history, (list, tuple)) else ():
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise UserError(f'{place}: column \'history\' holds no pairs of question and answer; write [["q", "a"]]')
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return tuple(turns)


def tidy(text: str) -> str:
    """A transcript as `is_transcript` knows it: an empty line before its first marker, line ends of Windows mended.

    Another text as it is.
    """
    start = text.lstrip()
    opens = start.startswith("Human:") or (start.startswith(("System:", "Assistant:")) and _ANY_HUMAN.search(start))
    if not opens:
        return text
    return "\n\n" + (start.replace("\r\n", "\n") if "\r\n\r\nAssistant:" in start else start)


def prompt_text(said: Said, *, place: str) -> str:
    """A prompt as rows hold it: plain text as it is, turns and transcripts as a transcript open for the reply.

    A last turn by the assistant is one that the reply continues. UserError for a transcript without its open marker.
    """
    if isinstance(said, tuple):
        return transcript(said, open_reply=said[-1].role != "assistant")
    text = tidy(said)
    if not is_transcript(text):
        return text
    if not text.rstrip().endswith(MARKERS["assistant"]):
        raise UserError(f"{place}: a transcript prompt must end with '\\n\\nAssistant:'; add it at the end")
    return text.rstrip()


def as_completion(text: str, prompt: str) -> str:
    """`text` as it follows `prompt`: behind a transcript stripped and with one space before it; else as it is, with a
    space before it where neither of the two has any white space there.
    """
    if is_transcript(prompt):
        return " " + text.strip()
    return text if prompt[-1:].isspace() or text[:1].isspace() else " " + text


def reply_text(turn: Turn, opening: Sequence[Turn]) -> str:
    """A chat reply as a completion: its very content behind one space; as it is where it continues a turn."""
    return turn.content if opening[-1].role == "assistant" else " " + turn.content


def replies(turns: Sequence[Turn], *, first: int = 0) -> tuple[list[tuple[str, str]], list[str]]:
    """((prompt, completion) of every reply from turn `first` on, why others are left out)."""
    found, lost = [], []
    for i, turn in enumerate(turns):
        if turn.role != "assistant" or i < first:
            continue
        if not turn.content.strip():
            lost.append(EMPTY)
        elif not i:
            lost.append(NOTHING_BEFORE)
        elif turns[i - 1].role == "assistant" and i != first:
            lost.append(TWO_REPLIES)
        else:
            prompt = prompt_text(tuple(turns[:i]), place="")
            found.append((prompt, reply_text(turn, turns[:i])))
    return found, lost if found or lost else [NO_REPLY]


def joined(opening: Sequence[Turn], side: Sequence[Turn], *, name: str, place: str) -> tuple[Turn, ...]:
    """The conversation of a prompt and a column that holds its replies, or the whole conversation once more.

    Raises:
        UserError: a column that begins with another turn of the user's than the prompt.
    """
    system = tuple(turn for turn in opening if turn.role == "system") if opening else ()
    rest = opening[len(system) :] if tuple(opening[: len(system)]) == system else opening
    if not opening or _begins(side, opening):
        return tuple(side)
    if side[0].role == "assistant":
        return (*opening, *side)
    if _begins(side, rest):
        return (*system, *side)
    if any(_same(turn, opening[-1]) for turn in side[:-1]):  # the prompt repeats the last question alone
        return tuple(side)
    raise UserError(
        f"{place}: '{name}' begins with a turn of the {side[0].role}'s that is not in the prompt; give the replies "
        "alone, or leave out the column 'prompt'"
    )


def _begins(side: Sequence[Turn], opening: Sequence[Turn]) -> bool:
    return len(side) > len(opening) and all(_same(a, b) for a, b in zip(side, opening, strict=False))


def _same(a: Turn, b: Turn) -> bool:
    return a.role == b.role and a.content.strip() == b.content.strip()
