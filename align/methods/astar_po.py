"""Conditioned A*-PO (after Brantley et al. 2025): one regression on optimal advantages for all weights, on samples.

The reference draws `n` responses to each prompt, scored once by every objective. They give the optimal value
`V*_w(x) = beta log mean_i exp(w . r_i / beta)` for every w (`align.functional.values`), and one joint soup
(`theta(w) = theta_ref + sum_k w_k D_k`, see joint_soup) is trained by

    ( beta log [pi(y | x, w) / ref(y | x)]  -  (w . r(x, y) - V*_w(x)) )^2

on these same samples at drawn w. Nothing is sampled or scored while it trains. The loss is 0 at
`pi*_w = ref exp((w . r - V*_w) / beta)`, whatever law the responses of the regression have; they are drawn from the
samples by their shares under pi*_w, so that it is accurate where the optimum lies, a share `explore` as ref drew them.

*Deviations*: the paper has one reward, and regresses on one fresh response of the policy per prompt. V* is that of `n`
samples, whose log-mean is on average below the true one; `effective_samples` in the metrics says how many carry it. A
sample that an objective does not score is left out and counted.
Legend: P prompts, N samples of each, K objectives, M groups of a batch, B responses.
Data: prompts. Fixed point: the optimum of J on the support of the samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from align import checks
from align.engines.on_policy.trainer import required_prompts
from align.engines.points import check_preferences, inputs_of, known_as, part
from align.engines.problem import Problem
from align.engines.reference_samples import Drawing, SampleTable, sample_table, scored_groups, shared_samples
from align.engines.settings import TrainingConfig, check_training, model_to_train, train_and_save, trainer_arguments
from align.engines.tagged import passes
from align.errors import UserError
from align.functional.draws import draw_weights, systematic_draws
from align.functional.values import optimal_advantages, squared_residuals
from align.methods.conditioned_dpo import check_weight_law
from align.models import load_tokenizer
from align.models.reading import padded, token_logprobs
from align.policies.conditioned import AdapterConfig, ConditionedFamily, attach, multiplied_parameters, save_adapter
from align.preferences import Weights
from align.runs import Ledger, Workspace, model_dir

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, Trainer

ASKED_BY = (Weights,)
FAMILY = ConditionedFamily


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """How many responses are drawn of each prompt, and how the soup is trained on them; a step sees `batch_size`."""

    n: int = 64  # samples of the reference per prompt: V* and the regression are made of them
    max_completion_length: int = 64  # tokens, the end token included; longer responses are cut and scored as they are
    sample_batch_size: int = 256  # responses drawn at a time
    steps: int = 200
    group: int = 8  # responses of a prompt that a step sees at one w
    explore: float = 0.25  # share of them that is drawn evenly from the samples, the rest by their shares under pi*_w
    alpha: float = 1.0  # of the Dirichlet law of the weights; 1 is uniform on the simplex
    vertices: float = 0.05  # share of the draws that are vertices
    train_all: bool = True  # embeddings, norms and output are trained as well, alike for every preference
    adam_beta2: float = 0.999


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> ConditionedFamily:
    """One run for all weights, from `n` samples for each of the prompts. Comparisons are not used.

    UserError on an impossible configuration, without prompts, and where no prompt has two samples that all objectives
    score.
    """
    names = check_preferences(problem)
    drawing = check_config(config)
    rows = required_prompts(problem, method="astar_po")
    adapter = AdapterConfig(kind="dense", objectives=len(names), products=False, train_all=config.train_all)

    place = replace(run, folder=run.folder / "samples")
    samples = shared_samples(drawing, problem, place, objectives=problem.objectives)
    groups, unscored = scored_groups(samples, names=names)

    def body(place: Workspace) -> Mapping[str, object]:
        table = sample_table(groups, names=names, reference=problem.reference, ledger=place.ledger)
        done = train(table, config=config, adapter=adapter, reference=problem.reference, run=place)
        effective = effective_samples(table, problem.preferences, beta=config.beta)
        return {**done, "samples_without_score": unscored, "effective_samples": effective}

    settings = {"config": config, "adapter": adapter}
    trained = part("astar_po", "adapter", run, config=settings, inputs=inputs_of(problem, rows=rows), body=body)
    return ConditionedFamily(
        "astar_po", adapter=str(trained.path / "adapter"), base=model_dir(problem.reference), objectives=len(names),
        folder=run.folder, preferences=tuple(problem.preferences),
        optimises={w.label: describe(config, weights=w) for w in problem.preferences},
    )  # fmt: skip


def check_config(config: Config) -> Drawing:
    """How to draw; UserError on a value that is no configuration of this method."""
    check_training(config)
    check_weight_law(config)
    checks.at_least(1, config, "steps", "group")
    checks.at_least(2, config, "n")
    if config.batch_size % config.group:
        raise UserError(f"batch_size {config.batch_size} does not divide into groups of {config.group}")
    if not 0 <= config.explore <= 1:
        raise UserError(f"explore must be a share in [0, 1], not {config.explore:g}")
    if not 0 <= config.adam_beta2 < 1:
        raise UserError(f"adam_beta2 must be in [0, 1), not {config.adam_beta2:g}")
    if config.lora_r:
        raise UserError("the joint soup is this method's adapter; leave lora_r at 0")
    return Drawing.of(config)


def describe(config: Config, *, weights: Weights) -> str:
    """One line: what the training optimises for a preference, and from what data."""
    return (
        f"E[w.r] - {config.beta:g} KL(pi||ref) at w = {weights.label}, by least squares of log-ratios on the optimal "
        f"advantages of {config.n} reference samples a prompt; one adapter, averaged over w ~ "
        f"Dirichlet({config.alpha:g})"
    )


def effective_samples(table: SampleTable, preferences: Sequence[Weights], *, beta: float) -> dict[str, float]:
    """The fewest and the mean number of samples, over prompts and preferences, that carry V*: `1 / sum p^2` of their
    shares p under pi*_w. Near 1, they cannot say much.
    """
    asked = [np.tile(weights.values, (len(table.rows), 1)) for weights in preferences]
    counts = np.stack([1 / (_shares(table, slice(None), w_PK, beta=beta)[1] ** 2).sum(1) for w_PK in asked])
    return {"fewest": float(counts.min()), "mean": float(counts.mean())}


def _shares(
    table: SampleTable, chosen_M: Sequence[int] | slice, weights_MK: np.ndarray, *, beta: float
) -> tuple[np.ndarray, np.ndarray]:
    """(M, N) optimal advantages of the samples of these prompts, and their shares under pi*_w, which sum to 1."""
    mass_MN = table.log_mass_PN[chosen_M]
    advantage_MN = optimal_advantages(table.rewards_PNK[chosen_M], weights_MK, beta=beta, log_mass_MN=mass_MN)
    return advantage_MN, np.exp(advantage_MN / beta + mass_MN)


class Batches:
    """Micro-batches by number, each drawn anew from the table: groups of responses of a prompt, each at a w of its own.

    Prompts come in whole shuffled passes. The same number is the same batch, also after a resume.
    """

    def __init__(self, table: SampleTable, config: Config, *, pad_id: int) -> None:
        self.table, self.config, self.pad_id = table, config, pad_id
        self.groups, self.count = config.batch_size // config.group, config.steps * config.gradient_accumulation
        rng = np.random.default_rng(config.seed)
        self.order = passes(len(table.rows), count=self.count * self.groups, rng=rng)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Tensors of B responses: their tokens, which of them count, both sides of the regression, and their w."""
        import torch

        table, config = self.table, self.config
        rng = np.random.default_rng([config.seed, number])
        chosen_M = self.order[number * self.groups : (number + 1) * self.groups]
        law = {"alpha": config.alpha, "vertices": config.vertices}
        weights = draw_weights(self.groups, objectives=table.rewards_PNK.shape[-1], rng=rng, **law)
        weights_MK = np.array([w.values for w in weights])
        advantage_MN, shares_MN = _shares(table, chosen_M, weights_MK, beta=config.beta)
        drawn_by_MN = (1 - config.explore) * shares_MN + config.explore * np.exp(table.log_mass_PN[chosen_M])
        index_MG = systematic_draws(drawn_by_MN, count=config.group, rng=rng)
        rows = [table.rows[p][i] for p, index_G in zip(chosen_M, index_MG, strict=True) for i in index_G]
        batch = padded(rows, pad_id=self.pad_id)
        taken = {
            "reference": np.take_along_axis(table.reference_PN[chosen_M], index_MG, 1).ravel(),
            "advantage": np.take_along_axis(advantage_MN, index_MG, 1).ravel(),
            "preferences": weights_MK.repeat(config.group, 0),
        }
        targets = {name: torch.tensor(values, dtype=torch.float32) for name, values in taken.items()}
        return {"input_ids": batch.ids_BT, "attention_mask": batch.attend_BT, "scored": batch.scored_BT, **targets}


def train(
    table: SampleTable, *, config: Config, adapter: AdapterConfig, reference: str, run: Workspace
) -> dict[str, object]:
    """Train and save `run.folder/adapter`; metrics. The loss in them is in squared reward units."""
    trainer = build_trainer(table, config=config, adapter=adapter, reference=reference, run=run)
    spent = Ledger()

    def save(model: PreTrainedModel) -> None:
        save_adapter(model, adapter, run.folder / "adapter", base=known_as(reference))

    done = train_and_save(trainer, label="astar_po", run=Workspace(run.folder, spent), save=save)
    # `train_and_save` counts all parameters; a token is multiplied by fewer of them.
    mixed = config.steps * config.gradient_accumulation * (config.batch_size // config.group)
    used = multiplied_parameters(trainer.model, tokens_per_preference=max(spent.tokens / mixed, 1.0))
    run.ledger.add(tokens=spent.tokens, flops=6 * used * spent.tokens)
    return {"loss": done.loss, "prompts": len(table.rows)}


def build_trainer(
    table: SampleTable, *, config: Config, adapter: AdapterConfig, reference: str, run: Workspace
) -> Trainer:
    """A plain Trainer of an adapted copy of the reference, whose examples are whole micro-batches."""
    from transformers import Trainer, TrainingArguments

    model, tokenizer = model_to_train(reference, config), load_tokenizer(reference)
    attach(model, adapter, seed=config.seed)

    class RegressionTrainer(Trainer):
        def compute_loss(self, model: PreTrainedModel, inputs: dict[str, Tensor], *_: object, **__: object) -> Tensor:
            return batch_loss(model, inputs, beta=config.beta)

    arguments = trainer_arguments(config, run.folder, max_steps=config.steps)
    arguments |= {"per_device_train_batch_size": 1, "adam_beta2": config.adam_beta2}
    trainer = RegressionTrainer(
        model=model,
        args=TrainingArguments(**arguments, remove_unused_columns=False, include_num_input_tokens_seen="non_padding"),
        train_dataset=Batches(table, config, pad_id=tokenizer.pad_token_id),
        processing_class=tokenizer,
        data_collator=lambda batches: batches[0],
    )
    trainer.model_accepts_loss_kwargs = False  # a mean over responses, which accumulated micro-batches share evenly
    return trainer


def batch_loss(model: PreTrainedModel, inputs: Mapping[str, Tensor], *, beta: float) -> Tensor:
    """Mean squared residual of a batch's responses, each log-probability summed over the response's tokens."""
    read = {name: inputs[name] for name in ("input_ids", "attention_mask", "preferences")}
    logits_BTV = model(**read, use_cache=False).logits[:, :-1]
    logp_BT = token_logprobs(logits_BTV, inputs["input_ids"][:, 1:])
    logp_B = logp_BT.where(inputs["scored"][:, 1:], 0.0).sum(-1)
    return squared_residuals(logp_B, reference_B=inputs["reference"], advantage_B=inputs["advantage"], beta=beta).mean()
