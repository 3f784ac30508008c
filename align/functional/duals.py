"""The multipliers of a constrained problem, solved from samples of the reference: its dual is convex and one short sum.

The problem is `max E[r] - beta KL(pi || ref)` subject to `E[g_k] >= d_k` for every k. For multipliers lambda >= 0 the
best policy is `ref exp((r + lambda . g) / beta)`, so the dual (Huang et al. 2024, arXiv 2405.19544) is

    D(lambda) = beta E_x log E_ref[exp((r + lambda . g) / beta)] - lambda . d,

whose slope in lambda_k is `E_pi[g_k] - d_k`. Its minimum over lambda >= 0 is the value of the constrained optimum.
Legend: P prompts, N responses of each, K constraints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp


@dataclass(frozen=True)
class Dual:
    """The minimum of D, and what the samples say of the policy there.

    `expected` (K,) is `E_pi[g_k]`, `value` D itself in reward units. `effective` (P,) counts the samples of each prompt
    that carry the estimate, `1 / sum p^2` of their weights p under the policy: near 1, they cannot say much.
    """

    multipliers: tuple[float, ...]
    expected: tuple[float, ...]
    value: float
    effective: tuple[float, ...]


def solved(
    rewards_PN: np.ndarray,
    constrained_PNK: np.ndarray,
    thresholds_K: np.ndarray,
    *,
    beta: float,
    maximum: float,
    log_mass_PN: np.ndarray | None = None,
) -> Dual:
    """The minimum of D over [0, maximum]^K, by L-BFGS-B from 0; where d_k is out of reach, at `maximum`.

    Rewards in their own units, beta in them per nat. `log_mass_PN` is the log-probability of each response where all of
    them are listed; without it they are samples of the reference, each with 1 / N, and -inf there leaves one out.
    ValueError for a beta or maximum not above 0, and for values that are not finite.
    """
    from scipy.optimize import minimize

    if not (beta > 0 and maximum > 0):
        raise ValueError(f"beta and maximum must be above 0, not {beta} and {maximum}")
    if not all(np.isfinite(a).all() for a in (rewards_PN, constrained_PNK, thresholds_K)):
        raise ValueError("rewards and thresholds must be finite numbers")
    masses_PN = np.zeros(rewards_PN.shape) if log_mass_PN is None else log_mass_PN
    base_PN = rewards_PN / beta + masses_PN - logsumexp(masses_PN, axis=1, keepdims=True)

    def policy(multipliers_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(P,) log-partitions and (P, N) probabilities of the best policy for fixed multipliers."""
        logits_PN = base_PN + constrained_PNK @ multipliers_K / beta
        log_z_P = logsumexp(logits_PN, axis=1)
        return log_z_P, np.exp(logits_PN - log_z_P[:, None])

    def dual(multipliers_K: np.ndarray) -> tuple[float, np.ndarray]:
        log_z_P, p_PN = policy(multipliers_K)
        slope_K = np.einsum("pn,pnk->pk", p_PN, constrained_PNK).mean(0) - thresholds_K
        return float(beta * log_z_P.mean() - multipliers_K @ thresholds_K), slope_K

    count = len(thresholds_K)
    found = minimize(
        dual, np.zeros(count), jac=True, method="L-BFGS-B", bounds=[(0.0, maximum)] * count,
        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000},
    )  # fmt: skip
    _, p_PN = policy(found.x)
    value, slope_K = dual(found.x)
    expected_K = slope_K + thresholds_K
    return Dual(tuple(found.x.tolist()), tuple(expected_K.tolist()), value, tuple((1 / (p_PN**2).sum(1)).tolist()))
