"""Hypervolume as an `evaluate` metric: the volume that a set of trade-off points dominates above a reference point.

    metric = evaluate.load("<path>/evals/metrics/hypervolume")
    metric.compute(predictions=[[0.9, 0.2], [0.7, 0.6], [0.3, 0.9]], ref_point=[0, 0])   # {"hypervolume": 0.55, ...}

Every objective is maximised. The reference point is never fitted to the points: publish it with the number.
"""

from __future__ import annotations

import datasets
import evaluate  # type: ignore[import-untyped,import-not-found,unused-ignore]

from align.functional import fronts
from evals.items import Json


class Hypervolume(evaluate.Metric):
    """Higher is better, at matched KL only: spending more KL raises it."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Lebesgue measure of what the points dominate above ref_point; all objectives maximised.",
            citation="Zitzler & Thiele 1999",
            inputs_description="predictions: points, one list of objectives each. ref_point: one value per objective.",
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
        )

    def _compute(self, predictions: list[list[float]], ref_point: list[float]) -> Json:
        """`hypervolume` and which points are on the front. ValueError for points of another length than ref_point."""
        return {
            "hypervolume": fronts.hypervolume(predictions, ref_point=ref_point),
            "nondominated": fronts.nondominated(predictions).tolist(),
        }
