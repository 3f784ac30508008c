"""RDPO (Bai et al. 2026, arXiv 2605.13641): ranks as normal quantiles, whitened, weighted; its fixed point.

The limit of large groups. On one prompt, under the policy: `q_k = Phi^-1(F_k(r_k -) + P_k(r_k) / 2)`, the normal score
of the mid-rank; `z = C^-1/2 (q - E q)` with the covariance C of q over the objectives that vary (Mahalanobis whitening
of the active subspace); A = w.z, divided by its spread over the batch as GDPO's is. This is the paper's summary: its
factor for magnitudes is not in it and not here; whitening takes out any factor of one prompt but for a rotation.
Legend: P prompts of one batch, M leaves, K objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from align.testbed.theory.fixed_points import FixedPoint, Tree, of_advantages
from align.testbed.theory.group_advantages import EPS

CERTAIN = 1e-12  # ranks are kept this far from 0 and 1, whose quantiles are infinite


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


def rdpo(
    tree: Tree, *, weights: Sequence[float], beta: float, kl: str = "loss", tolerance: float = 1e-8,
    max_iterations: int = 4000,
) -> FixedPoint:  # fmt: skip
    """The fixed point that an infinitely slow training run reaches from the reference (see `fixed_points.fixed_point`).

    No tilt of the rewards gives it: the advantage is a curve of each reward. Where `max_iterations` do not suffice, the
    residual says so.
    """
    target_of = partial(advantages, ranks=below(tree.leaf_rewards), weights=np.asarray(weights, float))
    return of_advantages(
        tree, target_of, beta=beta, kl=kl, part=1 / 10, tolerance=tolerance, max_iterations=max_iterations
    )
