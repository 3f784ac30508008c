"""Pairs for one adapter of all preferences: each with a drawn preference beside its label, and DPO that reads both.

What is minimised is `E_w[sum_k w_k L_k(theta(w))]`, L_k being DPO's loss on objective k's labels, or DPO's loss on the
labels of an annotator who sees w . r. A pair of the first kind follows objective k with probability w_k, which has the
same mean as the weighted sum: stock DPO trains it, and the preference travels along as one more input of the model.
Legend: P pairs, K objectives.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import checks
from align.data.comparisons import Pair, annotated_pairs, given_pairs
from align.engines.pairs import PairTrainingConfig, carry, check_pair_config, dpo_trainer, judged_rows
from align.engines.points import known_as
from align.engines.problem import Problem
from align.engines.settings import train_and_save
from align.errors import UserError
from align.functional.draws import dirichlet, even_draws
from align.policies.conditioned import AdapterConfig, attach, multiplied_parameters, save_adapter
from align.preferences import Weights
from align.runs import Ledger, Workspace

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel
    from trl import DPOTrainer

AGGREGATES = ("losses", "scalarised")


@dataclass(frozen=True, kw_only=True)
class PairConfig(PairTrainingConfig):
    """DPO's fields, and how preferences and labels meet."""

    # Preferences are Dirichlet(concentration, ...): 1 is uniform on the simplex, below 1 nearer to its corners.
    concentration: float = 1.0
    # losses: sum_k w_k L_k, whose minimiser inside the simplex is not the optimum of J (a mean of two annotators' label
    # probabilities is no annotator of the mean). scalarised: an annotator who sees w . r, whose minimiser is.
    aggregate: str = "losses"


def check_config(config: PairConfig) -> None:
    """UserError on a value that training on pairs cannot mean."""
    check_pair_config(config)
    checks.above_zero(config, "concentration")
    checks.one_of(config, aggregate=AGGREGATES)
    if config.labels == "given" and config.aggregate == "scalarised":
        raise UserError("given labels follow one objective each; use aggregate: losses, or labels: scalarised")


def describe(config: PairConfig, *, weights: Weights) -> str:
    """One line: what the training optimises for a preference."""
    data = (
        f"at w = {weights.label}, from offline pairs (labels: {config.labels}, annotator temperature {config.tau:g}, "
        f"DPO beta {config.beta / config.tau:g})"
    )
    if config.aggregate == "scalarised" or weights.is_vertex:
        return f"E[w.r] - {config.beta:g} KL(pi||ref) {data}"
    return f"sum_k w_k DPO loss_k {data}, whose minimiser inside the simplex is not the optimum of J"


def labelled_pairs(
    config: PairConfig, problem: Problem[Weights], ledger: Ledger
) -> tuple[list[Pair], list[tuple[float, ...]]]:
    """`epochs` passes over the rows: (P,) labelled pairs with ids of their own, and the preference of each.

    Every pass draws again. Labels and scores are charged once, however often they are seen; an annotator who sees w . r
    is asked for each preference. Given labels count alike for every objective, whatever its number of rows.
    """
    rows = problem.comparisons or ()
    names, rng = problem.names, random.Random(f"pairs {config.seed}")
    settings: dict[str, Any] = {"objectives": len(names), "concentration": config.concentration, "rng": rng}
    vertices = Weights.vertices(len(names))
    pairs: list[Pair] = []
    weights: list[tuple[float, ...]] = []
    if config.labels == "given":
        by_objective = [given_pairs(rows, weights=vertex, names=names) for vertex in vertices]
        each = max(len(found) for found in by_objective)
        total = max(1, round(config.epochs * each))
        for k, found in enumerate(by_objective):
            for i in range(total):
                # The density of w among pairs of objective k is w_k times that of the simplex, up to a constant.
                weights.append(dirichlet([config.concentration + (j == k) for j in range(len(names))], rng=rng))
                pairs.append(dataclasses.replace(found[i % len(found)], id=f"{names[k]}/{i}"))
        return pairs, weights
    at = vertices if config.aggregate == "losses" else None
    scores = judged_rows(config, problem, ledger, method="training on pairs", at=at).scores
    assert scores is not None  # labels are not given
    label: dict[str, Any] = {"scores": scores, "tau": config.tau, "seed": config.seed}
    total = max(1, round(config.epochs * len(rows)))
    if config.aggregate == "losses":
        judged = [annotated_pairs(rows, weights=vertex, **label) for vertex in vertices]
        ledger.add(scores_read=len(names) * len(rows))
    else:
        ledger.add(scores_read=total)
    for start in range(0, total, len(rows)):
        count = min(len(rows), total - start)
        for i, w in zip(rng.sample(range(len(rows)), count), even_draws(count, **settings), strict=True):
            if config.aggregate == "losses":
                pair = judged[rng.choices(range(len(names)), w)[0]][i]
            else:
                pair = annotated_pairs([rows[i]], weights=Weights(w), **label)[0]
            weights.append(w)
            pairs.append(dataclasses.replace(pair, id=f"{pair.id}/{start}"))
    return pairs, weights


def train_on_pairs(
    pairs: Sequence[Pair],
    weights: Sequence[Sequence[float]],
    *,
    adapter: AdapterConfig,
    config: PairTrainingConfig,
    reference: str,
    beta: float,
    run: Workspace,
) -> dict[str, object]:
    """Train an adapter of `reference` by one pass over the pairs, each at its preference; save `run.folder/adapter`.

    Returns metrics.
    """
    data: dict[str, Any] = {"adapter": adapter, "config": config, "reference": reference, "beta": beta}
    trainer = build_trainer(pairs, weights, folder=run.folder, **data)
    used = multiplied_parameters(trainer.model, tokens_per_preference=mean_length(trainer.train_dataset))
    spent = Ledger()

    def save(model: PreTrainedModel) -> None:
        save_adapter(model, adapter, run.folder / "adapter", base=known_as(reference))

    place = Workspace(run.folder, spent)
    done = train_and_save(trainer, label=f"dpo {adapter.kind}", run=place, save=save, config=config)
    # One pass of the reference over the pairs (2 N tokens), on top of the training the callback counted.
    run.ledger.add(tokens=spent.tokens, flops=(6 + 2) * used * spent.tokens)
    return {"loss": done.loss, **done.more, "pairs": len(pairs), **trainer.lost}


def build_trainer(
    pairs: Sequence[Pair],
    weights: Sequence[Sequence[float]],
    *,
    adapter: AdapterConfig,
    config: PairTrainingConfig,
    reference: str,
    beta: float,
    folder: Path,
) -> DPOTrainer:
    """DPO's trainer whose batches carry `preferences`, which the adapted model takes as an input of its own.

    The adapter is attached when the reference's log-probabilities are known, so they are those of the bare checkpoint.
    """
    once = dataclasses.replace(config, epochs=1.0)
    trainer = dpo_trainer(pairs, config=once, reference=reference, beta=beta, folder=folder)
    attach(trainer.model, adapter, seed=config.seed)
    by_id = {pair.id: list(w) for pair, w in zip(pairs, weights, strict=True)}
    if len(by_id) != len(pairs):
        raise ValueError("two pairs share an id")
    column = [by_id[i] for i in trainer.train_dataset["id"]]
    trainer.train_dataset = trainer.train_dataset.add_column("preferences", column)
    carry(trainer, "preferences", times=2)
    return trainer


def mean_length(dataset: Dataset) -> float:
    """Mean tokens of a sequence, prompt and response."""
    ids = [dataset[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
    total = sum(2 * len(p) + len(c) + len(r) for p, c, r in zip(*ids, strict=True))
    return total / (2 * len(dataset))
