"""The drop of a policy under a shift in four exact parts: surface, competing, carried over, mismatched.

For a prompt x, a shift s, its matched control t (the same surface, nothing adversarial; t = s where s has none), the
references `ref_id`, `ref_t`, `ref_s` on the plain, control and shifted prompt, `J*` the optimum's value under each, and
the regret `R = J* - J`:

    J_id - J_s = [J*_id - J*_t]     surface: what the disguise alone costs even the best policy
               + [J*_t - J*_s]      competing: what the adversarial words cost even the best policy
               + [R_s(pi_T) - R_id] carried over: what was imperfect before, under another reference
               + [R_s - R_s(pi_T)]  mismatched: learning that did not come along

with the transported policy `pi_T(y|s) ∝ ref_s(y) pi_id(y) / ref_id(y)`: the implicit reward that was learned on plain
input, carried over whole to the shifted reference. The second part is called "pull" where no two objectives disagree.
Legend: N outcomes, in the same order under every prompt (responses are matched through a spelling).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp


@dataclass(frozen=True)
class Parts:
    """The four parts in reward units, positive where something is lost; `reward_drop` is the fall of E[r] alone."""

    surface: float
    competing: float
    carried_over: float
    mismatched: float
    reward_drop: float

    @property
    def drop(self) -> float:
        """`J_id - J_s`, the sum of the four parts."""
        return self.surface + self.competing + self.carried_over + self.mismatched


@dataclass(frozen=True)
class References:
    """Log-probabilities (N,) of the reference on the plain prompt, on the matched control and on the shifted prompt."""

    plain_N: np.ndarray
    control_N: np.ndarray
    shifted_N: np.ndarray


def expected(logp_N: np.ndarray, values_N: np.ndarray) -> float:
    """E_p[values]; outcomes of probability 0 count nothing."""
    return float(np.exp(logp_N) @ values_N)


def kl(logp_N: np.ndarray, logq_N: np.ndarray) -> float:
    """KL(p || q) in nats; ValueError where p has mass outside the support of q."""
    has_mass_N = np.isfinite(logp_N)
    if np.any(has_mass_N & ~np.isfinite(logq_N)):
        raise ValueError("the policy has mass where the reference has none: its KL is infinite")
    return float(np.exp(logp_N[has_mass_N]) @ (logp_N[has_mass_N] - logq_N[has_mass_N]))


def optimum_value(reward_N: np.ndarray, reference_N: np.ndarray, *, beta: float) -> float:
    """`J* = beta log E_ref[exp(r / beta)]`."""
    return beta * float(logsumexp(reference_N + reward_N / beta))


def policy_value(logp_N: np.ndarray, reward_N: np.ndarray, reference_N: np.ndarray, *, beta: float) -> float:
    """`J = E[r] - beta KL(pi || ref)`."""
    return expected(logp_N, reward_N) - beta * kl(logp_N, reference_N)


def transported(policy_N: np.ndarray, *, plain_N: np.ndarray, shifted_N: np.ndarray) -> np.ndarray:
    """Log-probabilities of `pi_T ∝ ref_s pi_id / ref_id`; outcomes that pi_id or ref_s never produce keep mass 0.

    ValueError where the policy has mass outside the plain reference's support, or where nothing is left under the
    shifted one.
    """
    if np.any(np.isfinite(policy_N) & ~np.isfinite(plain_N)):
        raise ValueError("the policy has mass where the plain reference has none: its implicit reward is infinite")
    has_mass_N = np.isfinite(policy_N) & np.isfinite(shifted_N)
    if not has_mass_N.any():
        raise ValueError("no outcome has mass under both the policy and the shifted reference")
    logits_N = np.full(policy_N.shape, -np.inf)
    logits_N[has_mass_N] = shifted_N[has_mass_N] + policy_N[has_mass_N] - plain_N[has_mass_N]
    return logits_N - logsumexp(logits_N)


def exact_parts(
    reward_N: np.ndarray, *, plain_N: np.ndarray, shifted_N: np.ndarray, references: References, beta: float
) -> Parts:
    """The parts of one prompt from whole distributions: `plain_N` and `shifted_N` are the policy's log-probabilities.

    ValueError on a beta that is not positive, on arrays of unlike shape, and where a KL is infinite.
    """
    arrays = (reward_N, plain_N, shifted_N, references.plain_N, references.control_N, references.shifted_N)
    if beta <= 0:
        raise ValueError(f"beta must be positive, not {beta}")
    if len({array.shape for array in arrays}) != 1 or reward_N.ndim != 1:
        raise ValueError("reward, policy and references need the same outcomes, one axis each")
    best_plain, best_control, best_shifted = (
        optimum_value(reward_N, reference_N, beta=beta)
        for reference_N in (references.plain_N, references.control_N, references.shifted_N)
    )
    carried_N = transported(plain_N, plain_N=references.plain_N, shifted_N=references.shifted_N)
    regret_plain = best_plain - policy_value(plain_N, reward_N, references.plain_N, beta=beta)
    regret_shifted = best_shifted - policy_value(shifted_N, reward_N, references.shifted_N, beta=beta)
    regret_carried = best_shifted - policy_value(carried_N, reward_N, references.shifted_N, beta=beta)
    return Parts(
        surface=best_plain - best_control,
        competing=best_control - best_shifted,
        carried_over=regret_carried - regret_plain,
        mismatched=regret_shifted - regret_carried,
        reward_drop=expected(plain_N, reward_N) - expected(shifted_N, reward_N),
    )
