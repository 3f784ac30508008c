"""The one-token world for methods that read their preference in the prompt: recorders, laws and regrets of a family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from align.policies.base import ModelPolicy
from align.policies.tagged import TaggedPolicy
from align.preferences import Weights
from factories.tiny_bandit import (
    BETA,
    OBJECTIVES,
    PROMPTS,
    RESPONSES,
    WORDS,
    kl,
    next_distribution,
    optimum,
    reward,
    scalarised,
)

VERTEX_AND_MIDDLE = (Weights((1.0, 0.0)), Weights((0.5, 0.5)), Weights((0.0, 1.0)))


class Recorder:
    """An objective that keeps the prompts and completions that it was asked about, and answers as `inner` does."""

    def __init__(self, name: str, inner: Any = None) -> None:
        self.__name__, self.inner = name, inner or OBJECTIVES[name]
        self.prompts: list[str] = []
        self.completions: list[str] = []
        self.columns: list[dict[str, Any]] = []

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        self.prompts += prompts
        self.completions += completions
        self.columns.append(columns)
        return list(self.inner(prompts, completions, **columns))


def recorders() -> dict[str, Recorder]:
    return {name: Recorder(name) for name in OBJECTIVES}


def killed_at(call: int, function: Any) -> Any:
    """`function`, whose call of this number stands for a killed process."""
    calls = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return wrapped


def law(policy: TaggedPolicy, prompt: str) -> list[float]:
    """Probabilities of the words of the vocabulary as the first token."""
    ids = torch.tensor(policy.prompt_ids([prompt]))
    return policy.next_token_logprobs(ids, torch.ones_like(ids))[0].exp()[: len(WORDS)].tolist()


def share(policy: TaggedPolicy, reference: str, weights: Sequence[float]) -> float:
    """Regret at `weights` over the reference's, both averaged over the prompts."""
    ours, theirs = 0.0, 0.0
    for prompt in PROMPTS:
        ref = next_distribution(reference, prompt)
        best = optimum(ref, scalarised(prompt, weights), beta=BETA)
        ours += BETA * kl(law(policy, prompt), best)
        theirs += BETA * kl(ref, best)
    return ours / theirs


def among_four(policy: ModelPolicy, prompt: str) -> list[float]:
    """Probabilities of the four responses with their end token, among themselves: what pairs can identify."""
    logp = policy.sequence_logprobs([prompt] * 4, [f" {word}" for word in RESPONSES])
    total = math.log(sum(math.exp(x) for x in logp))
    return [math.exp(x - total) for x in logp]


def pair_share(policy: ModelPolicy, reference: str, weights: Sequence[float]) -> float:
    """The regret share among the four responses."""
    ours, theirs = 0.0, 0.0
    for prompt in PROMPTS:
        ref = among_four(ModelPolicy(reference), prompt)
        rewards = [
            sum(w * reward(n, prompt, word) for w, n in zip(weights, OBJECTIVES, strict=True)) for word in RESPONSES
        ]
        best = optimum(ref, rewards, beta=BETA)
        ours += BETA * kl(among_four(policy, prompt), best)
        theirs += BETA * kl(ref, best)
    return ours / theirs


def mean_reward(policy: TaggedPolicy, name: str) -> float:
    """E[r] of one objective, averaged over the prompts."""
    return sum(
        sum(p * reward(name, prompt, word) for p, word in zip(law(policy, prompt), WORDS, strict=True))
        for prompt in PROMPTS
    ) / len(PROMPTS)
