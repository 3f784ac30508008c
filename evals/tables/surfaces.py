"""Answers to points and surfaces: means per preference over prompts, and per base item what a bootstrap needs; pure.

Shapes: M preferences, N points, G base items, D resamples, K objectives. Prompts weigh equally.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from align.data.answers import Answer, ExactAnswer, SampledAnswer
from align.errors import UserError
from align.functional import fronts
from evals.items import NO_SHIFT, Json
from evals.stats import intervals as stats

Preference = tuple[float, ...]
A = TypeVar("A", bound=Answer)


@dataclass(frozen=True)
class Surface:
    """One row under one shift, summed per base item: all that fronts and their bootstrap need."""

    row: str
    shift: str
    preferences: tuple[Preference, ...]
    items: tuple[str, ...]
    prompts: tuple[str, ...]
    sums_MGK: np.ndarray
    counts_MG: np.ndarray

    def points(self) -> np.ndarray:
        """Mean values per preference over prompts, M x K."""
        return self.resampled(np.ones((1, len(self.items))))[0]

    def resampled(self, counts_DG: np.ndarray) -> np.ndarray:
        """The points of each bootstrap resample, D x M x K; row d counts how often each base item counts."""
        totals_DMK = np.einsum("dg,mgk->dmk", counts_DG, self.sums_MGK)
        return totals_DMK / np.einsum("dg,mg->dm", counts_DG, self.counts_MG)[:, :, None]

    def only(self, preferences: Sequence[Preference]) -> Surface:
        """The same surface at some of its preferences."""
        kept = [self.preferences.index(preference) for preference in preferences]
        return replace(
            self, preferences=tuple(preferences), sums_MGK=self.sums_MGK[kept], counts_MG=self.counts_MG[kept]
        )

    def item_means(self, preference: Preference) -> dict[str, np.ndarray]:
        """Mean values of one preference per base item, each of shape K."""
        m = self.preferences.index(preference)
        return {item: self.sums_MGK[m, g] / self.counts_MG[m, g] for g, item in enumerate(self.items)}


def volumes(own: Surface, *, counts_DG: np.ndarray, ref_point: Sequence[float]) -> np.ndarray:
    """Hypervolume of the points themselves (entry 0), then of each bootstrap resample; shape D + 1."""
    every_DG = np.concatenate([np.ones((1, len(own.items))), counts_DG])
    return hypervolumes(own.resampled(every_DG), ref_point=ref_point)


def hypervolumes(points_DNK: np.ndarray, *, ref_point: Sequence[float]) -> np.ndarray:
    """`fronts.hypervolume` of each of D sets of N points; shape D.

    Two objectives are swept for all sets at once: sorted by the first, from the best down, each point adds the strip
    between its height and the highest so far. With more objectives, or one, it is the loop.
    """
    points = np.asarray(points_DNK, dtype=float)
    reference = np.asarray(ref_point, dtype=float)
    if points.ndim != 3 or reference.shape != points.shape[2:]:
        raise ValueError(f"points of shape {points.shape} with a reference point of shape {reference.shape}")
    if points.shape[2] != 2:
        return np.array([fronts.hypervolume(set_NK, ref_point=reference) for set_NK in points])
    if not np.isfinite(points).all():
        raise ValueError("a point is not finite")
    above = np.maximum(points - reference, 0.0)  # a point that is not above in every objective spans nothing
    order = np.argsort(-above[:, :, 0], axis=1)
    width_DN = np.take_along_axis(above[:, :, 0], order, axis=1)
    height_DN = np.maximum.accumulate(np.take_along_axis(above[:, :, 1], order, axis=1), axis=1)
    rises_DN = np.diff(height_DN, axis=1, prepend=0.0)
    volumes_D: np.ndarray = (width_DN * rises_DN).sum(axis=1)
    return volumes_D


def by_preference(answers: Iterable[A]) -> dict[Preference, list[A]]:
    """Answers grouped by preference, preferences sorted."""
    groups: dict[Preference, list[A]] = {}
    for answer in answers:
        groups.setdefault(answer.preference, []).append(answer)
    return dict(sorted(groups.items()))


def surface(answers: Iterable[Answer], *, row: str, shift: str = NO_SHIFT) -> Surface:
    """The answers of one row and shift as a `Surface`.

    UserError when there are none, or when two preferences were not measured on the same prompts.
    """
    groups = by_preference(answer for answer in answers if answer.row == row and answer.shift == shift)
    if not groups:
        raise UserError(f"cells: row '{row}' has none under shift '{shift}'; evaluate it there or leave the row out")
    prompts = {preference: {(a.item, a.prompt) for a in group} for preference, group in groups.items()}
    first = next(iter(prompts.values()))
    for preference, pairs in prompts.items():
        if pairs != first:
            raise UserError(
                f"cells: row '{row}', shift '{shift}', preference {list(preference)} is measured on other prompts than "
                f"the row's first preference ({len(pairs)} against {len(first)}); evaluate every preference on the same"
            )
    items = tuple(sorted({item for item, _ in first}))
    column = {item: g for g, item in enumerate(items)}
    width = len(next(iter(groups)))
    sums, counts = np.zeros((len(groups), len(items), width)), np.zeros((len(groups), len(items)))
    for m, group in enumerate(groups.values()):
        for answer in group:
            sums[m, column[answer.item]] += answer.values
            counts[m, column[answer.item]] += 1
    return Surface(row, shift, tuple(groups), items, tuple(sorted({prompt for _, prompt in first})), sums, counts)


def row_names(answers: Iterable[Answer], *, shift: str = NO_SHIFT) -> list[str]:
    """Rows with answers under a shift, in order of first appearance."""
    return list(dict.fromkeys(answer.row for answer in answers if answer.shift == shift))


@dataclass(frozen=True, kw_only=True)
class Point:
    """Means over prompts of one row at one preference: the objectives' values (K) and the KL in nats."""

    preference: Preference
    values: tuple[float, ...]
    kl: float

    def jsonable(self) -> Json:
        """A point of `front` in summary.json."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


@dataclass(frozen=True, kw_only=True)
class ExactPoint(Point):
    """A point with its exact objective value, and the optimum's at the same preference."""

    J: float
    regret: float
    J_star: float
    values_star: tuple[float, ...]
    kl_star: float
    malformed: float

    @staticmethod
    def parse(row: Mapping[str, object]) -> ExactPoint:
        """The point that `jsonable` wrote; ValueError naming a key that is missing or no number."""
        numbers = {name: row.get(name) for name in ("kl", "J", "regret", "J_star", "kl_star", "malformed")}
        lists = {name: row.get(name) for name in ("preference", "values", "values_star")}
        for name, value in numbers.items():
            if not isinstance(value, (int, float)):
                raise ValueError(f"a point has {name} {value!r}, which is no number")
        for name, value in lists.items():
            if not isinstance(value, list) or not all(isinstance(entry, (int, float)) for entry in value):
                raise ValueError(f"a point has {name} {value!r}, which is no list of numbers")
        return ExactPoint(**numbers, **{name: tuple(value) for name, value in lists.items()})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class SampledPoint(Point):
    """A point with t intervals clustered by base item; `ci_over` is what they run over."""

    values_ci: tuple[list[float] | None, ...]
    kl_ci: list[float] | None
    ci_over: str


def _mean(numbers: Iterable[float]) -> float:
    return float(np.mean(list(numbers)))


def _means(rows: Iterable[Sequence[float]]) -> tuple[float, ...]:
    return tuple(np.mean(list(rows), axis=0).tolist())


def exact_points(answers: Iterable[ExactAnswer]) -> list[ExactPoint]:
    """One point per preference from exact answers: means over prompts of values, KL, J, regret and the optimum's."""
    return [
        ExactPoint(
            preference=preference,
            values=_means(a.values for a in group),
            kl=_mean(a.kl for a in group),
            J=_mean(a.J for a in group),
            regret=_mean(a.regret for a in group),
            J_star=_mean(a.J_star for a in group),
            values_star=_means(a.values_star for a in group),
            kl_star=_mean(a.kl_star for a in group),
            malformed=_mean(a.malformed for a in group),
        )
        for preference, group in by_preference(answers).items()
    ]


def sampled_points(answers: Iterable[SampledAnswer]) -> list[SampledPoint]:
    """One point per preference from sampled answers, each value and the KL with its interval over base items."""
    points = []
    for preference, group in by_preference(answers).items():
        items = [answer.item for answer in group]
        intervals = [
            stats.clustered_mean([answer.values[k] for answer in group], clusters_N=items, over="prompts")
            for k in range(len(preference))
        ]
        spent = stats.clustered_mean([answer.kl for answer in group], clusters_N=items, over="prompts")
        points.append(
            SampledPoint(
                preference=preference,
                values=tuple(interval.estimate for interval in intervals),
                kl=spent.estimate,
                values_ci=tuple(interval.pair for interval in intervals),
                kl_ci=spent.pair,
                ci_over=f"{intervals[0].says}, {len(group)} samples",
            )
        )
    return points
