"""Preference-conditioned reinforcement learning: one GRPO run over the whole simplex, weights in the prompt.

Every step draws weights for its prompts, spread evenly over the simplex (all samples of a group share theirs, so that
the group's mean stays an unbiased baseline), and maximises `w . r(x, y) - beta log(pi(y | x, w) / ref(y | x))`: the
reward is scored, and the reference read, at the prompt without tags. The expected update is the gradient of the mean
over w of `J_w = E[w . r] - beta KL(pi(. | x, w) || ref)`, which for a policy that can tell all w apart is maximal
where every J_w is. The conditioned form of MORLHF (as P-MORL in Jang et al. 2023, whose code's reward never saw the
response, and MOC of He et al. 2026), with the sequence's KL in the reward and unscaled advantages
(align/engines/on_policy/trainer.py).
Legend: K objectives.
Data: prompts. Fixed point: the optimum of J.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from align.engines import tagged
from align.engines.conditioned import weighted_sum
from align.engines.on_policy import trainer as onpolicy
from align.engines.on_policy.objective_log import log_row_weighted
from align.engines.on_policy.partial_rewards import filled_rows
from align.engines.on_policy.prompts import check_prompts, counted
from align.engines.points import check_preferences, inputs_of, part
from align.engines.problem import Problem
from align.engines.settings import model_to_train
from align.engines.tagged_pairs import save_whole
from align.functional.draws import draw_weights
from align.methods.conditioned_dpo import check_weight_law
from align.models import load_tokenizer
from align.objectives.metered import Metered
from align.policies.tagged import TaggedFamily, Tags, forbid, tag_ids
from align.preferences import Weights
from align.runs import Workspace
from align.training.watch import refuse_looks

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import GRPOTrainer

ASKED_BY = (Weights,)
FAMILY = TaggedFamily


@dataclass(frozen=True, kw_only=True)
class Config(tagged.TagFields, onpolicy.OnPolicyConfig):
    """How to sample and train, and the law of the weights."""

    alpha: float = 1.0  # of the Dirichlet law of the weights; 1 is uniform on the simplex
    vertices: float = 0.1  # share of the draws that are vertices


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> TaggedFamily:
    """One model for all weights, trained on samples for the prompts. Comparisons are not used.

    Where an objective does not apply (None) it has no part in that completion's advantage. UserError on an
    impossible configuration or when there are no prompts.
    """
    check_preferences(problem)
    onpolicy.check_sampling(config)
    refuse_looks(config)
    check_weight_law(config)
    onpolicy.required_prompts(problem, method="conditioned_rl")
    problem, left_out = tagged.askable(problem)
    inputs = inputs_of(problem, rows=problem.prompts or ())
    tags = tagged.make_tags(config, problem)
    family = tagged.untrained_family("conditioned_rl", problem, tags=tags, claim=describe(config))

    def body(place: Workspace) -> Mapping[str, object]:
        folder, cost = place.folder, place.ledger
        with tagged.start_model(problem.reference, tags=tags, folder=folder, seed=config.seed) as start:
            trainer = build_trainer(config, problem, place, start=start, tags=tags)
            means = onpolicy.run_trainer(trainer, label="conditioned rl", folder=folder, ledger=cost, save=False)
            save_whole(trainer, folder=folder)
        return {**means, **counted(left_out), **tagged.told_apart(family, problem, place, seed=config.seed)}

    trained = part("conditioned_rl", "conditioned", run, config=config, inputs=inputs, body=body)
    return tagged.trained_family(family, trained)


def describe(config: Config) -> str:
    """One line: what is optimised at every weight."""
    return (
        f"E[w.r] - {config.beta:g} KL(pi||ref) at every w at once, on-policy grpo: sequence KL in the reward, unscaled "
        f"rewards, w of Dirichlet({config.alpha:g}) with {config.vertices:.0%} vertices"
    )


def build_trainer(config: Config, problem: Problem[Weights], run: Workspace, *, start: str, tags: Tags) -> GRPOTrainer:
    """The GRPO trainer from the checkpoint `start`, whose data set tells each group its own weights."""
    tokenizer, objectives = load_tokenizer(start), problem.objectives
    total = WeightedSum(onpolicy.metered(objectives, ledger=run.ledger), tags=tags)
    model, new = model_to_train(start, config), tag_ids(tokenizer, tags)
    middle = (1 / len(objectives),) * len(objectives)
    prompts = [{**row, "prompt": tags.apply(row["prompt"], middle)} for row in problem.prompts or ()]
    trainer = onpolicy.build_trainer(
        config,
        replace(problem, reference=start, prompts=prompts),
        run,
        rewards=[(total, 1.0), *((part, 0.0) for part in total.parts())],
        update=onpolicy.Update(algorithm="grpo"),
        kl=onpolicy.KL(reference=problem.reference, strip=tags.strip),
        start=onpolicy.Start(model=model, tokenizer=tokenizer, new_tokens=tuple(new)),
    )
    forbid(trainer.model, new)
    trainer.train_dataset = with_weights(trainer.train_dataset, config=config, tags=tags)
    texts = [{"prompt": text} for text in dict.fromkeys(trainer.train_dataset["prompt"])]
    most = config.max_completion_length
    check_prompts(texts, model=model, tokenizer=tokenizer, max_tokens=most)  # numbers differ in length as text
    return trainer


def with_weights(dataset: Dataset, *, config: Config, tags: Tags) -> Dataset:
    """The scheduled prompts, those of each step behind weights that are spread evenly, and the weights as column w."""
    from datasets import Dataset

    rng = np.random.default_rng(config.seed)
    groups = config.batch_size * config.gradient_accumulation // config.num_generations
    weights = [
        w.values
        for _ in range(0, len(dataset), groups)
        for w in draw_weights(groups, objectives=len(tags.names), rng=rng, alpha=config.alpha, vertices=config.vertices)
    ][: len(dataset)]
    prompts = [tags.apply(tags.strip(p), w) for p, w in zip(dataset["prompt"], weights, strict=True)]
    return Dataset.from_dict({**dataset.to_dict(), "prompt": prompts, "w": [list(w) for w in weights]})


class WeightedSum:
    """The reward `w . r` of each completion with its row's own w; the objectives see prompts without tags.

    They are asked once: `parts` are reward functions that give each objective's scores of the latest call, for the log.
    """

    def __init__(self, objectives: Sequence[Metered], *, tags: Tags) -> None:
        self.__name__ = "weighted_sum"
        self.objectives, self.tags = list(objectives), tags
        self.scored: list[str] = []

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], *, w: Sequence[Sequence[float]], **columns: Any
    ) -> list[float | None]:
        """One sum per completion over the objectives that apply; None where none does."""
        plain = [self.tags.strip(prompt) for prompt in prompts]
        scores_K = [objective(plain, completions, **columns) for objective in self.objectives]
        self.scored, names = list(completions), [objective.__name__ for objective in self.objectives]
        log_row_weighted(columns.get("log_metric"), names, scores_KB=scores_K, weights_BK=w)
        rows = zip(*filled_rows(scores_K, keys=list(prompts)), strict=True)  # the tag in a prompt tells its weights
        return [weighted_sum(w_K, r_K) for w_K, r_K in zip(w, rows, strict=True)]

    def parts(self) -> list[_Part]:
        """One reward function per objective, under its name."""
        return [_Part(self, objective) for objective in self.objectives]


class _Part:
    def __init__(self, total: WeightedSum, objective: Metered) -> None:
        self.__name__ = objective.__name__
        self.total, self.objective = total, objective

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float | None]:
        if list(completions) != self.total.scored:
            raise RuntimeError("the weighted sum has not scored these completions; it must be asked first")
        return list(self.objective.last)
