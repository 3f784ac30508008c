"""Soups of low-rank specialists on log-linear policies: exact sums of weight changes against averaged LoRA factors.

A policy over N responses of P prompts is `log p = log ref + B A + const` with B (P, r) and A (r, N): what LoRA is to a
linear layer. Specialists start as LoRA does (B = 0, A random) and are trained on the exact J of their objective.
Legend: leading axes `...` are independent problems; P prompts, N responses, r rank, K objectives or specialists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MERGES = ("delta", "factors", "peft_linear", "svd")


@dataclass(frozen=True)
class Factors:
    """B (..., P, r), A (..., r, N), and the largest |gradient| of each J (...,) in either when training stopped."""

    b: np.ndarray
    a: np.ndarray
    gradient: np.ndarray

    @property
    def delta(self) -> np.ndarray:
        """(..., P, N) the weight change B A."""
        return self.b @ self.a


def log_policy(logref: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """(..., P, N) log-probabilities of `ref exp(delta)`, normalised per prompt."""
    logits = logref + delta
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def objective(logp: np.ndarray, *, logref: np.ndarray, reward: np.ndarray, beta: float) -> np.ndarray:
    """(...,) J = E[r] - beta KL(p || ref), prompts averaged."""
    return (np.exp(logp) * (reward - beta * (logp - logref))).sum(-1).mean(-1)


def _gradients(
    b: np.ndarray, a: np.ndarray, logref: np.ndarray, reward: np.ndarray, beta: float
) -> tuple[np.ndarray, np.ndarray]:
    """dJ/dB, dJ/dA: dJ/dlogits = p (f - E f) / P with f = r - beta log p/ref."""
    logp = log_policy(logref, b @ a)
    p, f = np.exp(logp), reward - beta * (logp - logref)
    g = p * (f - (p * f).sum(-1, keepdims=True)) / logp.shape[-2]
    return g @ np.swapaxes(a, -1, -2), np.swapaxes(b, -1, -2) @ g


def train(
    logref: np.ndarray,
    *,
    reward: np.ndarray,
    beta: float,
    a0: np.ndarray,
    steps: int = 1000,
    learning_rate: float = 0.05,
    polish: int = 3000,
) -> Factors:
    """The best rank-r policy reached from `B = 0, A = a0` (..., r, N): Adam with a cosine rate, then L-BFGS.

    Adam goes where LoRA training goes, which decides how a weight change is split into factors; L-BFGS takes out what
    is left of the gradient. A local optimum, as the class is not convex; `gradient` says how flat.
    """
    from scipy.optimize import minimize

    shape = np.broadcast_shapes(logref.shape[:-2], reward.shape[:-2], a0.shape[:-2])
    a = np.broadcast_to(a0, (*shape, *a0.shape[-2:])).copy()
    b = np.zeros((*shape, logref.shape[-2], a0.shape[-2]))
    state = [np.zeros_like(x) for x in (b, b, a, a)]
    for t in range(1, steps + 1):
        rate = learning_rate * 0.5 * (1 + np.cos(np.pi * (t - 1) / steps))
        for i, (x, g) in enumerate(zip((b, a), _gradients(b, a, logref, reward, beta), strict=True)):
            first, second = state[2 * i], state[2 * i + 1]
            first += 0.1 * (g - first)
            second += 0.001 * (g * g - second)
            x += rate * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    if polish:
        full_ref, full_reward = (np.broadcast_to(x, (*shape, *x.shape[-2:])) for x in (logref, reward))
        for index in np.ndindex(shape):
            size = b[index].size

            def loss(x: np.ndarray, index: tuple[int, ...] = index, size: int = size) -> tuple[float, np.ndarray]:
                bb, aa = x[:size].reshape(b[index].shape), x[size:].reshape(a[index].shape)
                value = objective(
                    log_policy(full_ref[index], bb @ aa), logref=full_ref[index], reward=full_reward[index], beta=beta
                )
                gb, ga = _gradients(bb, aa, full_ref[index], full_reward[index], beta)
                return -float(value), -np.concatenate([gb.ravel(), ga.ravel()])

            options = {"maxiter": polish, "maxfun": 2 * polish, "gtol": 1e-10, "ftol": 0.0, "maxcor": 30}
            found = np.concatenate([b[index].ravel(), a[index].ravel()])
            for _ in range(5):  # a line search may give up: begin again where it stopped
                result = minimize(loss, found, jac=True, method="L-BFGS-B", options=options)
                found = result.x
                if np.abs(result.jac).max() < 1e-8:
                    break
            b[index], a[index] = found[:size].reshape(b[index].shape), found[size:].reshape(a[index].shape)
    slopes = [np.abs(g).max((-1, -2)) for g in _gradients(b, a, logref, reward, beta)]
    return Factors(b, a, np.maximum(*slopes))


def merge(specialists: Sequence[Factors], *, weights: Sequence[float], how: str) -> np.ndarray:
    """(..., P, N) weight change of the soup.

    delta: `sum_k w_k B_k A_k` (PEFT "cat"). factors: `(sum w_k B_k)(sum w_k A_k)`, as rewarded soups' official code
    averages tensors. peft_linear: the same with sqrt(w_k) on both factors (PEFT "linear"). svd: the delta cut to the
    specialists' rank (PEFT "svd"). ValueError on anything else.
    """
    if how not in MERGES:
        raise ValueError(f"no merge {how!r}; choose {', '.join(MERGES)}")
    if how in ("factors", "peft_linear"):
        power = 1.0 if how == "factors" else 0.5
        b = sum((w**power * s.b for w, s in zip(weights, specialists, strict=True)), np.zeros(1))
        a = sum((w**power * s.a for w, s in zip(weights, specialists, strict=True)), np.zeros(1))
        return b @ a
    delta = sum((w * s.delta for w, s in zip(weights, specialists, strict=True)), np.zeros(1))
    if how == "delta":
        return np.asarray(delta)
    u, size, v = np.linalg.svd(delta, full_matrices=False)
    rank = specialists[0].a.shape[-2]
    return (u[..., :rank] * size[..., None, :rank]) @ v[..., :rank, :]
