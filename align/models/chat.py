"""A tokenizer's own chat template: turns as the text and the ids that the model was trained on, and nothing else.

Special tokens quoted inside a turn stay text: they are masked while the template writes its own, and read as ordinary
characters. A template that writes the date gets a fixed one, so that a prompt is the same prompt tomorrow.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from align.errors import UserError
from align.turns import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A masked token is a noncharacter, which no text holds, and the token's number as a character of private use.
MASK, FIRST, MASKS = "\ufdd1", 0xE000, 6400
_MASKED = re.compile(f"{MASK}([{chr(FIRST)}-{chr(FIRST + MASKS - 1)}])")
_NOW = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
DATE = "2024-07-26"  # the date that Llama's templates write where they are given none
# Special tokens that hold this are ours (preference tags): it is no character, so that no text can quote them.
OURS = "\ufdd0"
PROBE = "a marker that no template writes"


class FormatError(UserError):
    """A prompt that a chat template cannot say: a row to leave out and count, or a missing cell."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    chat_kwargs: Mapping[str, object],
    *,
    closed: bool = False,
) -> str:
    """The conversation as text, open for a reply; `closed`: with its last turn, a reply, finished.

    A last turn by the assistant is otherwise continued. Quoted special tokens are masked: read the text by `ids_of`.
    Raises FormatError where the template refuses the turns, has no place for a system turn, or leaves a turn out.
    """
    special = _special(tokenizer)
    masked = [Turn(turn.role, _mask(turn.content, special)) for turn in turns]
    if masked[0].role == "system" and not has_system_turn(tokenizer, chat_kwargs):
        raise FormatError("unsupported_system", "the chat template has no place for a system turn; leave it out")
    going_on = not closed and masked[-1].role == "assistant"
    text = _apply(
        tokenizer, masked, chat_kwargs, add_generation_prompt=not closed and not going_on,
        continue_final_message=going_on,
    )  # fmt: skip
    for turn in masked:
        if turn.role == "user" and turn.content.strip() not in text:
            raise FormatError("template", f"the chat template leaves out the turn {turn.content[:40]!r}")
    return text


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text with nothing added; characters masked by `rendered` are read as the text they stand for."""
    if not _MASKED.search(text):
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    special, ids = _special(tokenizer), []
    for i, piece in enumerate(_MASKED.split(text)):  # text and numbers of tokens in turn
        if i % 2:
            quoted = _quoted(piece, special)
            ids += tokenizer(quoted, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        elif piece:
            ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
    return ids


def masked_text(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with its special tokens masked, for `ids_of` to read as ordinary characters."""
    return _mask(text, _special(tokenizer))


def shown(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A masked text for people: the quoted special tokens as they were written."""
    special = _special(tokenizer)
    return _MASKED.sub(lambda m: _quoted(m[1], special), text)


def end_of_turn(tokenizer: PreTrainedTokenizerBase, chat_kwargs: Mapping[str, object]) -> int:
    """The id that closes a reply: the first special token behind it, else the tokenizer's end token."""
    text = _apply(tokenizer, [Turn("user", "x"), Turn("assistant", PROBE)], chat_kwargs)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    behind = ids_of(tokenizer, text.rpartition(PROBE)[2])
    return next((token for token in behind if token in special), tokenizer.eos_token_id)


def has_system_turn(tokenizer: PreTrainedTokenizerBase, chat_kwargs: Mapping[str, object]) -> bool:
    """Whether a system turn reaches the text."""
    try:
        return PROBE in _apply(tokenizer, [Turn("system", PROBE), Turn("user", "x")], chat_kwargs)
    except FormatError:  # templates without a system turn raise what they like
        return False


def _apply(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], chat_kwargs: Mapping[str, object], **how: bool
) -> str:
    given = {name: value for name, value in chat_kwargs.items() if name != "date"}
    template = _dated(tokenizer, datetime.date.fromisoformat(str(chat_kwargs.get("date", DATE))))
    try:
        text = tokenizer.apply_chat_template(
            [turn.message for turn in turns], tokenize=False, chat_template=template, **given, **how
        )
    except Exception as error:  # jinja2's errors, and whatever a template raises itself
        words = " ".join(str(error).split())[:160]
        raise FormatError("template", f"the chat template refuses the conversation ({words})") from error
    return str(text)


def _dated(tokenizer: PreTrainedTokenizerBase, today: datetime.date) -> str:
    """The template with the date written into it: transformers gives templates the clock, and no other function."""

    def written(call: re.Match[str]) -> str:
        return repr(today.strftime(call[2]))

    return _NOW.sub(written, tokenizer.get_chat_template())


def _special(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens that a text can quote, by id; of two that begin alike the longer one is masked."""
    known = (token for _, token in sorted(tokenizer.added_tokens_decoder.items()))
    return [token.content for token in known if token.special and OURS not in token.content][:MASKS]


def _mask(text: str, special: Sequence[str]) -> str:
    present = [word for word in special if word in text]
    if not present:
        return text
    for word in sorted(present, key=len, reverse=True):
        text = text.replace(word, MASK + chr(FIRST + special.index(word)))
    return text


def _quoted(number: str, special: Sequence[str]) -> str:
    """The special token of a number; the character itself where there are not so many."""
    place = ord(number) - FIRST
    return special[place] if place < len(special) else number
