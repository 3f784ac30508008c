"""Expected calibration error as an `evaluate` metric, with MCE, Brier score and log loss beside it.

    metric = evaluate.load("<path>/evals/metrics/expected_calibration_error")
    metric.compute(predictions=[0.95, 0.6], references=[1, 0], bins=10)

Predictions are confidences, references whether the answer was right. Bins are right-closed, of equal width or mass.
"""

from __future__ import annotations

import datasets
import evaluate  # type: ignore[import-untyped,import-not-found,unused-ignore]

from evals.items import Json
from evals.stats.calibration import calibration


class ExpectedCalibrationError(evaluate.Metric):
    """Lower is better. Biased upwards in small samples: compare Brier scores."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="sum_b n_b / n |accuracy_b - confidence_b| over right-closed bins.",
            citation="Guo et al. 2017, arXiv 1706.04599",
            inputs_description="predictions: confidences. references: 1 right, 0 wrong. bins; by: 'width' or 'mass'.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[float], bins: int = 10, by: str = "width") -> Json:
        """`expected_calibration_error`, `mce`, `brier`, `nll`. ValueError for numbers outside [0, 1]."""
        measured = calibration(predictions, outcome_N=references, bins=bins, by=by)
        scores = {"mce": measured.mce, "brier": measured.brier, "nll": measured.nll}
        return {"expected_calibration_error": measured.ece, **scores}
