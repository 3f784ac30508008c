"""Constrained reinforcement learning with Lagrange multipliers (Safe RLHF, Dai et al. 2024), on RLOO or GRPO.

Asked by `Thresholds`: maximise `E[r_m] - beta KL(pi || ref)` subject to `E[r_j] >= d_j` for each objective j that has a
threshold; a cost is an objective negated. The policy ascends
    L(pi, lambda) = E[r_m] + sum_j lambda_j (E[r_j] - d_j) - beta KL(pi || ref)
through reward weights 1 and lambda_j, while after each step every multiplier descends L: it grows exactly when the mean
of its objective over the last `window` steps is below d_j. The saddle point is the constrained optimum.

- beta is fixed beside the *unscaled* rewards, so L is the Lagrangian of the problem above. Safe RLHF divides the
  rewards by 1 + sum lambda and leaves the KL's coefficient alone, in effect beta (1 + sum lambda): its fixed point
  spends less KL than the constrained optimum at beta. `normalise: official` does that. Neither moves the coefficient
  itself.
- Dual steps, with v_j = d_j - mean: `exp` lambda *= e^(rate v); `official` log lambda += rate * lambda * v, gradient
  descent in log lambda as published, slow where lambda is small and explosive where it is large; `linear`
  lambda = max(0, lambda + rate v), the only one that reaches 0.
- What is returned is the last iterate, not an average. A dual rate that is large beside the learning rate makes
  multiplier and policy circle the saddle point; `trace` in the metrics shows it.
Further deviations from the official code: no critics, clamped rewards or PTX loss; one multiplier per constraint, not
one in all; the window counts steps of all processes, not the last 128 episodes of each.
Data: prompts. Fixed point: the constrained optimum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from align import checks
from align.engines.on_policy import trainer as onpolicy
from align.engines.on_policy.weight_control import Memory, Observed, train_point
from align.engines.points import check_preferences, train_points
from align.engines.problem import Problem
from align.errors import UserError
from align.policies.base import PointFamily
from align.preferences import Thresholds
from align.runs import Workspace

DUALS = ("exp", "official", "linear")
NORMALISATIONS = ("none", "official")
ASKED_BY = (Thresholds,)
FAMILY = PointFamily


@dataclass(frozen=True, kw_only=True)
class Config(onpolicy.AlgorithmConfig):
    """How to sample and train, rloo and grpo both with the sequence's KL and unscaled rewards; how multipliers move."""

    maximise: str = "auto"  # name of the objective to maximise; auto: the only one without a threshold
    dual: str = "exp"
    dual_rate: float = 0.1  # per step and unit of violation
    window: int = 4  # steps over whose samples a constraint is averaged
    initial_multiplier: float = 1.0
    max_multiplier: float = 20.0  # a constraint that is still violated here may be out of reach
    normalise: str = "none"


def dual_step(multiplier: float, *, violation: float, rate: float, dual: str, maximum: float) -> float:
    """The next multiplier in [0, maximum]: larger exactly when `violation` (threshold minus mean) is above 0.

    exp and official stay above 0. ValueError for an unknown kind.
    """
    if dual not in DUALS:
        raise ValueError(f"dual must be one of {', '.join(DUALS)}, not {dual!r}")
    if dual == "linear":
        return min(max(multiplier + rate * violation, 0.0), maximum)
    exponent = rate * violation * (multiplier if dual == "official" else 1.0)
    lowest = min(multiplier, 1e-12)  # exp(-large) would be 0, from where no exponent leads back
    return min(max(multiplier * math.exp(min(exponent, 700.0)), lowest), maximum)


@dataclass(frozen=True)
class Multipliers:
    """The rule: weight 1 for the objective without a threshold, the multiplier for each other."""

    names: tuple[str, ...]
    thresholds: tuple[float | None, ...]
    dual: str
    rate: float
    window: int
    initial: float
    maximum: float
    normalise: str
    reads_advantages: bool = False

    def start(self) -> Memory:
        """`multipliers` by name, and the batch means of the last `window` steps."""
        return {"multipliers": {name: self.initial for name, _ in self._constraints()}, "window": []}

    def step(self, memory: Memory, observed: Observed) -> Memory:
        memory = {**memory, "window": [*memory["window"], observed.means_K][-self.window :]}
        multipliers = dict(memory["multipliers"])
        for name, threshold in self._constraints():
            mean = self._mean(memory, name)
            if mean is not None:
                multipliers[name] = dual_step(
                    multipliers[name],
                    violation=threshold - mean,
                    rate=self.rate,
                    dual=self.dual,
                    maximum=self.maximum,
                )
        return {**memory, "multipliers": multipliers}

    def weights(self, memory: Memory) -> list[float]:
        weights_K = [memory["multipliers"].get(name, 1.0) for name in self.names]
        return [w / sum(weights_K) for w in weights_K] if self.normalise == "official" else weights_K

    def report(self, memory: Memory) -> dict[str, object]:
        """By constraint: the last multiplier, the mean over the window, how far it falls short of the threshold, and
        the constraints whose multiplier ended at its maximum.
        """
        means = {name: self._mean(memory, name) for name, _ in self._constraints()}
        short = {n: max(0.0, d - mean) for n, d in self._constraints() if (mean := means[n]) is not None}
        at_maximum = [name for name, value in memory["multipliers"].items() if value >= self.maximum]
        return {
            "multipliers": memory["multipliers"],
            "constraint_means": means,
            "violations": short,
            "at_maximum": at_maximum,
        }

    def _constraints(self) -> list[tuple[str, float]]:
        return [(n, d) for n, d in zip(self.names, self.thresholds, strict=True) if d is not None]

    def _mean(self, memory: Memory, name: str) -> float | None:
        k = self.names.index(name)
        seen = [means_K[k] for means_K in memory["window"] if means_K[k] is not None]
        return sum(seen) / len(seen) if seen else None


def fit(config: Config, problem: Problem[Thresholds], run: Workspace) -> PointFamily:
    """One policy per `Thresholds`, trained on samples for the prompts. Comparisons are not used.

    Objectives that are neither maximised nor bounded are not asked. UserError on an impossible configuration, without
    prompts, and unless each preference has a threshold and leaves the objective to maximise without one.
    """
    names = check_preferences(problem, kinds=ASKED_BY)
    check_config(config)
    used = {p.label: p.asked(names, maximise=config.maximise) for p in problem.preferences}
    rows = onpolicy.required_prompts(problem, method="lagrangian")

    def body(thresholds: Thresholds, point: Workspace) -> Mapping[str, object]:
        asked = used[thresholds.label]
        rule = Multipliers(
            names=tuple(asked),
            thresholds=tuple(asked.values()),
            dual=config.dual,
            rate=config.dual_rate,
            window=config.window,
            initial=config.initial_multiplier,
            maximum=config.max_multiplier,
            normalise=config.normalise,
        )
        return train_point(
            config,
            replace(problem, objectives={name: problem.objectives[name] for name in asked}),
            point,
            rule=rule,
            label=f"lagrangian {thresholds.label}",
        )

    return train_points(
        "lagrangian",
        config,
        problem,
        run,
        rows=rows,
        body=body,
        optimises=lambda thresholds: describe(config, asked=used[thresholds.label]),
    )


def check_config(config: Config) -> None:
    """UserError on a value that the multipliers or the trainer cannot mean."""
    onpolicy.check_sampling(config)
    checks.one_of(config, dual=DUALS, normalise=NORMALISATIONS)
    checks.above_zero(config, "dual_rate", "window", "max_multiplier")
    checks.at_least(0, config, "initial_multiplier")
    if config.initial_multiplier == 0 and config.dual != "linear":
        raise UserError(f"initial_multiplier 0 never moves under dual: {config.dual}; set it above 0, or dual: linear")
    if config.initial_multiplier > config.max_multiplier:
        raise UserError(f"initial_multiplier {config.initial_multiplier:g} is above max_multiplier; lower it")


def describe(config: Config, *, asked: Mapping[str, float | None]) -> str:
    """One line: what a point's training really optimises, its thresholds among it."""
    (main,) = [name for name, threshold in asked.items() if threshold is None]
    bounds = " and ".join(f"E[{name}] >= {d:g}" for name, d in asked.items() if d is not None)
    scale = "" if config.normalise == "none" else " (1 + sum lambda)"
    target = f"E[{main}] - {config.beta:g}{scale} KL(pi||ref) subject to {bounds}"
    how = f"on-policy {config.algorithm} against {config.dual} dual steps (multipliers <= {config.max_multiplier:g})"
    return f"{target}: {how}, last iterate, sequence KL in the reward"
