"""One DPO loss per objective on the same pairs, their gradients combined (RACO, CAGrad, MGDA, PCGrad, Nash-MTL or sum).

Each pair is labelled once for every objective, by an annotator of temperature tau who sees that objective's scores
alone. With `combiner: sum` this is DPO on the weighted sum of the losses, the baseline that gradient methods are
measured against; its minimiser prefers a to b by `logit sum_k w_k sigmoid(dr_k / tau)`, the *labels'* average, which is
`w . dr / tau` to first order only: not the optimum of `J = E[w . r] - beta KL`, even with pairs without end. What a
preference means under the other combiners is said in align/functional/combine.py; at w = e_k all of them are DPO on
objective k, bit for bit.
*Deviations from the official code* (PeterLauLukChen/RACO, fd94b6f): there a tie is a label of 0, which only adds a
constant to the loss; here the annotator breaks it. How gradients are gathered: see align/engines/gradient_step.py.
Legend: B pairs, K objectives of weight above 0.
Data: pairs. Fixed point: some Pareto-stationary point; `sum` averages labels, not rewards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align.data.comparisons import Pair
from align.engines.gradient_step import CombinedGradients, ConflictRecord, combine
from align.engines.pairs import (
    PairTrainingConfig,
    carry,
    check_pair_config,
    dpo_trainer,
    judged_rows,
)
from align.engines.points import check_preferences, train_points
from align.engines.problem import Problem
from align.engines.settings import train_and_save
from align.errors import UserError
from align.functional.combine import FIXED_POINTS, Combination, check_combiner
from align.policies.base import PointFamily
from align.preferences import Weights
from align.runs import Workspace

if TYPE_CHECKING:
    from torch import Tensor
    from trl import DPOTrainer

ASKED_BY = (Weights,)
FAMILY = PointFamily


@dataclass(frozen=True, kw_only=True)
class Config(PairTrainingConfig):
    """DPO's fields, and how gradients are combined; `labels: given` is not for pairs that all objectives share."""

    labels: str = "scalarised"  # from the row's scores_a, scores_b, one objective at a time; or objectives
    combiner: str = "raco"
    c: float = 0.5  # radius of CAGrad and RACO, in [0, 1); 0 is the weighted sum


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> PointFamily:
    """One model per preference. Objectives of weight 0 have no labels and no gradient. Prompts are not used, nor are
    the objectives, but for their names, unless `labels` is objectives.

    UserError when comparisons are missing or carry no scores, or on a value that is no configuration.
    """
    names = check_preferences(problem)
    check_config(config)
    judged = judged_rows(config, problem, run.ledger, method="gradient_dpo", at=Weights.vertices(len(names)))

    def body(weights: Weights, point: Workspace) -> Mapping[str, object]:
        counts = [k for k, w in enumerate(weights) if w]
        labelled = [judged.labelled_at(Weights.vertex(k, len(names))) for k in counts]
        point.ledger.add(scores_read=len(counts) * len(judged.rows))
        combination = Combination(
            config.combiner, tuple(weights[k] for k in counts), tuple(names[k] for k in counts), config.c, config.seed
        )
        return train_on(
            labelled,
            combination=combination,
            config=config,
            reference=problem.reference,
            run=point,
        )

    return train_points(
        "gradient_dpo",
        config,
        problem,
        run,
        rows=judged.rows,
        body=body,
        optimises=lambda w: describe(config, weights=w),
    )


def check_config(config: Config) -> None:
    """UserError on a value that is no configuration of this method."""
    check_pair_config(config)
    check_combiner(config)
    if config.labels == "given":
        raise UserError(
            "gradient_dpo labels every pair for every objective, and given labels are each of one; "
            "set labels: scalarised or objectives"
        )
    if config.mle_weight:
        raise UserError("gradient_dpo has no mle_weight: a pair has no chosen response that all objectives share")


def describe(config: Config, *, weights: Weights) -> str:
    """One line: what a point's training really optimises."""
    data = f"offline pairs labelled per objective (labels: {config.labels}, annotator temperature {config.tau:g})"
    if weights.is_vertex:
        return (
            f"E[w.r] - {config.beta:g} KL(pi||ref) at w = {weights.label}, from {data}: "
            f"DPO of one objective at beta {config.beta / config.tau:g}"
        )
    how = FIXED_POINTS[config.combiner].format(c=config.c)
    return (
        f"no J at w = {weights.label}: one DPO loss per objective (beta {config.beta / config.tau:g}) by {how}; "
        f"from {data}; the sum's own optimum averages labels, and is that of w.r to first order only"
    )


def train_on(
    labelled: Sequence[Sequence[Pair]],
    *,
    combination: Combination,
    config: Config,
    reference: str,
    run: Workspace,
) -> dict[str, object]:
    """Train one model on the same pairs under every objective's labels, save it in `run.folder/model`; metrics."""
    trainer, record = build_trainer(
        labelled, combination=combination, config=config, reference=reference, folder=run.folder
    )
    done = train_and_save(trainer, label=f"gradient_dpo {run.folder.stem}", run=run, config=config)
    # Beside training: one pass of the reference over the pairs (2 N a token), a backward pass (4 N) per objective more.
    run.ledger.add(flops=2 * done.work / config.epochs + 4 * done.work * (len(labelled) - 1))
    return {"loss": done.loss, **done.more, "pairs": len(labelled[0]), **trainer.lost, **record.report()}


def build_trainer(
    labelled: Sequence[Sequence[Pair]], *, combination: Combination, config: Config, reference: str, folder: Path
) -> tuple[DPOTrainer, ConflictRecord]:
    """DPO's own trainer on the pairs as the first objective labels them, with the others' signs beside as a column.

    So pairs and loss at a vertex are those of plain DPO. Signs are joined by id: TRL may drop rows by length.
    """
    from trl import DPOTrainer

    signs = {
        pairs[0].id: [1.0 if pair.swapped == pairs[0].swapped else -1.0 for pair in pairs]
        for pairs in zip(*labelled, strict=True)
    }
    trainer = dpo_trainer(labelled[0], config=config, reference=reference, beta=config.beta / config.tau, folder=folder)
    # dpo_trainer stays the one place that knows DPO's settings; only the step of what it built is another.
    trainer.__class__ = type("CombinedDPOTrainer", (SignedLosses, CombinedGradients, DPOTrainer), {})
    trainer.train_dataset = trainer.train_dataset.add_column("signs", [signs[i] for i in trainer.train_dataset["id"]])
    carry(trainer, "signs")
    return trainer, combine(trainer, combination)


class SignedLosses:
    """Before `CombinedGradients` and DPOTrainer: objective k's loss is DPO's with beta times +1 or -1 for each pair.

    TRL's logged rewards are averages over objectives; its `rewards/chosen` and `rewards/rejected` say nothing here,
    margins and accuracies are right.
    """

    beta: float

    def objective_inputs(self, inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        plain, beta = {name: value for name, value in inputs.items() if name != "signs"}, self.beta
        try:
            for signs_B in inputs["signs"].unbind(-1):
                self.beta = beta * signs_B
                yield plain
                # Only the first loss runs the model: from the second on the mask would only count its tokens again.
                plain = {**plain, "attention_mask": plain["attention_mask"].new_zeros(plain["attention_mask"].shape)}
        finally:
            self.beta = beta
