"""Reinforcement learning on a weighted sum of objectives (MORLHF), one run per preference, through TRL's RLOO or GRPO.

The row that is compared at beta optimises `J = E[w . r] - beta KL(pi || ref)` itself: samples at temperature 1 without
truncation, one optimisation step per batch of samples, rewards neither scaled nor clipped, and the sequence's
`beta (log pi - log ref)` subtracted from its reward. Everything that optimises something else has a name in `Config`,
and `describe` says what it is.
Data: prompts. Fixed point: the optimum of J, unless `kl`, `scale_rewards` or `aggregation` say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.data.comparisons import Row
from align.engines.on_policy import trainer as onpolicy
from align.engines.points import check_preferences, inputs_of, train_points
from align.errors import UserError
from align.objectives.metered import Objective
from align.policies.base import PointFamily
from align.preferences import Weights
from align.runs import Ledger

ALGORITHMS = ("rloo", "grpo")
KL_PLACES = ("sequence", "token")
SCALES = ("none", "group", "batch")
AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")


@dataclass(frozen=True, kw_only=True)
class Config(onpolicy.OnPolicyConfig):
    """How to sample and train, and what is optimised where it is not J itself."""

    algorithm: str = "rloo"
    # sequence: the whole response's log-ratio in the reward, the exact gradient of J. token (grpo only): a per-token
    # penalty in the loss, blind to how a token changes the prefixes after it; its fixed point is not the optimum of J.
    kl: str = "sequence"
    # none: the gradient of J. group: divides by the prompt's reward spread, which acts as a temperature of each prompt.
    # batch: one global scale, which changes beta's meaning while it drifts.
    scale_rewards: str = "none"
    # normalize_then_sum (GDPO) z-scores each objective within its prompt: the weights are then no exchange rates.
    aggregation: str = "sum_then_normalize"


def fit(
    config: Config,
    *,
    reference: str,
    objectives: Mapping[str, Objective],
    preferences: Sequence[Weights],
    out: Path,
    ledger: Ledger,
    comparisons: Sequence[Row] | None = None,
    prompts: Sequence[Row] | None = None,
) -> PointFamily:
    """One policy per preference, trained on samples for `prompts` (rows with `prompt`). `comparisons` is not used.

    Objectives of weight 0 are not asked. Where an objective does not apply (None) it adds nothing to that completion's
    sum. UserError on an impossible configuration or when there are no prompts.
    """
    check_preferences(preferences, objectives=objectives)
    check_config(config)
    rows = onpolicy.required_prompts(prompts, method="morlhf")

    def body(folder: Path, cost: Ledger, weights: Weights) -> Mapping[str, Any]:
        trainer = build_trainer(
            config,
            reference=reference,
            objectives=objectives,
            weights=weights,
            prompts=rows,
            folder=folder,
            ledger=cost,
        )
        label = f"{config.algorithm} {weights.label}"
        return onpolicy.run_trainer(trainer, label=label, folder=folder, ledger=cost)

    return train_points(
        "morlhf",
        config=config,
        preferences=preferences,
        inputs=inputs_of(reference=reference, objectives=objectives, rows=rows),
        out=out,
        ledger=ledger,
        body=body,
        optimises=lambda weights: describe(config, weights=weights),
    )


def check_config(config: Config) -> None:
    """UserError on a value or a combination that TRL would refuse, or accept and mean something else by."""
    onpolicy.check_sampling(config)
    for name, allowed in (
        ("algorithm", ALGORITHMS),
        ("kl", KL_PLACES),
        ("scale_rewards", SCALES),
        ("aggregation", AGGREGATIONS),
    ):
        if getattr(config, name) not in allowed:
            raise UserError(f"{name} must be one of {', '.join(allowed)}, not {getattr(config, name)!r}")
    if config.algorithm == "rloo" and (config.kl, config.scale_rewards, config.aggregation) != (
        "sequence", "none", "sum_then_normalize",
    ):  # fmt: skip
        raise UserError("rloo has sequence KL, unscaled rewards and sum_then_normalize only; set algorithm: grpo")
    if config.aggregation == "normalize_then_sum" and (config.scale_rewards != "none" or config.kl != "token"):
        raise UserError(
            "normalize_then_sum ignores scale_rewards and would z-score a sequence KL as one more objective; "
            "set scale_rewards: none and kl: token"
        )


def describe(config: Config, *, weights: Weights) -> str:
    """One line: what a point's training really optimises."""
    where = "sequence KL in the reward" if config.kl == "sequence" else "per-token KL in the loss, which is not this J"
    scale = {
        "none": "unscaled rewards",
        "group": "rewards divided by each prompt's spread (another temperature per prompt)",
        "batch": "rewards divided by the batch's spread (a drifting beta)",
    }[config.scale_rewards]
    if config.kl == "sequence" and config.scale_rewards != "none":  # the penalty is scaled along: 0 stays 0
        scale = f"reward and penalty divided by the {config.scale_rewards}'s spread (the same fixed point)"
    if config.aggregation == "normalize_then_sum":
        scale = "each objective z-scored per prompt (the weights are no exchange rates)"
    target = f"E[w.r] - {config.beta:g} KL(pi||ref) at w = {weights.label}"
    return f"{target}, on-policy {config.algorithm}: {where}, {scale}"


def build_trainer(
    config: Config,
    *,
    reference: str,
    objectives: Mapping[str, Objective],
    weights: Weights,
    prompts: Sequence[Row],
    folder: Path,
    ledger: Ledger,
) -> Any:
    """The RLOO or GRPO trainer of one point; objectives of weight 0 are left out."""
    asked = {name: f for (name, f), w in zip(objectives.items(), weights, strict=True) if w}
    return onpolicy.build_trainer(
        config,
        reference=reference,
        reward_funcs=onpolicy.metered(asked, ledger=ledger),
        reward_weights=[w for w in weights if w],
        prompts=prompts,
        folder=folder,
        ledger=ledger,
        algorithm=config.algorithm,
        beta=config.beta if config.kl == "token" else 0.0,
        scale_rewards=config.scale_rewards,
        multi_objective_aggregation=config.aggregation,
    )
