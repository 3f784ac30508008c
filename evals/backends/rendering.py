"""Prompts to the exact text a model reads: its tokenizer's chat template, the HH transcript, or the plain text.

The text holds every special token that the model is to see; it is encoded without adding any, so that a template that
writes the start token itself does not get a second one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.data.hh import ASSISTANT, HUMAN
from align.errors import UserError
from evals.items import Missing, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = ("auto", "chat", "hh", "plain")


@dataclass(frozen=True)
class Renderer:
    """Renders prompts in one way. `can` names the turns it has a place for: "system", "prefill"."""

    template: str
    tokenizer: PreTrainedTokenizerBase
    can: frozenset[str]

    def text(self, prompt: Prompt) -> str | Missing:
        """The text of a prompt, ready for the answer; Missing where the template has no place for a turn."""
        lacking = sorted(prompt.needs - self.can)
        if lacking:
            return Missing(f"unsupported_{lacking[0]}", f"the {self.template} template has none", lasting=True)
        if self.template == "chat":
            return _chat(self.tokenizer, prompt)
        if self.template == "hh":
            return _transcript(prompt)
        return "\n".join(turn.content for turn in prompt.turns)


def renderer(tokenizer: PreTrainedTokenizerBase, *, template: str = "auto") -> Renderer:
    """A renderer; `auto` takes the tokenizer's chat template, else the HH transcript. UserError on an unknown one."""
    if template not in TEMPLATES:
        raise UserError(f"template {template!r} is not one of {', '.join(TEMPLATES)}")
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    if template == "chat" and not has_chat:
        raise UserError("the tokenizer has no chat template; use --template hh or plain")
    chosen = ("chat" if has_chat else "hh") if template == "auto" else template
    if chosen != "chat":
        return Renderer(chosen, tokenizer, frozenset({"prefill"} if chosen == "hh" else {"prefill", "system"}))
    probe = Prompt.user("x", system="marker-of-the-system-turn")
    try:
        shown = "marker-of-the-system-turn" in _chat(tokenizer, probe)
    except Exception:  # templates without a system turn raise what they like (jinja2 errors of their own)
        shown = False
    return Renderer("chat", tokenizer, frozenset({"prefill", "system"} if shown else {"prefill"}))


def _chat(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in prompt.turns]
    going_on = bool(prompt.prefill)
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=not going_on, continue_final_message=going_on
    )


def _transcript(prompt: Prompt) -> str:
    parts = []
    for turn in prompt.turns:
        parts.append(f"{HUMAN if turn.role == 'user' else ASSISTANT} {turn.content.strip()}")
    return "".join(parts) + ("" if prompt.prefill else ASSISTANT)
