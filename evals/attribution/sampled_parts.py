"""The four parts of a drop (`align/functional/parts.py`) from judged samples of what cannot be enumerated; pure.

Samples of one prompt may come from any of five distributions: the policy on the plain and on the shifted prompt, the
reference on the plain prompt, its matched control and the shifted prompt. Each response is scored under all five, so
that every sample serves every term: weights are `p(y) / q(y)` with q the mixture that was drawn from (the balance
heuristic of Veach and Guibas 1995), self-normalised (Owen 2013, chapter 9), and the bias of order 1/N is taken off by a
jackknife over samples. An untouched reference is its own transported policy, weight by weight: its mismatched part is
0. Weights that degenerate make a part worth nothing, so that it has a number only where every prompt has an effective
sample size of at least `LEAST`. What no sample shows, no weight can: a rare response that only the optimum prefers
stays unseen. Legend: N samples of one prompt, whatever they were drawn from.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np

from evals.items import Json
from evals.stats.intervals import clustered_mean

LEAST = 30.0  # effective samples that a prompt needs in each weighted mean of a part (docs/attribution.md)
ALIKE = "null: all responses to a prompt scored the same, so nothing is known of what others are worth"
SOURCES = ("policy_plain", "policy_shifted", "reference_plain", "reference_control", "reference_shifted")
CONDITIONS = ("plain", "control", "shifted")
# the weighted means that each part is made of: the optimum under three references, the policy, the transported policy
NEEDS = {
    "drop": ("policy_plain", "policy_shifted"),
    "reward_drop": ("policy_plain", "policy_shifted"),
    "surface": ("optimum_plain", "optimum_control"),
    "competing": ("optimum_control", "optimum_shifted"),
    "carried_over": ("optimum_plain", "optimum_shifted", "policy_plain", "transported"),
    "mismatched": ("policy_shifted", "transported"),
}


@dataclass(frozen=True)
class Pool:
    """Judged samples of one prompt: `values_N` w.r, `logp` source -> (N,) log-probabilities of the whole responses.

    `drawn` source -> how many of the N were drawn from it. A response under a spelling is that response spelt so.
    """

    values_N: np.ndarray
    logp: Mapping[str, np.ndarray]
    drawn: Mapping[str, int]

    def __post_init__(self) -> None:
        n = len(self.values_N)
        if set(self.logp) != set(SOURCES) or any(logp_N.shape != (n,) for logp_N in self.logp.values()):
            raise ValueError(f"each of {', '.join(SOURCES)} needs a log-probability for each of {n} samples")
        if not set(self.drawn) <= set(SOURCES) or sum(self.drawn.values()) != n or n < 2:
            raise ValueError(f"{n} samples, drawn from {dict(self.drawn)}: name a source for each, at least 2 samples")


@dataclass(frozen=True)
class Estimate:
    """Part -> its estimate on one prompt, in units of reward, and part -> effective sample size of its worst mean."""

    parts: Mapping[str, float]
    ess: Mapping[str, float]


def estimate(pool: Pool, *, beta: float) -> Estimate:
    """The parts of one prompt; ValueError for a beta that is not positive or an implicit reward that is infinite."""
    if beta <= 0:
        raise ValueError(f"beta must be positive, not {beta}")
    r, logp = pool.values_N, pool.logp
    mixed = np.logaddexp.reduce([logp[s] + np.log(n / len(r)) for s, n in pool.drawn.items() if n], axis=0)
    implicit = {c: _implicit(logp[f"policy_{c}"], logp[f"reference_{c}"]) for c in CONDITIONS[::2]}
    means = {f"optimum_{c}": _Weighted(logp[f"reference_{c}"] - mixed + r / beta) for c in CONDITIONS}
    means |= {f"policy_{c}": _Weighted(logp[f"policy_{c}"] - mixed) for c in CONDITIONS[::2]}
    means["transported"] = _Weighted(logp["reference_shifted"] - mixed + implicit["plain"])
    mass = {c: _Weighted(logp[f"reference_{c}"] - mixed) for c in CONDITIONS}
    best = {c: beta * (means[f"optimum_{c}"].log_total - mass[c].log_total) for c in CONDITIONS}
    value = {c: _value(means[f"policy_{c}"], mass[c], r - beta * u, beta) for c, u in implicit.items()}
    carried = _value(means["transported"], mass["shifted"], r - beta * implicit["plain"], beta)
    rewards = [means[f"policy_{c}"].mean(r) for c in CONDITIONS[::2]]
    found = {
        "drop": value["plain"] - value["shifted"],
        "reward_drop": rewards[0] - rewards[1],
        "surface": best["plain"] - best["control"],
        "competing": best["control"] - best["shifted"],
        "carried_over": (best["shifted"] - carried) - (best["plain"] - value["plain"]),
        "mismatched": carried - value["shifted"],
    }
    ess = {part: min(means[name].ess for name in names) for part, names in NEEDS.items()}
    return Estimate({part: _jackknifed(values) for part, values in found.items()}, ess)


def _value(weighted: _Weighted, mass: _Weighted, net_N: np.ndarray, beta: float) -> np.ndarray:
    """`J = E[r - beta u] + beta log Z` of the policy `ref e^u / Z`, Z from the same samples, also where it is known.

    So the optimum has a regret of exactly 0, and a policy that is its own transported one a mismatched part of 0.
    """
    return weighted.mean(net_N) + beta * (weighted.log_total - mass.log_total)


def _implicit(policy_N: np.ndarray, reference_N: np.ndarray) -> np.ndarray:
    """(N,) `log pi / ref`, -inf where the policy has no mass."""
    if np.any(np.isfinite(policy_N) & ~np.isfinite(reference_N)):
        raise ValueError("the policy has mass where the reference has none: its implicit reward is infinite")
    return np.where(np.isfinite(policy_N), policy_N - np.where(np.isfinite(reference_N), reference_N, 0.0), -np.inf)


class _Weighted:
    """Sums with given log-weights over all samples (entry 0), then over all but each one (entries 1 to N)."""

    def __init__(self, logits_N: np.ndarray) -> None:
        self.top = float(logits_N.max())
        self.w_N = np.exp(logits_N - self.top) if np.isfinite(self.top) else np.zeros(len(logits_N))
        self.totals = _without_each(self.w_N)

    @property
    def log_total(self) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return self.top + np.log(self.totals)

    @property
    def ess(self) -> float:
        squares = float((self.w_N**2).sum())
        return float(self.totals[0] ** 2 / squares) if squares else 0.0

    def mean(self, values_N: np.ndarray) -> np.ndarray:
        terms_N = self.w_N * np.where(self.w_N > 0, values_N, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return _without_each(terms_N) / self.totals


def _without_each(terms_N: np.ndarray) -> np.ndarray:
    total = terms_N.sum()
    return np.concatenate([[total], total - terms_N])


def _jackknifed(values: np.ndarray) -> float:
    n = len(values) - 1
    return float(n * values[0] - (n - 1) * values[1:].mean())


def sampled_parts(
    pools: Mapping[str, Pool], *, beta: float, clusters: Mapping[str, Hashable] | None = None, least: float = LEAST
) -> Json:
    """Part -> `{value, ci, over, n, ess}`: the mean over prompts, with a t interval over base items.

    What chance does inside a prompt differs from prompt to prompt, so that the interval covers it, too. `ess` is the
    least over prompts; where it is below `least`, value and interval are null, and `over` says why. So they all are
    where no prompt shows two responses of different reward: 0 without a width would be what was not drawn.
    """
    found = {prompt: estimate(pool, beta=beta) for prompt, pool in pools.items()}
    labels = [prompt if clusters is None else clusters[prompt] for prompt in found]
    flat = all(np.ptp(pool.values_N) == 0 for pool in pools.values())
    result: Json = {}
    for part in NEEDS:
        ess = min(one.ess[part] for one in found.values())
        if flat or ess < least:
            reason = f"null: the weights degenerate ({ess:.1f} effective samples in the worst prompt, {least:g} needed)"
            reason = ALIKE if flat else reason
            result[part] = {"value": None, "ci": None, "over": reason, "n": len(set(labels)), "ess": ess}
        else:
            mean = clustered_mean([one.parts[part] for one in found.values()], clusters_N=labels)
            result[part] = {**mean.stated, "ess": ess}
    return result
