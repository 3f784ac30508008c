"""REBEL (Gao et al. 2024): least squares of the policy's log-ratios on reward differences, over pairs of known scores.

At weights w, over pairs (y, y') of a prompt with known scores, the loss (algorithm 1, with eta = 1 / beta) is

    ( beta [log pi/ref(y) - log pi/ref(y')]  -  w . (r(y) - r(y')) )^2.

`J = E[w . r] - beta KL(pi || ref)` has the optimum `ref exp(w . r / beta)`, at which every square is 0: with free
distributions it is the minimiser wherever pairs join the responses, whatever law they were drawn from. Pairs need no
label, so no annotator's noise enters, and beta is J's own. At w = e_k nothing is left of the other objectives.
*Deviations*: the paper draws new pairs from the policy every round and regresses on the policy of the round before, so
that the KL to its first policy grows with the rounds; here all pairs are given and ref stays, which is its first round.

How TRL trains it. Adding `w . r / beta` to a response's reference log-probability leaves `(beta delta)^2`, delta being
the difference of the log-ratios that DPOTrainer takes. Its own squared loss (`ipo`) divides each log-ratio by the
response's length and fits a constant. But `-log sigmoid(b delta)` has the slope `-delta / 2` in b at b = 0, so its own
loss, differentiated in a coefficient per pair, gives delta.
Legend: B pairs, K objectives.
Data: pairs. Fixed point: the optimum of J on the support of the pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import checks
from align.data.comparisons import Pair, required_rows, row_scores
from align.engines.pairs import PairTrainingConfig, dpo_trainer
from align.engines.points import check_preferences, train_points
from align.engines.problem import Problem
from align.engines.settings import TrainingConfig, check_training, train_and_save
from align.errors import UserError
from align.methods.modpo import reference_shift
from align.objectives.metered import objective_scores
from align.policies.base import PointFamily
from align.preferences import Weights
from align.runs import Ledger, Workspace

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel
    from trl import DPOTrainer

SCORES = ("rows", "objectives")
Scores = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # a row's id to both responses' (K,) scores, in order
ASKED_BY = (Weights,)
FAMILY = PointFamily


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """How to train, and whence the scores: the row's `scores_a`, `scores_b`, or asked from the objectives."""

    scores: str = "rows"
    epochs: float = 1.0
    max_length: int | None = None  # tokens kept of prompt + response; a prompt that fills it drops its row


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> PointFamily:
    """One model per preference; scores are read once and serve all of them. Neither prompts are used nor, where
    `scores` is rows, the objectives, but for their names. An objective without weight anywhere is not asked.

    UserError when comparisons are missing or carry no scores, or on a value that is no configuration.
    """
    names = check_preferences(problem)
    check_config(config)
    rows = required_rows(problem.comparisons, method="rebel")
    used = [k for k in range(len(names)) if any(weights[k] > 0 for weights in problem.preferences)]
    scores = scores_of(config, problem, run.ledger, used=used)
    pairs = [Pair.of(row) for row in rows]

    def body(weights: Weights, point: Workspace) -> Mapping[str, object]:
        values = weighted(scores, weights=[weights[k] for k in used])
        return train_on(pairs, values=values, config=config, reference=problem.reference, run=point)

    return train_points(
        "rebel", config, problem, run, rows=rows, body=body, optimises=lambda w: describe(config, weights=w)
    )


def check_config(config: Config) -> None:
    """UserError on a value that is no configuration of this method."""
    check_training(config)
    checks.above_zero(config, "epochs")
    checks.one_of(config, scores=SCORES)


def describe(config: Config, *, weights: Weights) -> str:
    """One line: the J that a point optimises, and from what data."""
    return (
        f"E[w.r] - {config.beta:g} KL(pi||ref) at w = {weights.label}, by least squares of log-ratios on the reward "
        f"differences of offline pairs (scores: {config.scores})"
    )


def scores_of(config: Config, problem: Problem[Weights], ledger: Ledger, *, used: Sequence[int]) -> Scores:
    """Both responses' scores under the objectives in `used`, by the row's id; every score read is charged.

    UserError naming the row that has none or too few.
    """
    names, rows = problem.names, problem.comparisons or ()
    if config.scores == "objectives":
        asked = {names[k]: problem.objectives[names[k]] for k in used}
        return objective_scores(rows, objectives=asked, ledger=ledger)
    found = row_scores(rows)
    for name, both in found.items():
        if any(len(one) != len(names) for one in both):
            counts = " and ".join(str(len(one)) for one in both)
            raise UserError(f"comparison {name} has {counts} scores for {len(names)} objectives")
    ledger.add(scores_read=2 * len(used) * len(rows))
    return {name: ([a[k] for k in used], [b[k] for k in used]) for name, (a, b) in found.items()}


def weighted(scores: Scores, *, weights: Sequence[float]) -> dict[str, tuple[float, float]]:
    """`w . r` of both responses of every row."""

    def value(one: Sequence[float]) -> float:
        return sum(w * r for w, r in zip(weights, one, strict=True) if w)

    return {name: (value(a), value(b)) for name, (a, b) in scores.items()}


def train_on(
    pairs: Sequence[Pair],
    *,
    values: Mapping[str, tuple[float, float]],
    config: Config,
    reference: str,
    run: Workspace,
) -> dict[str, float | None]:
    """Train one model on pairs whose `w . r` are `values`, save it in `run.folder/model`; metrics.

    The loss in the metrics is the mean square in squared reward units.
    """
    trainer = build_trainer(pairs, values=values, config=config, reference=reference, folder=run.folder)
    done = train_and_save(trainer, label=f"rebel {run.folder.stem}", run=run)
    # One pass of the reference over the pairs (2 N a token), on top of the training the callback counted.
    run.ledger.add(flops=2 * done.work / config.epochs)
    return {"loss": done.loss, "pairs": len(pairs), **trainer.lost}


def build_trainer(
    pairs: Sequence[Pair],
    *,
    values: Mapping[str, tuple[float, float]],
    config: Config,
    reference: str,
    folder: Path,
) -> DPOTrainer:
    """DPO's own trainer on the pairs in stored order, its reference shifted by `w . r / beta`, its loss squared."""
    from trl import DPOTrainer

    shared = {f.name for f in fields(PairTrainingConfig)} & {f.name for f in fields(config)}
    plain = PairTrainingConfig(**{name: getattr(config, name) for name in shared})
    trainer = dpo_trainer(pairs, config=plain, reference=reference, beta=config.beta, folder=folder)
    # dpo_trainer stays the one place that knows DPO's settings; only the loss of what it built is another.
    trainer.__class__ = type("RebelTrainer", (SquaredLogRatios, DPOTrainer), {})
    shift = reference_shift(pairs, tables=[values], rest_weights=[1.0], beta=config.beta)
    trainer.train_dataset = shift(trainer.train_dataset)
    return trainer


class SquaredLogRatios:
    """Before DPOTrainer: the loss is the mean of `(beta delta)^2` over the pairs of a batch.

    TRL's logged `rewards/*` are taken at the coefficient 0 and say nothing here.
    """

    beta: Any

    def _compute_loss(self, model: PreTrainedModel, inputs: dict[str, Tensor], return_outputs: bool = False) -> Tensor:
        import torch

        beta, count = self.beta, len(inputs["input_ids"]) // 2  # TRL's batch: all first responses, then all second ones
        self.beta = torch.zeros(count, device=inputs["input_ids"].device, requires_grad=True)
        try:
            loss = super()._compute_loss(model, inputs, False)  # type: ignore[misc]
            (slope_B,) = torch.autograd.grad(loss, self.beta, create_graph=True)  # -delta / (2 B): the loss is a mean
        finally:
            self.beta = beta
        return (2 * count * beta * slope_B).square().mean()
