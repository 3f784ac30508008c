"""What the harness asks of a model: lists in, lists out, in order; a failed entry is Missing, never an exception."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from align.models.sampling import Drawn
from evals.items import Missing, Prompt

if TYPE_CHECKING:
    from align.models.formats import Formatter


@dataclass(frozen=True)
class Generation:
    """How completions are drawn: greedy at temperature 0, else sampled; one seed per prompt makes order irrelevant."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """A completion without prefill and end token; `finished` is False when it was cut at the token limit.

    `tokens` is None where a server does not say. `ids` are the tokens as they were drawn, the end among them where it
    came; empty where a server keeps them.
    """

    text: str
    tokens: int | None
    finished: bool
    ids: tuple[int, ...] = field(default=(), kw_only=True)


def completion_of(new: Sequence[int], *, form: Formatter, ends: Sequence[int], stop: Sequence[str] = ()) -> Completion:
    """The completion in a row of new tokens: up to the first end, or to the token that completes a stop word."""
    drawn = Drawn.of(new, ends=ends)
    said = drawn.ids[:-1] if drawn.ended else drawn.ids
    text = form.decode(said)
    if not any(word in text for word in stop):
        return Completion(text, len(said), drawn.ended, ids=drawn.ids)
    until = bisect_left(range(len(said)), True, key=lambda t: any(word in form.decode(said[:t]) for word in stop))
    cut = min(text.find(word) for word in stop if word in text)
    return Completion(text[:cut], until, True, ids=said[:until])


@runtime_checkable
class Backend(Protocol):
    """A policy behind some engine.

    `fingerprint` covers weights, adapter, tokenizer and prompt format: a changed weight is another fingerprint.
    `can` holds what it supports: "system", "prefill", "logprobs".
    """

    name: str
    can: frozenset[str]

    @property
    def fingerprint(self) -> str: ...

    def generate(
        self, prompts: Sequence[Prompt], *, config: Generation, seeds: Sequence[int]
    ) -> list[Completion | Missing]: ...

    def continuation_logprobs(
        self, prompts: Sequence[Prompt], *, continuations: Sequence[str]
    ) -> list[tuple[float, int] | Missing]:
        """(Sum of log-probabilities in nats, number of tokens) of each continuation after its prompt."""
        ...


def spaced(backend: Backend, prompt: Prompt, beginning: str) -> str:
    """The beginning of a reply as the backend's prompt format has it; where it does not say, behind a space."""
    own = getattr(backend, "spaced", None)
    return f" {beginning}" if own is None else str(own(prompt, beginning))
