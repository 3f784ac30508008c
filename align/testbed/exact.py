"""Exact outcomes of a policy on one prompt: leaf distribution, expected rewards, KL to the reference, J.

Leaves are the well-formed responses (node, end token) and every (valid prefix, malformed token); nothing is lumped or
renormalised. Legend: N nodes, V vocabulary, K objectives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from align.policies.base import Component, TokenPolicy
from align.testbed.responses import gold_rewards, level_starts
from align.testbed.vocabulary import END_ID, alphabet_ids, encode, vocabulary
from align.testbed.world import Prompt, World

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TreePolicy(Protocol):
    """A policy that gives its next-token distribution at every node, or its leaf distribution itself."""

    @property
    def name(self) -> str: ...

    @property
    def samples_per_response(self) -> int: ...

    def leaf_logprobs(self, world: World, prompt: Prompt) -> torch.Tensor:
        """(N, V) float64 log-probability of every leaf, -inf at inner branches."""
        ...


def leaves_from_nodes(node_logp_NV: torch.Tensor, *, alphabet: tuple[int, ...], max_tokens: int) -> torch.Tensor:
    """(N, V) log-probability of each leaf by the chain rule; inner branches (valid continuations) become -inf."""
    starts = level_starts(max_tokens)
    ids = torch.tensor(alphabet)
    leaf_NV = node_logp_NV.clone()
    reach = torch.zeros(1, dtype=node_logp_NV.dtype)
    for depth in range(max_tokens + 1):
        level = slice(starts[depth], starts[depth + 1])
        leaf_NV[level] += reach[:, None]
        if depth < max_tokens:
            reach = leaf_NV[level][:, ids].flatten()
            leaf_NV[level, alphabet[0] : alphabet[-1] + 1] = -torch.inf
    return leaf_NV


class ExactPolicy:
    """A token-level policy (a model, a tagged or a mixed one) as a tree policy.

    Its components are read at every node, each behind its own prefix, and mixed as the policy mixes them. Tokens beyond
    the world's vocabulary (preference tags) are not generated: the distribution is renormalised without them.
    """

    def __init__(self, policy: TokenPolicy, *, name: str | None = None) -> None:
        self.policy, self.name = policy, name or policy.name
        self.samples_per_response = policy.samples_per_response

    def leaf_logprobs(self, world: World, prompt: Prompt) -> torch.Tensor:
        from align.testbed.tree import node_logprobs

        depth, alphabet = world.config.max_tokens, alphabet_ids(prompt.spelling)
        words = len(vocabulary(world.config.spellings))
        tables = []
        for part in self.policy.components():
            ids = [*part.prefix, *encode(prompt.text)]
            nodes_NV = node_logprobs(part.model.eval(), ids, alphabet=alphabet, max_tokens=depth)
            extended = nodes_NV.shape[1] > words
            tables.append(nodes_NV[:, :words].log_softmax(-1) if extended else nodes_NV)
        return leaves_from_nodes(self.policy.mix(tables), alphabet=alphabet, max_tokens=depth)


class ExactModel(ExactPolicy):
    """A causal LM in memory as a tree policy."""

    def __init__(self, model: PreTrainedModel, *, name: str) -> None:
        self.model = model.eval()
        super().__init__(_InMemory(model, name))


@dataclass
class _InMemory:
    model: PreTrainedModel
    name: str
    samples_per_response: int = 1

    def components(self) -> list[Component]:
        return [Component(self.model)]

    def mix(self, logp: Sequence[torch.Tensor]) -> torch.Tensor:
        return logp[0]


@dataclass(frozen=True)
class Outcome:
    """Exact numbers of one policy on one prompt.

    (K,) expected gold rewards, KL to the reference in nats, malformed mass.
    """

    values: tuple[float, ...]
    kl: float
    malformed: float

    def objective_value(self, weights: Iterable[float], *, beta: float) -> float:
        """J = w . E[r] - beta KL."""
        return sum(w * v for w, v in zip(weights, self.values, strict=True)) - beta * self.kl


@lru_cache(maxsize=128)
def _rewards(world: World, prompt: Prompt) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(gold_rewards(world, prompt.topic)))


def outcome(world: World, prompt: Prompt, leaf_NV: torch.Tensor, reference_NV: torch.Tensor) -> Outcome:
    """Exact outcome of a leaf distribution against the reference's; ValueError when its mass is not 1 (1e-9)."""
    p_NV = leaf_NV.exp()
    mass = float(p_NV.sum())
    if abs(mass - 1) > 1e-9:
        raise ValueError(f"leaf probabilities on {prompt.text!r} sum to {mass!r}, not 1")
    ended_N = p_NV[:, END_ID]
    malformed = mass - float(ended_N.sum())
    values_K = ended_N @ _rewards(world, prompt) + malformed * world.config.malformed_reward
    log_ratio_NV = torch.where(p_NV > 0, leaf_NV - reference_NV, 0.0)
    return Outcome(tuple(values_K.tolist()), float((p_NV * log_ratio_NV).sum()), malformed)
