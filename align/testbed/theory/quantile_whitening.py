"""RDPO (Bai et al. 2026, arXiv 2605.13641): ranks as normal quantiles, whitened, weighted; its fixed point.

The limit of large groups. On one prompt, under the policy: `q_k = Phi^-1(F_k(r_k -) + P_k(r_k) / 2)`, the normal score
of the mid-rank; `z = C^-1/2 (q - E q)` with the covariance C of q over the objectives that vary (Mahalanobis whitening
of the active subspace); A = w.z, divided by its spread over the batch as GDPO's is. This is the paper's summary: its
factor for magnitudes is not in it and not here; whitening takes out any factor of one prompt but for a rotation.
Legend: P prompts of one batch, M leaves, K objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from align.testbed.theory.fixed_points import FixedPoint, Tree, leaf_logprobs, solve
from align.testbed.theory.group_advantages import EPS

CERTAIN = 1e-12  # ranks are kept this far from 0 and 1, whose quantiles are infinite
PART = 0.25  # of the way to the advantage at the present policy, a first step; a later one is shorter
SLOWER = 300  # after so many steps half as long
FAR = 0.2  # standard deviations of log p by which a step may move a prompt's policy
MASS = 0.05  # probability that a step may give a leaf
LEAST = 1e-300


def below(rewards: np.ndarray) -> np.ndarray:
    """(..., K, M, M) how much of leaf m' counts in the mid-rank of leaf m: 1 below it, 1/2 beside it, 0 above it.

    Rewards that agree to 12 decimals are ties.
    """
    r = np.moveaxis(np.round(rewards, 12), -1, -2)
    return np.asarray((r[..., None, :] < r[..., :, None]) + 0.5 * (r[..., None, :] == r[..., :, None]))


def scores(p: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """(..., M, K) centred normal scores of the mid-ranks under p (..., M); `ranks` as `below` gives them."""
    import torch

    middle = np.einsum("...kmn,...n->...mk", ranks, p)
    q = torch.special.ndtri(torch.from_numpy(np.clip(middle, CERTAIN, 1 - CERTAIN))).numpy()
    return np.asarray(q - np.einsum("...m,...mk->...k", p, q)[..., None, :])


def whitened(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """(..., M, K) of covariance 1 under p: `q C^-1/2`, over the objectives that vary; 0 for the others."""
    covariance = np.einsum("...m,...mj,...mk->...jk", p, q, q)
    active = np.sqrt(np.einsum("...kk->...k", covariance)) > EPS
    both = active[..., :, None] & active[..., None, :]
    values, vectors = np.linalg.eigh(np.where(both, covariance, 0.0))
    inverse = np.where(values > EPS**2, 1 / (np.sqrt(np.maximum(values, 0)) + EPS), 0.0)
    root = np.einsum("...ij,...j,...kj->...ik", vectors, inverse, vectors)
    return np.asarray(np.where(active[..., None, :], q, 0.0) @ root)


def advantages(leaf_logp: np.ndarray, ranks: np.ndarray, *, weights: np.ndarray) -> np.ndarray:
    """(..., M) RDPO's advantage of every leaf at a policy."""
    p = np.exp(leaf_logp)
    found = whitened(p, scores(p, ranks)) @ weights
    spread = np.sqrt((p * found**2).sum(-1).mean(-1))
    return np.asarray(found / (spread[..., None, None] + EPS))


@dataclass(frozen=True)
class RankPoint(FixedPoint):
    """A fixed point with the (..., M) leaf log-probabilities at half of `max_iterations`: what the rest still moved."""

    halfway: np.ndarray


def rdpo(
    tree: Tree, *, weights: Sequence[float], beta: float, kl: str = "loss", tolerance: float = 1e-8,
    max_iterations: int = 3000,
) -> RankPoint:  # fmt: skip
    """The fixed point that an infinitely slow training run reaches from the reference (see `fixed_points.fixed_point`).

    No tilt of the rewards gives it: the advantage is a curve of each reward, without bound as a policy sharpens. So a
    step is short where it would move a prompt's policy by more than `FAR` (standard deviations of the log-ratio) or
    give any leaf more than `MASS`. `residual` is under the policy: the standard deviation of what one more update
    would add to the advantage, over 1 plus that of the advantage. Where a policy ends on one response its spread is
    next to nothing and the residual jitters, since nothing is left to rank; `halfway` says whether the policy moved.
    """
    ranks, w = below(tree.leaf_rewards), np.asarray(weights, float)
    advantage, halfway = np.zeros(tree.leaf_rewards.shape[:-1]), None
    for step in range(max_iterations + 1):
        conditionals = solve(tree, tree.levels(advantage), beta=beta, kl=kl)
        leaf_logp = leaf_logprobs(tree, conditionals)
        p, target = np.exp(leaf_logp), advantages(leaf_logp, ranks, weights=w)
        change = target - advantage
        change = change - (p * change).sum(-1, keepdims=True)
        spread = np.sqrt((p * change**2).sum(-1))
        residual = float((spread / (1 + np.sqrt((p * target**2).sum(-1)))).max())
        if step == max_iterations // 2:
            halfway = leaf_logp
        if residual <= tolerance or step == max_iterations:
            break
        room = beta * np.log1p(MASS / np.maximum(p, LEAST))  # up to here a leaf may rise
        furthest = np.minimum(FAR * beta / np.maximum(spread, LEAST), (room / np.maximum(change, LEAST)).min(-1))
        shrinking = PART / (1 + step / SLOWER)
        part = np.minimum(shrinking, furthest.min(-1))  # one step for a whole batch, whose spread is one
        advantage = advantage + part[..., None, None] * change
    return RankPoint(conditionals, leaf_logp, None, residual, step, leaf_logp if halfway is None else halfway)
