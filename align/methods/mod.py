"""Multi-objective decoding (MOD, Shi et al. 2024): specialists of one objective each, mixed token by token.

With `pi_k` the optimum of `E[r_k] - beta_k D_f(pi || ref)`, the optimum of `E[w.r] - beta D_f(pi || ref)` has
`f'(pi/ref) = sum_k a_k f'(pi_k/ref) + const` with `a_k = w_k beta_k / beta` (theorem 2). For the reverse KL that is
`log pi = log ref + sum_k a_k (log pi_k - log ref)`; with equal betas `a = w`, the reference cancels and is not read.

This is an identity of distributions over whole responses. Decoding applies it to next-token distributions, which is the
same only where a response is one token: the product of the mixed conditionals leaves out how the normaliser of each
prefix depends on the prefix.

Deviations from the official code. Responses are sampled at temperature 1, where it searches greedily, so the mixture
must be a distribution: for forward_kl and alpha the constant is solved for at each token (`normaliser: root`), where
the code ranks by the power mean without it, and without 1/alpha; `normaliser: rescale` is that power mean divided by
its sum. The rules read log-probabilities, where its greedy branch reads raw logits (its forward KL and alpha mix
unnormalised scores), and any number of specialists, where its cache of the reference has the fixed index 2.
Data: specialists. Fixed point: token-level products; exact for one-token responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from align import checks
from align.engines import specialists
from align.engines.points import check_preferences
from align.engines.problem import Problem
from align.errors import UserError
from align.policies.mixed import NORMALISERS, MixedFamily
from align.preferences import Weights
from align.runs import Workspace, model_dir

DIVERGENCES = ("reverse_kl", "forward_kl", "alpha")
ASKED_BY = (Weights,)
FAMILY = MixedFamily


@dataclass(frozen=True, kw_only=True)
class Config(specialists.Config):
    """Where the specialists come from, and how they are mixed."""

    divergence: str = "reverse_kl"  # forward_kl and alpha are for specialists that were trained with it
    alpha: float = 0.5  # of the alpha-divergence; 1 would be forward_kl, towards 0 it becomes reverse_kl
    normaliser: str = "root"  # root: the exact constant; rescale: the published power mean (both but for reverse_kl)
    beta: float = 0.0  # of the J that is asked for; 0: that of the specialists
    betas: tuple[float, ...] = ()  # that of each specialist; empty: what its method ran at, or all equal for given ones

    def check(self, *, objectives: int) -> None:
        """UserError on a value that is no mixture, as far as it can be known before the specialists are trained."""
        super().check(objectives=objectives)
        checks.one_of(self, divergence=DIVERGENCES)
        checks.above_zero(self, "alpha")
        checks.at_least(0, self, "beta")
        checks.one_of(self, normaliser=NORMALISERS)
        if self.betas and (len(self.betas) != objectives or not min(self.betas) > 0):
            raise UserError(f"betas must be {objectives} numbers above 0, one per specialist; got {list(self.betas)}")
        if not self.beta and len(set(self.betas)) > 1:
            raise UserError("the specialists' betas differ; set beta to that of the J that is asked for")
        if self.beta and self.specialists and not self.betas:
            raise UserError("beta is set, but not that of the given specialists; set betas, one per specialist")


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> MixedFamily:
    """A mixture of one specialist per objective. It lists the problem's preferences, and answers any other, too.

    UserError without specialists, on another vocabulary among specialists and reference, and on betas that leave
    the coefficients open.
    """
    names = check_preferences(problem)
    config.check(objectives=len(names))
    parts = specialists.specialists_of(config, problem)
    gains_K = gains(config, count=len(names), trained_at=parts.beta)
    family = MixedFamily(
        method="mod",
        base=model_dir(problem.reference),
        parts=parts.models,
        gains=gains_K,
        alpha={"reverse_kl": 0.0, "forward_kl": 1.0, "alpha": config.alpha}[config.divergence],
        normaliser=config.normaliser,
        preferences=tuple(problem.preferences),
        optimises={
            w.label: describe(config, weights=w, gains_K=gains_K, origin=parts.origin) for w in problem.preferences
        },
    )
    family.pool.tokenizer([family.base, *family.parts])  # whether they share one
    return family


def gains(config: Config, *, count: int, trained_at: float | None) -> tuple[float, ...]:
    """`beta_k / beta` of each specialist: what its weight is multiplied by."""
    if not config.beta:
        return (1.0,) * count
    betas = config.betas or (trained_at,) * count
    if any(beta is None for beta in betas):
        raise UserError(f"{config.method} has no beta of its own; set betas, one per specialist")
    return tuple(float(beta or 0) / config.beta for beta in betas)


def describe(config: Config, *, weights: Weights, gains_K: Sequence[float], origin: str) -> str:
    """One line: what the mixture is, and of which J it would be the optimum."""
    parts = Weights.label_of([gain * w for gain, w in zip(gains_K, weights, strict=True)])
    exact = config.divergence == "reverse_kl" or config.normaliser == "root"
    divergence = {"reverse_kl": "KL(pi||ref)", "forward_kl": "KL(ref||pi)", "alpha": f"D_{config.alpha:g}(pi||ref)"}
    text = f"no J: next-token distributions of {origin} mixed ({config.divergence}, coefficients {parts})"
    if exact:
        beta = f"{config.beta:g}" if config.beta else "beta"
        text += (
            f"; on one-token responses the optimum of E[w.r] - {beta} {divergence[config.divergence]} at "
            f"w = {weights.label}, if each specialist is that of its objective"
        )
    if config.divergence != "reverse_kl" and not config.specialists:
        text += "; these specialists were trained with the reverse KL, so that they are not"
    return text
