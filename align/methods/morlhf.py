"""Reinforcement learning on a weighted sum of objectives (MORLHF), one run per preference, through TRL's RLOO or GRPO.

The row that is compared at beta optimises `J = E[w . r] - beta KL(pi || ref)` itself: samples at temperature 1 without
truncation, one optimisation step per batch of samples, rewards neither scaled nor clipped, and the sequence's
`beta (log pi - log ref)` subtracted from its reward. Everything that optimises something else has a name in `Config`,
and `describe` says what it is.
Data: prompts. Fixed point: the optimum of J, unless `kl`, `scale_rewards` or `aggregation` say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align import checks
from align.engines.on_policy import trainer as onpolicy
from align.engines.points import check_preferences, train_points
from align.engines.problem import Problem
from align.errors import UserError
from align.policies.base import PointFamily
from align.preferences import Weights
from align.runs import Workspace

if TYPE_CHECKING:
    from trl import GRPOTrainer, RLOOTrainer

KL_PLACES = ("sequence", "token")
SCALES = ("none", "group", "batch")
AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")
ASKED_BY = (Weights,)
FAMILY = PointFamily


@dataclass(frozen=True, kw_only=True)
class Config(onpolicy.AlgorithmConfig):
    """How to sample and train, and what is optimised where it is not J itself."""

    kl: str = "sequence"  # or token (grpo only), whose fixed point is not the optimum of J: see onpolicy.KL
    # none: the gradient of J. group: divides by the prompt's reward spread, which acts as a temperature of each prompt.
    # batch: one global scale, which changes beta's meaning while it drifts.
    scale_rewards: str = "none"
    # normalize_then_sum (GDPO) z-scores each objective within its prompt: the weights are then no exchange rates.
    aggregation: str = "sum_then_normalize"


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> PointFamily:
    """One policy per preference, trained on samples for the prompts. Comparisons are not used.

    Objectives of weight 0 are not asked. Where an objective does not apply (None) it has no part in that
    completion's advantage (align/engines/on_policy/partial_rewards.py). UserError on an impossible configuration or
    when there are no prompts.
    """
    check_preferences(problem)
    check_config(config)
    rows = onpolicy.required_prompts(problem, method="morlhf")

    def body(weights: Weights, point: Workspace) -> Mapping[str, object]:
        trainer = build_trainer(config, problem, point, weights=weights)
        label = f"{config.algorithm} {weights.label}"
        return onpolicy.run_trainer(trainer, label=label, folder=point.folder, ledger=point.ledger)

    return train_points(
        "morlhf", config, problem, run, rows=rows, body=body, optimises=lambda w: describe(config, weights=w)
    )


def check_config(config: Config) -> None:
    """UserError on a value or a combination that TRL would refuse, or accept and mean something else by."""
    onpolicy.check_sampling(config)
    checks.one_of(config, kl=KL_PLACES, scale_rewards=SCALES, aggregation=AGGREGATIONS)
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
    config: Config, problem: Problem[Weights], run: Workspace, *, weights: Weights
) -> RLOOTrainer | GRPOTrainer:
    """The RLOO or GRPO trainer of one point; objectives of weight 0 are left out."""
    asked = {name: f for (name, f), w in zip(problem.objectives.items(), weights, strict=True) if w}
    return onpolicy.build_trainer(
        config,
        problem,
        run,
        rewards=list(zip(onpolicy.metered(asked, ledger=run.ledger), filter(None, weights), strict=True)),
        update=onpolicy.Update(
            algorithm=config.algorithm, scale_rewards=config.scale_rewards, aggregation=config.aggregation
        ),
        kl=onpolicy.KL(place=config.kl),
    )
