"""Pairwise accuracy of a reward model as an `evaluate` metric, with Bradley-Terry loss and calibration beside it.

    metric = evaluate.load("<path>/evals/metrics/rm_pairwise_accuracy")
    metric.compute(predictions=[1.2, 0.1], references=[0.3, 0.4])

Predictions are scores of the chosen responses, references those of the rejected ones. A tie counts one half.
"""

from __future__ import annotations

import datasets
import evaluate  # type: ignore[import-untyped,import-not-found,unused-ignore]

from evals.items import Json
from evals.tables.reward_tables import pair_table


class RMPairwiseAccuracy(evaluate.Metric):
    """Higher is better for the accuracy, lower for the losses."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of comparisons whose chosen response scores higher; ties one half.",
            citation="Lambert et al. 2024, arXiv 2403.13787",
            inputs_description="predictions: scores of the chosen; references: of the rejected; subsets, clusters too.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(
        self,
        predictions: list[float],
        references: list[float],
        subsets: list[str] | None = None,
        clusters: list[str] | None = None,
    ) -> Json:
        """`rm_pairwise_accuracy` with `ci`, `macro` over subsets, `log_loss`, `brier`, `ece`."""
        keys = [str(i) for i in range(len(predictions))]

        def by_item(values: list[str] | None) -> dict[str, str] | None:
            return None if values is None else dict(zip(keys, values, strict=True))

        margins = {key: a - b for key, a, b in zip(keys, predictions, references, strict=True)}
        table = pair_table(margins, subsets=by_item(subsets), clusters=by_item(clusters))
        return {
            "rm_pairwise_accuracy": table.accuracy.estimate, "ci": table.accuracy.pair, "over": table.accuracy.says,
            "macro": table.macro, "log_loss": table.log_loss.estimate, "brier": table.brier.estimate,
            "ece": table.calibration.ece,
        }  # fmt: skip
