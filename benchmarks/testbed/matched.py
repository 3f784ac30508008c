"""Hypervolume at matched KL of tables without an optimum: `best_of_256`, all but the optimum, stands in for it.

Tables of runs that were measured against the exact front at a row's largest KL have no number of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from align.functional import fronts
from align.testbed.world import WORLDS
from benchmarks.pages import Entry

NEAR = "best_of_256"  # its regret share is 1e-4, its raw hypervolume .995 of the optimum's


def matched_by_points(rows: Mapping[str, Entry], *, world: str) -> dict[str, float]:
    """Row -> hypervolume recovered at no more KL than NEAR spends at each preference, the mean over seeds.

    As in `evals.tables.tradeoffs.at_optimum_kl`. What the optimum gains over the reference model follows exactly from
    NEAR's points and the raw share of it that they recover.
    """
    corner = WORLDS[world].reference_point
    shares: dict[str, list[float]] = {}
    for row, entry in rows.items():
        for seed, own in entry["seeds"].items():
            start, near = (_by_preference(rows[name]["seeds"][seed]) for name in ("reference", NEAR))
            points = _by_preference(own)
            ends = [np.array([point["values"] for point in part.values()]) for part in (start, near)]
            low, high = (fronts.hypervolume(end, ref_point=[corner] * end.shape[1]) for end in ends)
            pulled = [_pulled(point, start=start[w]["values"], allowed=near[w]["kl"]) for w, point in points.items()]
            volume = fronts.hypervolume(np.array(pulled), ref_point=[corner] * ends[0].shape[1])
            gained = (high - low) / rows[NEAR]["seeds"][seed]["raw_hypervolume"]
            shares.setdefault(row, []).append((volume - low) / gained)
    return {row: float(np.mean(found)) for row, found in shares.items()}


def _by_preference(entry: Entry) -> dict[tuple[float, ...], Entry]:
    return {tuple(point["preference"]): point for point in entry["points"]}


def _pulled(point: Entry, *, start: Sequence[float], allowed: float) -> np.ndarray:
    """The values of the point mixed with the reference model's until its KL is at most `allowed`."""
    kept = min(1.0, allowed / point["kl"]) if point["kl"] > 0 else 1.0
    mixed: np.ndarray = np.array(start) + kept * (np.array(point["values"]) - np.array(start))
    return mixed
