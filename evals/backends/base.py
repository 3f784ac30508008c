"""What the harness asks of a model: lists in, lists out, in order; a failed entry is Missing, never an exception."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from evals.items import Missing, Prompt


@dataclass(frozen=True)
class Generation:
    """How completions are drawn: greedy at temperature 0, else sampled; one seed per prompt makes order irrelevant."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """A completion without prefill and end token; `finished` is False when it was cut at the token limit."""

    text: str
    tokens: int
    finished: bool


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
