"""Policies given in closed form from the reference's leaves: pi*, its perturbations, soft and hard best-of-n, controls.

They go through the same evaluator as any model. Legend: N nodes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from align.preferences import Weights
from align.testbed.exact import TreePolicy
from align.testbed.responses import gold_rewards, node_tokens
from align.testbed.vocabulary import END_ID, vocabulary
from align.testbed.world import Prompt, World

RewardTable = Callable[[World, Prompt], torch.Tensor]


def gold_table(world: World, prompt: Prompt, weights: Weights) -> torch.Tensor:
    """(N, V) scalarised gold reward of every leaf."""
    reward_N = torch.from_numpy(gold_rewards(world, prompt.topic) @ np.array(weights.values))
    return leaf_table(world, reward_N, malformed=world.config.malformed_reward)


def length_table(world: World, prompt: Prompt) -> torch.Tensor:
    """(N, V) reward of a length-only reward model.

    The share of the longest response; malformed leaves get its minimum.
    """
    length_N = torch.from_numpy((node_tokens(world.config.max_tokens) >= 0).sum(1) / world.config.max_tokens)
    return leaf_table(world, length_N, malformed=0.0)


def leaf_table(world: World, ended_N: torch.Tensor, *, malformed: float) -> torch.Tensor:
    """(N, V) rewards of leaves: (N,) for ending well at each node, one constant for whatever else follows it."""
    table_NV = torch.full((len(ended_N), len(vocabulary(world.config.spellings))), malformed, dtype=torch.float64)
    table_NV[:, END_ID] = ended_N
    return table_NV


@dataclass(frozen=True)
class Tilted:
    """The tilted reference `ref(y) exp(reward(y) / beta)`, renormalised; then raised to 1 / temperature if asked.

    With the scalarised gold reward and the world's beta this is pi*_w; with a smaller beta the KL overspender; with the
    length table the best any method could do on a length-only reward model.
    """

    reference: TreePolicy
    reward: RewardTable
    beta: float
    name: str
    temperature: float = 1.0
    samples_per_response: int = 1

    def leaf_logprobs(self, world: World, prompt: Prompt) -> torch.Tensor:
        logits_NV = self.reference.leaf_logprobs(world, prompt) + self.reward(world, prompt) / self.beta
        logits_NV = (logits_NV - logits_NV.logsumexp((0, 1))) / self.temperature
        return logits_NV - logits_NV.logsumexp((0, 1))


@dataclass(frozen=True)
class SoftBestOfN:
    """Draw n reference responses, return one with probability proportional to exp(reward / beta): in closed form.

    The law of the returned leaf is exact for the leaves' reward classes: with n - 1 other draws,
    p(y) = n ref(y) e^{r(y)/beta} E[1 / (e^{r(y)/beta} + S_{n-1})], S the sum of the others' tilts. The expectation over
    the multinomial counts of C classes is integrated as 1/x = int_0^inf e^{-xt} dt, since
    E[e^{-tS}] = (E[e^{-t e^{r/beta}}])^{n-1}.
    Every response costs n samples and n scores: `samples_per_response` says so.
    """

    reference: TreePolicy
    reward: RewardTable
    beta: float
    n: int
    name: str

    @property
    def samples_per_response(self) -> int:
        return self.n

    def leaf_logprobs(self, world: World, prompt: Prompt) -> torch.Tensor:
        ref_NV = self.reference.leaf_logprobs(world, prompt)
        reward_NV = self.reward(world, prompt)
        values_C, inverse = torch.unique(reward_NV, return_inverse=True)
        mass_C = torch.zeros_like(values_C).index_add_(0, inverse.flatten(), ref_NV.exp().flatten())
        gain_C = soft_best_of_n_gain(values_C.numpy(), mass_C.numpy(), beta=self.beta, n=self.n)
        leaf_NV = ref_NV + torch.from_numpy(np.log(gain_C))[inverse]
        return leaf_NV - leaf_NV.logsumexp((0, 1))


def soft_best_of_n_gain(reward_C: np.ndarray, mass_C: np.ndarray, *, beta: float, n: int) -> np.ndarray:
    """(C,) likelihood ratio p_bon / p_ref of each reward class under soft best-of-n.

    g(c) = n a_c int_0^inf e^{-a_c t} (sum_b m_b e^{-a_b t})^{n-1} dt, a = exp((r - max r) / beta), by the trapezoidal
    rule in log t (relative error below 1e-9 on 4,000 nodes; the caller renormalises).
    """
    if n < 1:
        raise ValueError(f"best-of-n needs n >= 1, not {n}")
    if np.ptp(reward_C) / beta > 600:
        raise ValueError(f"rewards span {np.ptp(reward_C):g} at beta {beta:g}: the smallest tilt is no number any more")
    tilt_C = np.exp((reward_C - reward_C.max()) / beta)
    mass_C = mass_C / mass_C.sum()
    log_t = np.linspace(np.log(1e-12 / n), np.log(60 / tilt_C.min()), 4000)
    t = np.exp(log_t)
    others = (np.exp(-np.outer(t, tilt_C)) @ mass_C) ** (n - 1)
    integrand = n * tilt_C[:, None] * np.exp(-np.outer(tilt_C, t)) * others * t
    return np.trapezoid(integrand, log_t, axis=1)


@dataclass(frozen=True)
class HardBestOfN:
    """Draw n reference responses, return the one of the largest reward, uniformly among equals: in closed form.

    With F the reference's distribution function of the reward and F(r-) its mass below r,
    p(y) = ref(y) [F(r)^n - F(r-)^n] / (F(r) - F(r-)): the maximum of n draws falls into the class of r with the
    bracket's probability, and within a class each response keeps its share (draws are exchangeable). Rewards are equal
    when they agree to 12 decimals. Every response costs n samples and n scores: `samples_per_response` says so.
    """

    reference: TreePolicy
    reward: RewardTable
    n: int
    name: str

    @property
    def samples_per_response(self) -> int:
        return self.n

    def leaf_logprobs(self, world: World, prompt: Prompt) -> torch.Tensor:
        ref_NV = self.reference.leaf_logprobs(world, prompt)
        reward_NV = self.reward(world, prompt).round(decimals=12)
        values_C, inverse = torch.unique(reward_NV, return_inverse=True)  # rising
        mass_C = torch.zeros_like(values_C).index_add_(0, inverse.flatten(), ref_NV.exp().flatten())
        leaf_NV = ref_NV + hard_best_of_n_gain(mass_C, n=self.n).log()[inverse]
        return leaf_NV - leaf_NV.logsumexp((0, 1))


def hard_best_of_n_gain(mass_C: torch.Tensor, *, n: int) -> torch.Tensor:
    """(C,) likelihood ratio p_bon / p_ref of each reward class, from the classes' masses in rising order of reward.

    [F^n - G^n] / (F - G) = sum_{k<n} F^k G^{n-1-k}, F the mass up to the class and G the mass below it: a sum of
    positive terms, which loses nothing where a class's mass F - G is tiny. ValueError for n below 1.
    """
    if n < 1:
        raise ValueError(f"best-of-n needs n >= 1, not {n}")
    up_to_C = (mass_C / mass_C.sum()).cumsum(0)
    below_C = torch.cat([torch.zeros_like(up_to_C[:1]), up_to_C[:-1]])
    power = torch.arange(n, dtype=mass_C.dtype)
    return (up_to_C[:, None] ** power * below_C[:, None] ** (n - 1 - power)).sum(1)
