"""One policy gradient per objective from the same samples, combined (CAGrad, RACO, MGDA, PCGrad, Nash-MTL or sum).

Objective k's gradient is that of `J_k = E[r_k] - beta KL(pi || ref)`: the KL is part of every one of them, so that
`sum_k w_k J_k` is J (the weights sum to 1) and `combiner: sum` is MORLHF's update. The Pareto front of the J_k is the
set of the optima at all weights; a combiner that stops at any Pareto-stationary point ends at the optimum of *some*
weights, which the metrics estimate (the last `coefficient_shares` of `trace`). At w = e_k every combiner is MORLHF on
objective k, bit for bit. Cosines in the metrics are of the J_k's gradients, the common KL included.

Samples, rewards and KL are those of align/engines/on_policy/trainer.py; only advantages become K: with A the
trainer's own,
`A_k = A + (r_k - w . r, minus the group's baseline)`, exactly A where w = e_k. How gradients are gathered and combined:
align/engines/gradient_step.py. Legend: B completions in P groups of G, F reward functions of which the first K are the
objectives of weight above 0.
Data: prompts. Fixed point: some Pareto-stationary point; `sum` is MORLHF.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align.engines.gradient_step import CombinedGradients, ConflictRecord, combine
from align.engines.on_policy import trainer as onpolicy
from align.engines.on_policy.partial_rewards import PartialRewards
from align.engines.points import check_preferences, train_points
from align.engines.problem import Problem
from align.functional.combine import FIXED_POINTS, Combination, check_combiner
from align.models import count_parameters
from align.policies.base import PointFamily
from align.preferences import Weights
from align.runs import Workspace

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor
    from transformers import PreTrainedModel
    from trl import GRPOTrainer, RLOOTrainer

ASKED_BY = (Weights,)
FAMILY = PointFamily


@dataclass(frozen=True, kw_only=True)
class Config(onpolicy.AlgorithmConfig):
    """How to sample and train, rloo and grpo both with the sequence's KL and unscaled rewards; the combiner."""

    combiner: str = "cagrad"
    c: float = 0.5  # radius of CAGrad and RACO, in [0, 1); 0 is the weighted sum


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> PointFamily:
    """One policy per preference, trained on samples for the prompts. Comparisons are not used.

    Objectives of weight 0 are not asked. Where an objective does not apply (None) it counts as in MORLHF.
    UserError on an impossible configuration or when there are no prompts.
    """
    names = check_preferences(problem)
    check_config(config)
    rows = onpolicy.required_prompts(problem, method="gradient_rl")

    def body(weights: Weights, point: Workspace) -> Mapping[str, object]:
        asked = {name: w for name, w in zip(names, weights, strict=True) if w}
        combination = Combination(config.combiner, tuple(asked.values()), tuple(asked), config.c, config.seed)
        trainer, record = build_trainer(config, problem, point, combination=combination)
        cost = point.ledger
        before = cost.tokens
        means = onpolicy.run_trainer(trainer, label=f"gradient_rl {weights.label}", folder=point.folder, ledger=cost)
        parameters = count_parameters(trainer.model, embeddings=False)
        cost.add(flops=4 * parameters * (cost.tokens - before) * (len(asked) - 1))  # one backward pass more for each
        return {**means, **record.report()}

    return train_points(
        "gradient_rl", config, problem, run, rows=rows, body=body, optimises=lambda w: describe(config, weights=w)
    )


def check_config(config: Config) -> None:
    """UserError on a value that the combiner or the trainer cannot mean."""
    onpolicy.check_sampling(config)
    check_combiner(config)


def describe(config: Config, *, weights: Weights) -> str:
    """One line: what a point's training really optimises."""
    target = f"E[w.r] - {config.beta:g} KL(pi||ref) at w = {weights.label}"
    end = f"on-policy {config.algorithm}: sequence KL in the reward, unscaled rewards"
    if weights.is_vertex or config.combiner == "sum":
        return f"{target}, {end}"
    how = FIXED_POINTS[config.combiner].format(c=config.c)
    text = f"gradients of E[r_k] - {config.beta:g} KL(pi||ref), the KL in each, by {how}; {end}"
    return f"{target}: {text}" if config.combiner in ("cagrad", "raco") else f"no J at w = {weights.label}: {text}"


def build_trainer(
    config: Config, problem: Problem[Weights], run: Workspace, *, combination: Combination
) -> tuple[RLOOTrainer | GRPOTrainer, ConflictRecord]:
    """The on-policy trainer whose steps combine the gradients of the objectives that the combination names."""
    from trl import GRPOTrainer, RLOOTrainer

    base = {"rloo": RLOOTrainer, "grpo": GRPOTrainer}[config.algorithm]
    asked = {name: problem.objectives[name] for name in combination.names}
    trainer_class = type(f"Combined{base.__name__}", (ObjectiveAdvantages, CombinedGradients, PartialRewards, base), {})
    trainer = onpolicy.build_trainer(
        config,
        problem,
        run,
        rewards=list(zip(onpolicy.metered(asked, ledger=run.ledger), combination.weights, strict=True)),
        update=onpolicy.Update(algorithm=config.algorithm, trainer_class=trainer_class),
    )
    trainer.leave_one_out = config.algorithm == "rloo"
    return trainer, combine(trainer, combination)


class ObjectiveAdvantages:
    """Before `CombinedGradients` and RLOOTrainer or GRPOTrainer: objective k's loss is the trainer's own with A_k."""

    accelerator: Accelerator
    model: PreTrainedModel
    combining: Any
    num_generations: int
    leave_one_out: bool  # whether the trainer's baseline is the mean of the *others* of a group (RLOO)
    _latest_rewards: Tensor

    def _calculate_rewards(self, inputs: list[dict[str, object]], *others: object) -> Tensor:
        self._latest_rewards = super()._calculate_rewards(inputs, *others)  # type: ignore[misc]
        return self._latest_rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, object]]) -> dict[str, Tensor]:
        output = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        if not self.model.training:  # a look at held-out prompts updates nothing
            return output
        extra_BK = advantages_apart(
            self._latest_rewards,
            weights=self.combining.combination.weights,
            group=self.num_generations,
            leave_one_out=self.leave_one_out,
        )
        size = len(output["advantages"])  # rewards are those of all processes, in their order
        start = self.accelerator.process_index * size
        output["objective_advantages"] = output["advantages"][:, None] + extra_BK[start : start + size]
        return output

    def objective_inputs(self, inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        for advantages_B in inputs["objective_advantages"].unbind(-1):
            yield {**inputs, "advantages": advantages_B}


def advantages_apart(rewards_BF: Tensor, *, weights: Sequence[float], group: int, leave_one_out: bool) -> Tensor:
    """(B, K) what to add to the advantages of `w . r` (with whatever else is rewarded) for those of each r_k.

    `r_k - w . r` minus its baseline, for groups of `group` completions that lie together: the mean of the group, or of
    its other members. nan is an objective that applies to none of the group, which adds 0; one that no function
    applies to is left out of the baseline and gets 0, and so does one without others (TRL does the same).
    """
    import torch

    rewards_BK = rewards_BF[:, : len(weights)].nan_to_num(0.0)
    apart_BK = rewards_BK - (rewards_BK * rewards_BK.new_tensor(weights)).sum(1, keepdim=True)
    scored_PG = (~rewards_BF.isnan().all(1)).view(-1, group)
    apart_PGK = apart_BK.view(-1, group, len(weights)) * scored_PG[..., None]
    count_P = scored_PG.sum(1)
    centred_PGK = apart_PGK - (apart_PGK.sum(1) / count_P.clamp(min=1)[:, None])[:, None]
    if leave_one_out:
        centred_PGK = centred_PGK * (count_P / (count_P - 1).clamp(min=1))[:, None, None]
    return torch.where(scored_PG[..., None], centred_PGK, 0.0).view_as(apart_BK)
