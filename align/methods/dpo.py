"""Direct preference optimisation (Rafailov et al. 2023) on one objective's labels or on scalarised labels.

Per preference w the loss is `-log sigmoid((beta / tau) [dlog(pi/ref)])`. With labels drawn from
`sigmoid(w . dr / tau)` its minimiser over all policies is `ref exp(w . r / beta)`, the optimum of
`J = E[w . r] - beta KL(pi || ref)`, on the support of the pairs.
Data: pairs. Fixed point: the optimum of J on the support of the pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from align.data.label_noise import label_report
from align.engines.pairs import PairTrainingConfig, check_pair_config, judged_rows, train_on_pairs
from align.engines.points import check_preferences, train_points
from align.engines.problem import Problem
from align.policies.base import PointFamily
from align.preferences import Weights
from align.runs import Workspace

ASKED_BY = (Weights,)
FAMILY = PointFamily


@dataclass(frozen=True, kw_only=True)
class Config(PairTrainingConfig):
    """How to label and train, nothing more."""


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> PointFamily:
    """One DPO model per preference. Prompts are not used, nor are the objectives, but for their names, unless
    `labels` is objectives.

    UserError when comparisons are missing or do not carry what `labels` needs.
    """
    check_preferences(problem)
    check_pair_config(config)
    judged = judged_rows(config, problem, run.ledger, method="dpo")
    pairs = {w.label: judged.labelled_at(w) for w in problem.preferences}  # a mixture of given labels is refused here

    report = label_report(judged, at=problem.preferences)

    def body(weights: Weights, point: Workspace) -> Mapping[str, object]:
        beta, labelled = config.beta / config.tau, pairs[weights.label]
        metrics = train_on_pairs(labelled, reference=problem.reference, beta=beta, config=config, run=point)
        return metrics if report is None else {**metrics, "labels": report.metrics(weights)}

    return train_points(
        "dpo", config, problem, run, rows=judged.rows, body=body, optimises=lambda w: describe(config, weights=w)
    )


def describe(config: Config, *, weights: Weights) -> str:
    """One line: the J that a point optimises, and what in its data differs from it."""
    text = (
        f"E[w.r] - {config.beta:g} KL(pi||ref) at w = {weights.label}, from offline pairs (labels: {config.labels}, "
        f"annotator temperature {config.tau:g}, DPO beta {config.beta / config.tau:g})"
    )
    return text + (f", plus {config.mle_weight:g} x token NLL of the chosen response" if config.mle_weight else "")
