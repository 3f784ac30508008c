"""The optimal value V*_w of a prompt from scored samples of its reference, and the regression on it (A*-PO).

With responses y_i of the reference and `J_w = E[w . r] - beta KL(pi || ref)`, the optimum is
`pi*_w = ref exp((w . r - V*_w) / beta)` and its value (stage 1 of Brantley et al. 2025, arXiv 2505.20686)

    V*_w(x) = beta log E_ref[exp(w . r(x, y) / beta)],

a log-mean over the samples: one score per sample and objective serves all w. `w . r - V*_w` is the optimal advantage,
and `beta log(pi*_w / ref)` equals it for every response, which is what a policy is regressed on.
Legend: M prompts, each with a w, N samples of each, K objectives, B responses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logsumexp

if TYPE_CHECKING:
    from torch import Tensor


def optimal_values(
    rewards_MNK: np.ndarray, weights_MK: np.ndarray, *, beta: float, log_mass_MN: np.ndarray | None = None
) -> np.ndarray:
    """(M,) V*_w in reward units, beta in them per nat.

    `log_mass_MN` is the log-probability of each response where all of them are listed; without it they are samples of
    the reference, each with 1 / N, and -inf there leaves one out. ValueError for a beta not above 0 and for rewards
    that are not finite.
    """
    if not beta > 0 or not np.isfinite(rewards_MNK).all():
        raise ValueError(f"beta must be above 0, not {beta}, and rewards finite numbers")
    masses_MN = np.zeros(rewards_MNK.shape[:2]) if log_mass_MN is None else log_mass_MN
    scaled_MN = np.einsum("mnk,mk->mn", rewards_MNK, weights_MK) / beta
    return beta * (logsumexp(scaled_MN + masses_MN, axis=1) - logsumexp(masses_MN, axis=1))


def optimal_advantages(
    rewards_MNK: np.ndarray, weights_MK: np.ndarray, *, beta: float, log_mass_MN: np.ndarray | None = None
) -> np.ndarray:
    """(M, N) `w . r - V*_w`, in reward units; arguments and errors as `optimal_values`."""
    values_M = optimal_values(rewards_MNK, weights_MK, beta=beta, log_mass_MN=log_mass_MN)
    return np.einsum("mnk,mk->mn", rewards_MNK, weights_MK) - values_M[:, None]


def squared_residuals(logp_B: Tensor, *, reference_B: Tensor, advantage_B: Tensor, beta: float) -> Tensor:
    """(B,) `(beta [log pi - log ref] - A*)^2` in squared reward units; log-probabilities of whole responses, in nats.

    Stage 2 of Brantley et al. 2025, at weights w. It is 0 for every response exactly where pi is pi*_w.
    """
    return (beta * (logp_B - reference_B) - advantage_B).square()
