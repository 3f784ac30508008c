"""PARM (Lin et al. 2025): one autoregressive reward model, conditioned on the preference, guides the reference.

The reward model (ARM) is the reference with a PBLoRA adapter (align.policies.conditioned), which reads w. Its loss
is the weighted sum of GenARM's over the objectives' labels of the same pair (their equation 7),

    sum_k w_k -log sigmoid(s_k beta_r [log arm(y_1 | x, w) - log arm(y_2 | x, w)]),   s_k = +1 where y_1 won for k.

What it learns. With labels of `sigmoid(dr_k / tau)` the loss at w is least where the ARM's log-odds `beta_r dlog arm`
are those of the averaged labels, `logit sum_k w_k sigmoid(dr_k / tau)`. At a vertex that is dr_k / tau, and guiding the
reference by `log pi = log ref + (tau beta_r / beta) log arm` gives `ref exp(r_k / beta)` as in GenARM, with the same
limits; inside the simplex it is not w . dr / tau, and the claim says so (the gap is small where |dr| << tau).

TRL's DPOTrainer prepares the pairs, makes the batches and trains; `_compute_loss` is replaced by the loss above, from
one plain pass over its batch (stock DPO knows one label per pair). Two columns, weights and labels, join its data set.

Deviations from the official code: w is drawn for each pair, where it draws one for each micro-batch (the same loss in
expectation, at less variance); the adapter is on every linear layer, where it is on q, k
and v; beta_r is tied to the J that is claimed, where it is .01; lengths are counted in tokens, where it filters by
characters; and responses are sampled at temperature 1, where it decodes greedily.
Legend: B pairs, R = 2 B responses, T tokens, V vocabulary, K objectives.
Data: pairs. Fixed point: guidance of the reference by one conditioned model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import checks
from align.data.comparisons import Pair, Row, annotated_pairs
from align.engines.pairs import (
    PairTrainingConfig,
    carry,
    check_pair_config,
    dpo_trainer,
    judged_rows,
)
from align.engines.points import check_preferences, inputs_of, part
from align.engines.problem import Problem
from align.engines.settings import train_and_save
from align.errors import UserError
from align.methods.genarm import without_reference
from align.models.backbones import ModelPool
from align.models.reading import token_logprobs
from align.policies.conditioned import AdapterConfig, ConditionedFamily, attach, save_adapter
from align.policies.guided import GuidedFamily
from align.preferences import Weights
from align.runs import Workspace, model_dir
from align.training.watch import refuse_looks

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel
    from trl import DPOTrainer

ASKED_BY = (Weights,)
FAMILY = GuidedFamily


@dataclass(frozen=True, kw_only=True)
class Config(PairTrainingConfig):
    """DPO's fields, for the ARM; `beta` is that of the J which the guided reference is to optimise."""

    labels: str = "scalarised"  # or objectives: pairs need all objectives' labels
    arm_beta: float = 0.0  # beta_r; 0: beta / tau, with which the ARM's coefficient is 1
    start: str = ""  # the model below the adapter (a smaller one guides a larger reference); empty: the reference
    rank: int = 4  # r1 of PBLoRA, shared by all preferences
    preference_rank: int = 4  # r2, conditioned on the preference
    adapter_alpha: float = 8.0  # the change is scaled by alpha / r2
    draws: int = 2  # weights per pair and epoch
    dirichlet: float = 0.5  # of the law of the weights; 1 is uniform on the simplex, less is nearer to its edges


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> GuidedFamily:
    """The reference guided by one conditioned ARM, trained in `arm/`; it answers any weights. Prompts are not
    used, nor are the objectives, but for their names, unless `labels` is objectives.

    UserError when comparisons are missing or do not carry what `labels` needs, and on a start of another vocabulary.
    """
    names = check_preferences(problem)
    check_config(config)
    start, pool = config.start or problem.reference, ModelPool()
    pool.tokenizer(
        [model_dir(problem.reference), model_dir(start)]
    )  # whether they share one, before anything is trained
    judged = judged_rows(config, problem, run.ledger, method="parm", at=Weights.vertices(len(names)))
    rows, scores = judged.rows, judged.scores
    assert scores is not None  # given labels were refused

    def body(place: Workspace) -> Mapping[str, object]:
        wins = first_wins(rows, scores=scores, config=config, count=len(names))
        place.ledger.add(scores_read=len(names) * len(rows))
        return train(rows, wins=wins, config=config, start=start, run=place)

    inputs = inputs_of(replace(problem, reference=start), rows=rows)
    arm = part("parm", "arm", run, config={"method": "parm", "config": config}, inputs=inputs, body=body)
    gain = config.tau * arm_beta(config) / config.beta
    return GuidedFamily(
        base=model_dir(problem.reference),
        arms=ConditionedFamily("parm", str(arm.path / "adapter"), model_dir(start), len(names), run.folder),
        gain=gain,
        preferences=tuple(problem.preferences),
        optimises={weights.label: describe(config, weights=weights, gain=gain) for weights in problem.preferences},
        pool=pool,
    )


def check_config(config: Config) -> None:
    """UserError on a value that is no PARM configuration."""
    check_pair_config(config)
    refuse_looks(config)
    if config.labels == "given":
        raise UserError("given labels follow one objective each, and PARM needs all of a pair; use labels: scalarised")
    if config.lora_r or config.mle_weight:
        raise UserError("PARM trains its own adapter on its own loss; set rank, not lora_r, and leave out mle_weight")
    checks.at_least(0, config, "arm_beta")
    checks.at_least(1, config, "draws")
    checks.above_zero(config, "dirichlet")
    adapter_of(config, count=1)


def arm_beta(config: Config) -> float:
    """beta_r: the configured one, else the one with which the ARM's coefficient is 1."""
    return config.arm_beta or config.beta / config.tau


def adapter_of(config: Config, *, count: int) -> AdapterConfig:
    """The PBLoRA adapter for `count` objectives; UserError on ranks that no adapter has."""
    return AdapterConfig("pblora", count, config.rank, config.preference_rank, config.adapter_alpha)


def first_wins(
    rows: Sequence[Row], *, scores: Mapping[str, Sequence[Sequence[float]]], config: Config, count: int
) -> dict[str, list[float]]:
    """By row id, whether the first response wins for each objective (1 or 0), as each one's own annotator says."""
    won: dict[str, list[float]] = {str(row["id"]): [] for row in rows}
    for k in range(count):
        vertex = Weights.vertex(k, count)
        for pair in annotated_pairs(rows, scores=scores, weights=vertex, tau=config.tau, seed=config.seed):
            won[pair.id].append(0.0 if pair.swapped else 1.0)
    return won


def arm_loss(margin_B: Tensor, *, wins_BK: Tensor, weights_BK: Tensor, beta: float) -> Tensor:
    """(B,) `sum_k w_k -log sigmoid(+-beta margin)`, + where the first response won for k; margin = dlog arm in nats."""
    from torch.nn.functional import logsigmoid

    return -(weights_BK * logsigmoid(beta * margin_B[:, None] * (2 * wins_BK - 1))).sum(-1)


def train(
    rows: Sequence[Row],
    *,
    wins: Mapping[str, Sequence[float]],
    config: Config,
    start: str,
    run: Workspace,
) -> dict[str, float | None]:
    """Train the adapter and save it in `run.folder/adapter`; metrics. `wins` as `first_wins` gives it."""
    trainer = build_trainer(rows, wins=wins, config=config, start=start, folder=run.folder)
    pairs = len(trainer.train_dataset) // config.draws
    adapter = adapter_of(config, count=len(next(iter(wins.values()))))

    def save(model: PreTrainedModel) -> None:
        save_adapter(trainer.accelerator.unwrap_model(model), adapter, run.folder / "adapter", base=start)

    done = train_and_save(trainer, label=f"parm {run.folder.stem}", run=run, save=save)
    # TRL has read each pair once before, for reference log-probabilities that are not used.
    run.ledger.add(flops=2 * done.work / (config.epochs * config.draws))
    return {"loss": done.loss, "pairs": pairs, **trainer.lost}


def build_trainer(
    rows: Sequence[Row], *, wins: Mapping[str, Sequence[float]], config: Config, start: str, folder: Path
) -> DPOTrainer:
    """A DPOTrainer on the pairs in stored order, `draws` times each, whose model has the adapter and loss is PARM's."""
    import numpy as np
    import torch
    from datasets import concatenate_datasets

    pairs = [Pair.of(row) for row in rows]
    beta, count = arm_beta(config), len(next(iter(wins.values())))
    trainer = dpo_trainer(pairs, config=config, reference=start, beta=beta, folder=folder)
    asked = attach(trainer.model, adapter_of(config, count=count), seed=config.seed)
    rng, columns = np.random.default_rng(config.seed), without_reference(trainer.train_dataset)
    columns = columns.add_column("wins", [list(wins[i]) for i in columns["id"]])
    drawn = [rng.dirichlet([config.dirichlet] * count, size=len(columns)).tolist() for _ in range(config.draws)]
    trainer.train_dataset = concatenate_datasets([columns.add_column("weights", list(w)) for w in drawn])
    carry(trainer, "weights", "wins")

    def compute_loss(model: PreTrainedModel, inputs: Mapping[str, Any], return_outputs: bool) -> Any:
        weights_BK, wins_BK = inputs["weights"], inputs["wins"]
        asked.set(torch.cat([weights_BK, weights_BK]))  # TRL's batch: all first responses, then all second ones
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        logp_RT = token_logprobs(outputs.logits[:, :-1], inputs["input_ids"][:, 1:])
        first_B, second_B = (logp_RT * inputs["completion_mask"][:, 1:]).sum(1).chunk(2)
        loss = arm_loss(first_B - second_B, wins_BK=wins_BK, weights_BK=weights_BK, beta=beta).mean()
        return (loss, outputs) if return_outputs else loss

    trainer._compute_loss = compute_loss
    trainer.args.include_num_input_tokens_seen = "non_padding"  # TRL counts tokens in the loss that is replaced
    return trainer


def describe(config: Config, *, weights: Weights, gain: float) -> str:
    """One line: what the guided policy is, and of which J it would be the optimum."""
    text = f"no J: ref's next-token distribution times the ARM's at w = {weights.label} to the power {gain:g}"
    if weights.is_vertex:
        target = f"the optimum of E[w.r] - {config.beta:g} KL(pi||ref)"
    else:
        target = "the log-odds of the objectives' averaged labels, which is not w.r"
    return (
        f"{text}; on one-token responses {target}, on the pairs' support, if the ARM fits its labels ({config.labels}, "
        f"annotator temperature {config.tau:g})"
    )
