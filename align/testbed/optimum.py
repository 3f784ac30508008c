"""The exact optimum of a world: pi*_w, its front and KL, and matched-KL fronts.

pi*_w(y|x) is proportional to pi_ref(y|x) exp(w . r(x, y) / beta), so it depends on the reference only through the
mass of each distinct reward vector: prompts are summarised once, and every optimum after that costs microseconds.
Legend: P prompts, C reward classes, K objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from align.preferences import Weights
from align.testbed.responses import gold_rewards
from align.testbed.vocabulary import END_ID
from align.testbed.world import Prompt, World


@dataclass(frozen=True)
class RewardClasses:
    """The reference's mass on each distinct reward vector of one prompt: rewards (C, K), log-masses (C,)."""

    rewards_CK: np.ndarray
    log_mass_C: np.ndarray


@dataclass(frozen=True)
class OptimumPoint:
    """Exact numbers of pi*_w, averaged over prompts: (K,) values, KL in nats, J."""

    values: tuple[float, ...]
    kl: float
    J: float


def reward_classes(world: World, prompt: Prompt, reference_leaf_NV) -> RewardClasses:  # type: ignore[no-untyped-def]
    """Summarise the reference's leaves (N, V) of a prompt by reward vector.

    The malformed reward is a class of its own.
    """
    p_NV = reference_leaf_NV.exp()
    ended_N = p_NV[:, END_ID].numpy()
    rewards_NK = np.round(gold_rewards(world, prompt.topic), 12)
    classes_CK, inverse_N = np.unique(rewards_NK, axis=0, return_inverse=True)
    mass_C = np.bincount(inverse_N.ravel(), weights=ended_N, minlength=len(classes_CK))
    malformed_K = np.full((1, world.config.objectives), world.config.malformed_reward)
    mass = np.append(mass_C, float(p_NV.sum()) - ended_N.sum())
    return RewardClasses(np.concatenate([classes_CK, malformed_K]), np.log(np.maximum(mass, 1e-300)))


def optimum_on(classes: RewardClasses, tilt_K: np.ndarray) -> tuple[np.ndarray, float, float]:
    """(K,) values, KL and log-partition of the tilted reference `ref exp(tilt . r)` on one prompt; tilt = w / beta."""
    logits_C = classes.log_mass_C + classes.rewards_CK @ tilt_K
    top = logits_C.max()
    log_z = top + np.log(np.exp(logits_C - top).sum())
    p_C = np.exp(logits_C - log_z)
    values_K = p_C @ classes.rewards_CK
    return values_K, float(values_K @ tilt_K - log_z), float(log_z)


def optimum(prompts: Sequence[RewardClasses], weights: Weights, *, beta: float) -> OptimumPoint:
    """pi*_w averaged over prompts: J* = beta E_x[log Z_x]."""
    tilt_K = np.array(weights.values) / beta
    parts = [optimum_on(p, tilt_K) for p in prompts]
    values_K = np.mean([v for v, _, _ in parts], axis=0)
    return OptimumPoint(
        tuple(values_K.tolist()),
        float(np.mean([k for _, k, _ in parts])),
        beta * float(np.mean([z for _, _, z in parts])),
    )


def front(prompts: Sequence[RewardClasses], preferences: Sequence[Weights], *, beta: float) -> list[OptimumPoint]:
    """The exact front of J at one beta."""
    return [optimum(prompts, w, beta=beta) for w in preferences]


def front_at_kl(prompts: Sequence[RewardClasses], preferences: Sequence[Weights], *, kl: float) -> np.ndarray:
    """(N, K) values of the exact front, beta solved for at each preference so that each point spends `kl` nats.

    Where even the smallest beta tried spends less (all mass on the best responses), the point is the one at that beta.
    All preferences are solved at once, by bisection of log beta in [-7, 7].
    """
    if kl <= 0:
        raise ValueError(f"the KL to match must be positive, not {kl}")
    rewards_PCK, log_mass_PC = _padded(prompts)
    scores_NPC = np.einsum("pck,nk->npc", rewards_PCK, np.array([w.values for w in preferences]))

    def at(log_beta_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tilted_NPC = scores_NPC * np.exp(-log_beta_N)[:, None, None]
        logits_NPC = log_mass_PC + tilted_NPC
        top_NP1 = logits_NPC.max(-1, keepdims=True)
        weight_NPC = np.exp(logits_NPC - top_NP1)
        log_z_NP = top_NP1[..., 0] + np.log(weight_NPC.sum(-1))
        p_NPC = weight_NPC / weight_NPC.sum(-1, keepdims=True)
        return p_NPC, ((p_NPC * tilted_NPC).sum(-1) - log_z_NP).mean(-1)

    low_N, high_N = np.full(len(preferences), -7.0), np.full(len(preferences), 7.0)
    for _ in range(60):  # 14 / 2^60: below one unit in the last place
        middle_N = (low_N + high_N) / 2
        spends_more_N = at(middle_N)[1] > kl
        low_N, high_N = np.where(spends_more_N, middle_N, low_N), np.where(spends_more_N, high_N, middle_N)
    p_NPC, _ = at((low_N + high_N) / 2)
    return np.einsum("npc,pck->nk", p_NPC, rewards_PCK) / len(prompts)


def _padded(prompts: Sequence[RewardClasses]) -> tuple[np.ndarray, np.ndarray]:
    """(P, C, K) rewards and (P, C) log-masses; prompts with fewer classes get classes of no mass."""
    most = max(len(classes.log_mass_C) for classes in prompts)
    rewards, masses = [], []
    for classes in prompts:
        missing = most - len(classes.log_mass_C)
        rewards.append(np.pad(classes.rewards_CK, ((0, missing), (0, 0))))
        masses.append(np.pad(classes.log_mass_C, (0, missing), constant_values=-np.inf))
    return np.stack(rewards), np.stack(masses)
