"""Exact outcomes of a policy on one prompt: leaf distribution, expected rewards, KL to the reference, J.

Leaves are the well-formed responses (node, end token) and every (valid prefix, malformed token); nothing is lumped or
renormalised. Legend: N nodes, V vocabulary, K objectives.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch

from align.testbed.responses import gold_rewards, level_starts
from align.testbed.vocabulary import END_ID, alphabet_ids, encode
from align.testbed.world import Prompt, World


class TreePolicy(Protocol):
    """A policy that gives its next-token distribution at every node, or its leaf distribution itself."""

    name: str
    samples_per_response: int

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


class ExactModel:
    """A causal LM as a tree policy."""

    samples_per_response = 1

    def __init__(self, model: Any, *, name: str) -> None:
        self.model, self.name = model.eval(), name

    def leaf_logprobs(self, world: World, prompt: Prompt) -> torch.Tensor:
        from align.testbed.tree import node_logprobs

        depth, alphabet = world.config.max_tokens, alphabet_ids(prompt.ciphered)
        nodes_NV = node_logprobs(self.model, encode(prompt.text), alphabet=alphabet, max_tokens=depth)
        return leaves_from_nodes(nodes_NV, alphabet=alphabet, max_tokens=depth)


@dataclass(frozen=True)
class Outcome:
    """Exact numbers of one policy on one prompt.

    (K,) expected gold rewards, KL to the reference in nats, malformed mass.
    """

    values: tuple[float, ...]
    kl: float
    malformed: float

    def objective_value(self, weights: Any, *, beta: float) -> float:
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
