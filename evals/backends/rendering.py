"""Prompts of the evaluation in a checkpoint's own format: as text that rows hold, as ids that its model reads.

Everything is said by the prompt format (align/models/formats.py), the same that training and sampling use; a turn that
it has no place for is Missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from align.models.chat import FormatError
from align.models.formats import Choice, Formatter, bind, formatter, resolve, settle, stored_format
from align.turns import Turn, is_transcript, transcript, turns_of
from evals.items import Missing, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")


def renderer(
    tokenizer: PreTrainedTokenizerBase, *, template: str | Choice = "auto", place: str = "the model"
) -> Renderer:
    """How a tokenizer's model reads prompts; `auto`: as it carries it, else its chat template, else the HH transcript.

    From now on `formatter(tokenizer)` says the same. UserError for a template that is unknown, that the tokenizer has
    not, or that is another one than the checkpoint was trained with.
    """
    choice = template if isinstance(template, Choice) else Choice(template)
    if stored_format(tokenizer) is not None:
        settle(tokenizer, choice, place=place)
        return Renderer(formatter(tokenizer))
    ends = formatter(tokenizer).format.ends
    found = resolve(tokenizer, choice, ends=ends)
    if choice.template == "auto" and found.template == "plain":
        found = resolve(tokenizer, replace(choice, template="hh"), ends=ends)
    return Renderer(bind(tokenizer, found))


def prompt_of(text: str) -> Prompt:
    """A prompt as rows hold it, a question or a transcript of turns, as a prompt of the evaluation."""
    return Prompt(turns_of(text))


@dataclass(frozen=True)
class Renderer:
    """Prompts in one format."""

    form: Formatter

    @property
    def template(self) -> str:
        return self.form.format.template

    @property
    def choice(self) -> Choice:
        """What a user would ask for to get this format."""
        return Choice(self.template, self.form.format.chat_kwargs)

    @property
    def can(self) -> frozenset[str]:
        """The turns that there is a place for: "prefill", "system"."""
        return frozenset({"prefill", "system"} if self.form.can_system else {"prefill"})

    def said(self, prompt: Prompt) -> str:
        """The prompt as rows and objectives hold it: a question, or a transcript; in plain text lines, one a turn."""
        if self.template == "plain":
            return "\n".join(turn.content for turn in prompt.turns)
        strip = self.template == "hh"
        turns = [Turn(turn.role, turn.content.strip() if strip else turn.content) for turn in prompt.turns]
        if len(turns) == 1 and turns[0].role == "user" and not is_transcript(turns[0].content):
            return turns[0].content
        return transcript(turns, open_reply=turns[-1].role != "assistant")

    def text(self, prompt: Prompt) -> str | Missing:
        """The prompt as the model reads it, for people; Missing where the format cannot say it."""
        return _or_missing(lambda: self.form.text(self.said(prompt)))

    def ids(self, prompt: Prompt) -> list[int] | Missing:
        """Token ids of the prompt, ready for the answer."""
        return _or_missing(lambda: self.form.prompt_ids(self.said(prompt)))

    def pair(
        self, prompt: Prompt, continuation: str, *, literal: bool = False
    ) -> tuple[list[int], list[int]] | Missing:
        """(Ids of the prompt, ids of what follows it).

        Behind a chat template both are those of a conversation; `literal`, as in lm_eval, a space before the reply is
        a part of it, and so is white space at the prompt's end, a template's last line end. Else they are one text, cut
        after the prompt's own number of tokens, and such white space always belongs to the continuation.
        """
        return _or_missing(lambda: self._pair(self.said(prompt), continuation, literal))

    def _pair(self, said: str, continuation: str, literal: bool) -> tuple[list[int], list[int]]:
        if self.template == "chat":
            return self.form.literal(said, continuation) if literal else self.form.row(said, continuation, ended=False)
        text = self.form.text(said)
        whole, start = self.form.prompt_ids(text + continuation), len(self.form.prompt_ids(text.rstrip()))
        return whole[:start], whole[start:]

    def reply(self, prompt: Prompt, text: str) -> list[int] | Missing:
        """Ids of a reply as it would be encoded, without an end."""
        return _or_missing(lambda: self.form.reply_ids(self.said(prompt), text, ended=False))

    def spaced(self, prompt: Prompt, beginning: str) -> str:
        """The beginning of a reply with what the format puts before it: nothing, or a space."""
        found = _or_missing(lambda: self.form.spaced(self.said(prompt), beginning))
        return beginning if isinstance(found, Missing) else found


def _or_missing(work: Callable[[], T]) -> T | Missing:
    """What `work` gives, Missing where the format has no place for a turn."""
    try:
        return work()
    except FormatError as error:
        return Missing(error.reason, str(error), lasting=True)
