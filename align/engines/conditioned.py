"""One run for all preferences: a conditioned adapter trained on prompts, or on pairs, with a preference for each row.

Shared by panacea, pblora and joint_soup. On policy, every prompt of a step draws its preference, and all its samples
are drawn, rewarded and learned at it: TRL's GRPO on `J_w = E[w . r] - beta KL(pi_w || ref)`, averaged over w; the
group's baseline stays valid because a group has one w. On pairs see conditioned_pairs.
Legend: B rows, K objectives.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from align import checks
from align.data.comparisons import Row, required_rows
from align.engines import conditioned_pairs
from align.engines.on_policy import trainer as onpolicy
from align.engines.on_policy.objective_log import log_row_weighted
from align.engines.on_policy.partial_rewards import filled_rows
from align.engines.points import check_preferences, inputs_of, known_as, part
from align.engines.problem import Problem
from align.engines.settings import model_to_train
from align.errors import UserError
from align.functional.draws import even_draws
from align.models import count_parameters
from align.objectives.metered import Metered
from align.policies.conditioned import (
    AdapterConfig,
    ConditionedFamily,
    Preferences,
    attach,
    multiplied_parameters,
    save_adapter,
)
from align.preferences import Weights
from align.runs import Ledger, Workspace, model_dir
from align.training.watch import refuse_looks

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel
    from trl import GRPOTrainer

DATA = ("on_policy", "pairs")
DRAWS = ("prompt", "step")


@dataclass(frozen=True, kw_only=True)
class Config(onpolicy.OnPolicyConfig, conditioned_pairs.PairConfig):
    """How to train: on policy with the fields of `OnPolicyConfig`, or on pairs with those of `PairConfig`."""

    data: str = "on_policy"
    draw: str = "prompt"  # on_policy: a preference for each prompt of a step, or one for the whole step
    train_all: bool = False  # embeddings, norms and output are trained as well, alike for every preference
    adam_beta2: float = 0.999  # on_policy


def fit(
    method: str,
    config: Config,
    problem: Problem[Weights],
    run: Workspace,
    *,
    adapter: AdapterConfig,
) -> ConditionedFamily:
    """One adapter in `adapter/`, reused when finished; the family answers any weights, those of the problem or not.

    UserError on an impossible configuration or without the rows that it needs.
    """
    check_preferences(problem)
    check_config(config)
    if config.data == "on_policy":
        rows = onpolicy.required_prompts(problem, method=method)
    else:
        rows = required_rows(problem.comparisons, method=method)

    def body(place: Workspace) -> Mapping[str, object]:
        if config.data == "on_policy":
            return train_on_policy(config, problem, place, adapter=adapter)
        pairs, weights = conditioned_pairs.labelled_pairs(config, problem, place.ledger)
        return conditioned_pairs.train_on_pairs(
            pairs, weights, adapter=adapter, config=config, reference=problem.reference,
            beta=config.beta / config.tau, run=place,
        )  # fmt: skip

    settings = {"method": method, "config": config, "adapter": adapter}
    trained = part(method, "adapter", run, config=settings, inputs=inputs_of(problem, rows=rows), body=body)
    return ConditionedFamily(
        method,
        adapter=str(trained.path / "adapter"),
        base=model_dir(problem.reference),
        objectives=len(problem.objectives),
        folder=run.folder,
        preferences=tuple(problem.preferences),
        optimises={w.label: describe(config, weights=w) for w in problem.preferences},
    )


def check_config(config: Config) -> None:
    """UserError on a value that no conditioned run can mean."""
    checks.one_of(config, data=DATA, draw=DRAWS)
    conditioned_pairs.check_config(config)
    if config.data == "on_policy":
        onpolicy.check_sampling(config)
        refuse_looks(config)
    if not 0 <= config.adam_beta2 < 1:
        raise UserError(f"adam_beta2 must be in [0, 1), not {config.adam_beta2:g}")
    if config.lora_r:
        raise UserError("the conditioned adapter is this method's adapter; leave lora_r at 0")


def describe(config: Config, *, weights: Weights) -> str:
    """One line: what the training optimises for a preference."""
    shared = f"one adapter, averaged over w ~ Dirichlet({config.concentration:g})"
    if config.data == "pairs":
        return f"{conditioned_pairs.describe(config, weights=weights)}; {shared}"
    return (
        f"E[w.r] - {config.beta:g} KL(pi||ref) at w = {weights.label}, on-policy grpo: sequence KL in the reward, "
        f"unscaled rewards; {shared}"
    )


def groups_of(config: Config) -> int:
    """Prompts, and so groups of samples, of one step."""
    return config.batch_size * config.gradient_accumulation // config.num_generations


def scheduled_weights(config: Config, *, objectives: int) -> list[tuple[float, ...]]:
    """A preference for every group of every step, in order: even within each step, or one for all groups of a step."""
    rng, groups = random.Random(f"preferences {config.seed}"), groups_of(config)
    settings: dict[str, Any] = {"objectives": objectives, "concentration": config.concentration, "rng": rng}
    if config.draw == "step":
        return [w for w in even_draws(config.steps, **settings) for _ in range(groups)]
    return [w for _ in range(config.steps) for w in even_draws(groups, **settings)]


class RowWeighted:
    """The reward `sum_k w_k r_k` with the row's own w, from its column `w`; each objective's plain mean is logged.

    Where an objective does not apply (None) it counts as the mean of its scores in the group. `last_BK` holds the
    scores of the latest call.
    """

    def __init__(self, objectives: Sequence[Metered]) -> None:
        self.__name__, self.objectives = "weighted", objectives
        self.last_BK: list[list[float | None]] = []

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        """One reward per completion, or None."""
        scores_KB = [objective(prompts, completions, **columns) for objective in self.objectives]
        for objective, scores in zip(self.objectives, scores_KB, strict=True):
            known = [s for s in scores if s is not None]
            if known and "log_metric" in columns:
                columns["log_metric"](f"rewards/{objective.__name__}/mean", sum(known) / len(known))
        names, log_metric = [objective.__name__ for objective in self.objectives], columns.get("log_metric")
        log_row_weighted(log_metric, names, scores_KB=scores_KB, weights_BK=columns["w"])
        self.last_BK = [list(row) for row in zip(*scores_KB, strict=True)]
        keys = [(prompt, *w) for prompt, w in zip(prompts, columns["w"], strict=True)]
        rows = zip(*filled_rows(scores_KB, keys=keys), strict=True)
        return [weighted_sum(w, row) for w, row in zip(columns["w"], rows, strict=True)]


def weighted_sum(weights: Sequence[float], scores: Sequence[float | None]) -> float | None:
    """`sum_k w_k r_k` over the scores that there are, None when there is none."""
    known = [w * s for w, s in zip(weights, scores, strict=True) if s is not None]
    return sum(known) if known else None


def conditioned_trainer(preferences: Preferences) -> type:
    """A GRPOTrainer that tells the adapter the preference of each row that it samples, and later of each it learns."""
    import torch
    from trl import GRPOTrainer

    class ConditionedGRPOTrainer(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Tensor]:
            w_BK = torch.tensor([row["w"] for row in inputs])
            preferences.set(w_BK)
            output = super()._generate_and_score_completions(inputs)
            return {**output, "w": w_BK.to(output["advantages"].device)}  # shuffled and split with the rows

        def _compute_loss(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
            preferences.set(inputs["w"])
            return super()._compute_loss(model, inputs)

    return ConditionedGRPOTrainer


def build_trainer(
    config: Config,
    problem: Problem[Weights],
    run: Workspace,
    *,
    adapter: AdapterConfig,
    trainer_class: Callable[[Preferences], type] = conditioned_trainer,
) -> GRPOTrainer:
    """The GRPO trainer of an adapted copy of the reference; its prompts carry their preference in the column `w`."""
    model, objectives = model_to_train(problem.reference, config), problem.objectives
    preferences = attach(model, adapter, seed=config.seed)
    preferences.set([[1 / len(objectives)] * len(objectives)])
    prompts = [{name: value for name, value in row.items() if name != "w"} for row in problem.prompts or ()]
    trainer = onpolicy.build_trainer(
        config,
        replace(problem, prompts=prompts),
        run,
        rewards=[(RowWeighted(onpolicy.metered(objectives, ledger=run.ledger)), 1.0)],
        update=onpolicy.Update(
            algorithm="grpo", adam_beta2=config.adam_beta2, trainer_class=trainer_class(preferences)
        ),
        kl=onpolicy.KL(select=preferences.only),
        start=onpolicy.Start(model=model),
    )
    weights = [list(w) for w in scheduled_weights(config, objectives=len(objectives))]
    trainer.train_dataset = trainer.train_dataset.add_column("w", weights)
    return trainer


def train_on_policy(
    config: Config, problem: Problem[Weights], run: Workspace, *, adapter: AdapterConfig
) -> dict[str, object]:
    """Train and save `run.folder/adapter`; the last logged means."""
    folder, ledger = run.folder, run.ledger
    trainer = build_trainer(config, problem, run, adapter=adapter)
    spent = Ledger()
    metrics = onpolicy.run_trainer(trainer, label=f"{adapter.kind} adapter", folder=folder, ledger=spent, save=False)
    # `run_trainer` counts all parameters; a token is multiplied by fewer of them.
    mixed = config.steps * (1 if config.draw == "step" else groups_of(config))
    used = multiplied_parameters(trainer.model, tokens_per_preference=max(spent.tokens / mixed, 1.0))
    ledger.add(tokens=spent.tokens, flops=spent.flops * used / count_parameters(trainer.model, embeddings=False))
    save_adapter(trainer.model, adapter, folder / "adapter", base=known_as(problem.reference))
    return metrics
