"""The prompt format of a checkpoint: the one place where prompts and replies become the token ids that a model reads.

A format is resolved once per checkpoint and travels in its tokenizer_config.json (key `prompt_format`) to whatever is
trained from it; training, sampling, scoring and evaluation all ask it for ids. Templates: "chat" is the tokenizer's own
chat template, "hh" the transcript of Anthropic's HH data, "plain" the text as written, special tokens included; "pair"
the two segments of an encoder, `[CLS] prompt [SEP] reply [SEP]`, for reward models.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from align.errors import UserError
from align.models.chat import DATE, end_of_turn, has_system_turn, ids_of, masked_text, rendered, shown
from align.turns import Turn, is_transcript, transcript, turns_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = ("auto", "chat", "hh", "plain", "pair")
STORED = "prompt_format"
Row = tuple[list[int], list[int]]


@dataclass(frozen=True)
class PromptFormat:
    """How one checkpoint is asked: template, ids that precede a text, the id that closes a reply, all that stop one.

    `start` is empty with a chat template, which writes its start token itself. `chat_kwargs` go to the chat template
    (say {"enable_thinking": False}); a `date` there ("2025-01-31") is today's date for templates that write it.
    """

    template: str
    start: tuple[int, ...]
    end: int
    ends: tuple[int, ...]
    chat_kwargs: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, object]) -> PromptFormat:
        """The format that `asdict` wrote; UserError for another object."""
        try:
            return cls(
                template=str(content["template"]),
                start=tuple(map(int, content["start"])),  # type: ignore[call-overload]
                end=int(content["end"]),  # type: ignore[call-overload]
                ends=tuple(map(int, content["ends"])),  # type: ignore[call-overload]
                chat_kwargs=dict(content["chat_kwargs"]),  # type: ignore[call-overload]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"the prompt_format in tokenizer_config.json is damaged ({error!r}); delete that key to resolve it anew"
            ) from error


# ------------------------------------------------------------------------------------------------------------ resolving


@dataclass(frozen=True)
class Choice:
    """What a user asks for: a template, or "auto", and arguments of the chat template."""

    template: str = "auto"
    chat_kwargs: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise UserError(f"template {self.template!r} is not one of {', '.join(TEMPLATES)}")
        date = str(self.chat_kwargs.get("date", DATE))
        try:
            datetime.date.fromisoformat(date)
        except ValueError as error:
            raise UserError(f"date {date!r} in chat_template_kwargs is none; write it as 2025-01-31") from error


def resolve(tokenizer: PreTrainedTokenizerBase, choice: Choice = Choice(), *, ends: Sequence[int] = ()) -> PromptFormat:
    """The format of a tokenizer; auto: its chat template where it has one, an encoder's segments, else plain.

    `ends`: further ids at which its model stops (those of a generation config). UserError for "chat" without a chat
    template.
    """
    has_chat = bool(tokenizer.chat_template)
    if choice.template == "chat" and not has_chat:
        raise UserError("the tokenizer has no chat template; use --template hh or plain")
    own = "chat" if has_chat else "pair" if writes_segments(tokenizer) else "plain"
    template = own if choice.template == "auto" else choice.template
    if template == "pair" and not writes_segments(tokenizer):
        raise UserError("the tokenizer puts no separators around texts; template pair is for encoders like BERT")
    if choice.chat_kwargs and template != "chat":
        raise UserError(f"chat_template_kwargs are for the chat template, not for template {template}")
    end = end_of_turn(tokenizer, choice.chat_kwargs) if template == "chat" else tokenizer.eos_token_id
    end = tokenizer.sep_token_id if template == "pair" else end
    start = () if template in ("chat", "pair") else start_ids(tokenizer)
    every = dict.fromkeys([end, *ends, tokenizer.eos_token_id])
    return PromptFormat(template, start, end, tuple(every), dict(choice.chat_kwargs))


def start_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer itself puts before a text: up to its start token; empty where it writes none."""
    ids = tokenizer("")["input_ids"]
    return tuple(ids[: ids.index(tokenizer.bos_token_id) + 1]) if tokenizer.bos_token_id in ids else ()


def writes_segments(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a text between a class token and a separator, as those of BERT-like encoders do."""
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    return first is not None and last is not None and list(tokenizer("")["input_ids"]) == [first, last]


def stored_format(tokenizer: PreTrainedTokenizerBase) -> PromptFormat | None:
    """The format that the checkpoint carries; None where none was settled yet."""
    content = tokenizer.init_kwargs.get(STORED)
    return None if content is None else PromptFormat.from_json(content)


def store(tokenizer: PreTrainedTokenizerBase, fmt: PromptFormat) -> None:
    """Let the tokenizer carry the format wherever it is saved."""
    tokenizer.init_kwargs[STORED] = {**asdict(fmt), "start": list(fmt.start), "ends": list(fmt.ends)}
    bind(tokenizer, fmt)


def settle(
    tokenizer: PreTrainedTokenizerBase,
    choice: Choice = Choice(),
    *,
    prompts: Sequence[str] = (),
    place: str = "this checkpoint",
) -> PromptFormat:
    """The checkpoint's format, from now on carried by its tokenizer.

    One that it carries already stays: UserError where `choice` asks for another. Else it is resolved; without a chat
    template auto is "hh" where any of the `prompts` is a transcript.
    """
    carried = stored_format(tokenizer)
    if carried is not None:
        if choice.template not in ("auto", carried.template) or (
            choice.chat_kwargs and dict(choice.chat_kwargs) != dict(carried.chat_kwargs)
        ):
            raise UserError(
                f"{place} was trained with template {carried.template} {dict(carried.chat_kwargs) or ''}, not "
                f"{choice.template} {dict(choice.chat_kwargs) or ''}; leave out --template, or train from another model"
            )
        return carried
    own = formatter(tokenizer).format.template
    if choice.template == "auto" and own == "plain" and any(map(is_transcript, prompts)):
        choice = replace(choice, template="hh")
    found = resolve(tokenizer, choice, ends=formatter(tokenizer).format.ends)
    store(tokenizer, found)
    return found


def same_format(named: Mapping[str, PromptFormat]) -> PromptFormat:
    """The one format of several checkpoints; UserError naming two that differ."""
    (first, fmt), *others = named.items()
    for name, other in others:
        if replace(other, ends=()) != replace(fmt, ends=()):
            raise UserError(
                f"{first} reads prompts as {fmt.template} {dict(fmt.chat_kwargs) or ''} (start {list(fmt.start)}, end "
                f"{fmt.end}), {name} as {other.template} {dict(other.chat_kwargs) or ''} (start {list(other.start)}, "
                f"end {other.end}); train both in one format"
            )
    return fmt


def shared_format(named: Mapping[str, PreTrainedTokenizerBase]) -> PromptFormat:
    """The one format of several checkpoints' tokenizers; UserError naming two that differ.

    A checkpoint that carries none, since nothing was trained from it alone, is read as those that carry one.
    """
    carried = {name: fmt for name, tokenizer in named.items() if (fmt := stored_format(tokenizer)) is not None}
    return same_format(carried or {name: formatter(tokenizer).format for name, tokenizer in named.items()})


# -------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Formatter:
    """A format with its tokenizer: prompts and replies to ids, and ids drawn back to text.

    Prompts are texts as align/turns.py has them. FormatError, one line, where a template cannot say a prompt.
    """

    tokenizer: PreTrainedTokenizerBase
    format: PromptFormat

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of a prompt, ready for the reply."""
        if self.format.template == "pair":
            return list(self.tokenizer(self._text(prompt), split_special_tokens=True)["input_ids"])
        return self._after_start(self._ids(self._text(prompt)))

    def prompts_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """The same of many; one that is asked many times is rendered once."""
        known = {prompt: self.prompt_ids(prompt) for prompt in dict.fromkeys(prompts)}
        return [list(known[prompt]) for prompt in prompts]

    def text(self, prompt: str) -> str:
        """The prompt as the model reads it, for people: with the special tokens of a chat template, no start token."""
        return shown(self.tokenizer, self._text(prompt))

    def literal(self, prompt: str, reply: str) -> Row:
        """The row as one text, cut before the white space at the prompt's end, with the reply's own first space."""
        text = self._text(prompt)
        if reply[:1].isspace():
            whole = self._ids(text + reply)
        else:  # with the space, if any, that a template writes before a reply
            head, tail = self.row(prompt, reply, ended=False)
            whole = [*head, *tail]
        start = len(self._ids(text.rstrip()))
        return whole[:start], whole[start:]

    def _text(self, prompt: str) -> str:
        """The prompt as text in which special tokens that somebody quoted are masked (not in plain text)."""
        if self.format.template == "chat":
            return rendered(self.tokenizer, turns_of(prompt), self.format.chat_kwargs)
        if self.format.template == "hh":
            whole = prompt if is_transcript(prompt) else transcript([Turn("user", prompt.strip())])
            return masked_text(self.tokenizer, whole)
        if self.format.template == "pair":
            turns = turns_of(prompt)
            return turns[0].content if len(turns) == 1 else transcript(turns, open_reply=False).strip()
        return prompt

    def reply_ids(self, prompt: str, reply: str, *, ended: bool = True) -> list[int]:
        """Ids of a reply to a prompt, closed as the model closes its own; not `ended`: cut, with nothing behind it.

        Prompt and reply are read as one text, as the reply's first token may depend on the prompt's last; where the two
        would share a token, they are read apart, since it is the prompt's own ids that a policy continues.
        """
        head = self.prompt_ids(prompt)
        if self.format.template == "chat":
            tail = self._chat_tail(head, prompt, reply, ended=ended)
            return [*tail, self.format.end] if ended and self.format.end not in tail else tail
        elif self.format.template == "pair":
            segments = self.tokenizer(self._text(prompt), reply.removeprefix(" "), split_special_tokens=True)
            tail = list(segments["input_ids"])[len(head) :]
            return tail if ended else tail[:-1]
        else:
            said = reply if self.format.template == "plain" else masked_text(self.tokenizer, reply)
            behind = _behind(head, self._after_start(self._known(self._text(prompt) + said)))
            tail = self._apart(said) if behind is None else behind
        return [*tail, self.format.end] if ended and tail[-1:] != [self.format.end] else tail

    def row(self, prompt: str, reply: str, *, ended: bool = True) -> Row:
        """(Ids of the prompt, ids of the reply)."""
        return self.prompt_ids(prompt), self.reply_ids(prompt, reply, ended=ended)

    def choice_ids(self, prompt: str, text: str) -> list[int]:
        """Ids of the beginning of a reply: a refusal's opening, a choice; with the space that the format wants."""
        return self.reply_ids(prompt, self.spaced(prompt, text), ended=False)

    def spaced(self, prompt: str, text: str) -> str:
        """A reply with what parts it from the prompt: nothing in a chat template, else one space where none is yet."""
        if self.format.template == "chat" or text[:1].isspace():
            return text
        return text if self._text(prompt)[-1:].isspace() else f" {text}"

    def said(self, prompt: str, reply: str) -> str:
        """The reply as the model says it: in a chat template without the space by which rows part it from a prompt."""
        chat = self.format.template == "chat" and not prompt[-1:].isspace()
        return reply.removeprefix(" ") if chat else reply

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a reply's ids without special tokens; a tokenizer that drops a text's first space keeps it."""
        alone = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        if not self._drops_space:
            return alone
        anchor = self._anchor
        whole = self.tokenizer.decode([*anchor, *ids], skip_special_tokens=True)
        return whole.removeprefix(self.tokenizer.decode(anchor, skip_special_tokens=True))

    @functools.cached_property
    def closing(self) -> list[int]:
        """What stands at the end of a finished reply: its end, and what a chat template writes behind that."""
        end = self.format.end
        tail = self.reply_ids("x", " x") if self.format.template == "chat" else [end]
        return tail[len(tail) - 1 - tail[::-1].index(end) :] if end in tail else [end]

    @property
    def can_system(self) -> bool:
        """Whether a system turn reaches the model."""
        return self.format.template != "chat" or has_system_turn(self.tokenizer, self.format.chat_kwargs)

    def _chat_tail(self, head: list[int], prompt: str, reply: str, *, ended: bool) -> list[int]:
        turns, said = list(turns_of(prompt)), self.said(prompt, reply)
        if turns[-1].role == "assistant":  # begun already: the reply goes on
            turns[-1] = Turn("assistant", turns[-1].content + reply)
        else:
            turns.append(Turn("assistant", said))
        whole = self._ids(rendered(self.tokenizer, turns, self.format.chat_kwargs, closed=True))
        tail = _behind(head, whole)
        if tail is None:  # a template that writes a finished reply otherwise than the one it asks for
            return self._apart(masked_text(self.tokenizer, said))
        if ended:
            return tail
        return self._open(tail)

    def _open(self, tail: list[int]) -> list[int]:
        """The tail of a finished chat without what closes it."""
        last = max((i for i, token in enumerate(tail) if token == self.format.end), default=len(tail))
        return tail[:last]

    def _ids(self, text: str) -> list[int]:
        return ids_of(self.tokenizer, text)

    def _after_start(self, ids: list[int]) -> list[int]:
        """The ids behind the format's start, which a text rendered by hand may hold already."""
        start = list(self.format.start)
        return ids if ids[: len(start)] == start else [*start, *ids]

    def _apart(self, reply: str) -> list[int]:
        """Ids of a text in the middle of another, whatever the tokenizer puts before a text of its own."""
        tail = _behind(self._anchor, self._known("\n" + reply)) if self._anchor else None
        return self._ids(reply) if tail is None else tail

    @functools.cached_property
    def _anchor(self) -> list[int]:
        """Ids of a line end, behind which a text is the middle of another; empty where no word can say it."""
        return self._known("\n")

    @functools.cached_property
    def _drops_space(self) -> bool:
        ids = _behind(self._anchor, self._known("\n a")) if self._anchor else None
        return bool(ids) and self.tokenizer.decode(ids) == "a"

    def _known(self, text: str) -> list[int]:
        try:
            return self._ids(text)
        except Exception as error:  # the bare type that the tokenizers library raises for a word it does not know
            if "Missing [UNK] token" not in str(error):
                raise
            return []


_BOUND = "_prompt_formatter"  # the attribute of a tokenizer that holds its formatter


def formatter(tokenizer: PreTrainedTokenizerBase) -> Formatter:
    """The tokenizer with the format that it carries, else with the one that is resolved for it."""
    found: Formatter | None = tokenizer.__dict__.get(_BOUND)
    return bind(tokenizer, stored_format(tokenizer) or resolve(tokenizer)) if found is None else found


def bind(tokenizer: PreTrainedTokenizerBase, fmt: PromptFormat) -> Formatter:
    """Let `formatter` give this format for the tokenizer in memory; what is saved of it is as before."""
    tokenizer.__dict__[_BOUND] = bound = Formatter(tokenizer, fmt)
    return bound


def _behind(head: Sequence[int], whole: Sequence[int]) -> list[int] | None:
    """What follows `head` in `whole`; None where it does not begin with it."""
    return list(whole[len(head) :]) if list(whole[: len(head)]) == list(head) else None
