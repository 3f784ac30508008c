"""Fronts under shift over training seeds: displacement, gain retained, the parts of the drop, rank changes; pure.

Answers come as one list for each training run (seed); runs share rows, preferences, shifts and prompts. Two intervals
stand side by side: over training seeds (t; what another training run may give) and over base items (answers averaged
over seeds first; what other topics or prompts may give). Shapes: D resamples, K objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from align.data.answers import Answer, ExactAnswer
from align.errors import UserError
from evals.items import NO_SHIFT, Json
from evals.stats import intervals as stats
from evals.stats.paired_tests import PairedTest, family, t_test
from evals.tables.surfaces import Surface, by_preference, surface, volumes
from evals.tables.under_shift.parts import SCORES, WHOLE, divided

A = TypeVar("A", bound=Answer)
Runs = Mapping[int, Sequence[A]]  # training seed -> answers
Exact = Mapping[int, Sequence[ExactAnswer]]
Scores = Mapping[str, Mapping[str, float]]  # row -> base item -> score
LEVEL = 0.05
SEEDS, ITEMS = "training seeds", "base items"


def select(answers: Sequence[A], *, row: str, shift: str) -> list[A]:
    """The answers of a row under a shift; UserError when there are none."""
    chosen = [answer for answer in answers if answer.row == row and answer.shift == shift]
    if not chosen:
        raise UserError(f"cells: row '{row}' has none under shift '{shift}'; evaluate it there or leave the row out")
    return chosen


def item_means(answers: Sequence[A], score: Callable[[A], float]) -> dict[str, float]:
    """Mean score of each base item over its prompts, preferences, samples and seeds."""
    gathered: dict[str, list[float]] = {}
    for answer in answers:
        gathered.setdefault(answer.item, []).append(score(answer))
    return {item: float(np.mean(values)) for item, values in gathered.items()}


def change(home: Mapping[str, float], away: Mapping[str, float]) -> stats.Interval:
    """Mean of away - home over base items: paired where both have the same items, else Welch's over the two sets."""
    if set(home) == set(away):
        return stats.paired_difference(away, second=home, over=f"{ITEMS}, paired")
    return stats.unpaired_difference(
        list(away.values()), second_M=list(home.values()), clusters_N=list(away), clusters_M=list(home)
    )


def both_intervals(
    runs: Runs[A], *, row: str, shift: str, score: Callable[[A], float], within: Callable[[A], bool] | None = None
) -> Json:
    """Mean change of a score from the plain inputs to those under the shift, with both intervals; JSON-ready.

    `within` keeps some of the answers (those of one preference).
    """
    kept = {
        seed: [
            [answer for answer in select(answers, row=row, shift=side) if within is None or within(answer)]
            for side in (NO_SHIFT, shift)
        ]
        for seed, answers in runs.items()
    }
    by_seed = {s: change(item_means(home, score), item_means(away, score)).estimate for s, (home, away) in kept.items()}
    pooled = [[answer for sides in kept.values() for answer in sides[k]] for k in (0, 1)]
    over_items = change(item_means(pooled[0], score), item_means(pooled[1], score))
    over_seeds = stats.seed_interval(list(by_seed.values()), over=SEEDS)
    return {"value": over_seeds.estimate, **_two(over_seeds, over_items)}


def _two(over_seeds: stats.Interval, over_items: stats.Interval) -> Json:
    return {
        "ci_seeds": over_seeds.pair,
        "ci_items": over_items.pair,
        "over_seeds": over_seeds.says,
        "over_items": over_items.says,
    }


def displacements(runs: Runs[A], *, row: str, shift: str, objectives: Sequence[str]) -> list[Json]:
    """How far each preference's point moves in every objective under the shift."""
    (some, *_) = runs.values()
    moved = []
    for preference in by_preference(select(some, row=row, shift=shift)):
        entry: Json = {"preference": list(preference)}
        for k, name in enumerate(objectives):
            entry[name] = both_intervals(
                runs, row=row, shift=shift, score=partial(objective_score, k=k),
                within=partial(_at, preference=preference),
            )  # fmt: skip
        moved.append(entry)
    return moved


def objective_score(answer: Answer, *, k: int) -> float:
    """The score of objective k."""
    return answer.values[k]


def _at(answer: Answer, *, preference: tuple[float, ...]) -> bool:
    return answer.preference == preference


def exact_parts(runs: Exact, *, row: str, shift: str) -> Json:
    """The drop in J and in reward, what the optimum loses, the rise of the regret, and the four parts.

    As in parts.py, averaged over preferences; positive is what is lost under the shift. The parts are left out where
    the shift has base items of its own.
    """
    away = [answer for answers in runs.values() for answer in select(answers, row=row, shift=shift)]
    names = SCORES if divided(away) else WHOLE
    return {name: both_intervals(runs, row=row, shift=shift, score=SCORES[name]) for name in names}


def gain_over_seeds(
    runs: Runs[A], *, row: str, shift: str, reference_row: str, reference_point: Sequence[float], draws: int, seed: int
) -> Json:
    """Hypervolume gain retained, `(HV_s(row) - HV_s(ref)) / (HV_id(row) - HV_id(ref))`, the mean of the seeds' ratios.

    Null with the reason for the reference itself, and where the gain in distribution of some seed is not above 0 by its
    own bootstrap interval: a share of nothing, or of a loss, is no share.
    """
    if row == reference_row:
        return _no_share("the reference model is the baseline")
    ratios: list[np.ndarray] = []
    items = 0
    for number, answers in runs.items():
        gains = []
        for side in (NO_SHIFT, shift):
            own, ref = (surface(answers, row=name, shift=side) for name in (row, reference_row))
            if own.items != ref.items:
                raise UserError(f"cells: rows '{row}' and '{reference_row}' differ in base items under '{side}'")
            gains.append(_volumes(own, reference_point, draws, seed) - _volumes(ref, reference_point, draws, seed))
            items = max(items, len(own.items))
        below = stats.bootstrap_interval(gains[0][1:], estimate=float(gains[0][0]), n=items)
        if below.low is None or below.low <= 0:
            limits = "no interval" if below.pair is None else f"[{below.pair[0]:.3g}, {below.pair[1]:.3g}]"
            found = f"seed {number}: {below.estimate:.3g} {limits}"
            return _no_share(f"the gain in distribution is not told from 0 ({found})")
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios.append(np.where(gains[0] > 0, gains[1] / gains[0], np.nan))
    mean_D = np.mean(ratios, axis=0)
    words = f"{ITEMS}, expanded bootstrap"
    over_items = stats.bootstrap_interval(mean_D[1:], estimate=float(mean_D[0]), n=items, over=words)
    over_seeds = stats.seed_interval([float(ratio_D[0]) for ratio_D in ratios], over=SEEDS)
    return {"value": float(mean_D[0]), **_two(over_seeds, over_items)}


def _no_share(reason: str) -> Json:
    words = f"null: {reason}"
    return {"value": None, "ci_seeds": None, "ci_items": None, "over_seeds": words, "over_items": words}


def _volumes(own: Surface, reference_point: Sequence[float], draws: int, seed: int) -> np.ndarray:
    """Hypervolume of the points, then of each resample of base items (shared by all that have the same items)."""
    counts_DG = stats.cluster_counts(own.items, draws=draws, seed=seed)
    return volumes(own, counts_DG=counts_DG, ref_point=reference_point)


def rank_changes(home: Scores, away: Scores) -> Json:
    """Ranks of rows by mean score (higher is better) on both sides, and every pair's paired tests over base items.

    A pair is `kept` when the same row leads on both sides by a test (p by Holm over all pairs of a side at most .05),
    `inverted` when the other one leads, `lost` when they differ on the plain side only, `new` when on the shifted
    side only, and `level` when neither does. Kendall's tau is that of the mean scores.
    """
    rows = list(home)
    if set(rows) != set(away):
        raise UserError("ranks: the rows on the two sides differ; evaluate every row under the shift")
    pairs = [(a, b) for i, a in enumerate(rows) for b in rows[i + 1 :]]
    tests = [family([t_test(side[a], second=side[b]) for a, b in pairs]) if pairs else [] for side in (home, away)]
    listed = []
    for (a, b), before, after in zip(pairs, *tests, strict=True):
        listed.append({"pair": [a, b], "home": _test(before), "away": _test(after), "verdict": _verdict(before, after)})
    means = [{row: float(np.mean(list(side[row].values()))) for row in rows} for side in (home, away)]
    return {
        "ranks_home": _ranks(means[0]),
        "ranks_away": _ranks(means[1]),
        "kendall_tau": kendall([means[0][row] for row in rows], [means[1][row] for row in rows]),
        "pairs": listed,
        "over": f"paired t over {ITEMS}, Holm over {len(pairs)} pairs on each side",
    }


def _test(test: PairedTest) -> Json:
    shown = {"difference": test.estimate, "ci": test.interval.pair, "p": test.p, "p_holm": test.p_adjusted}
    return shown | {"n": test.clusters}


def _verdict(before: PairedTest, after: PairedTest) -> str:
    apart = [test.p_adjusted is not None and test.p_adjusted <= LEVEL for test in (before, after)]
    if all(apart):
        return "kept" if before.estimate * after.estimate > 0 else "inverted"
    return "lost" if apart[0] else "new" if apart[1] else "level"


def _ranks(means: Mapping[str, float]) -> dict[str, int]:
    return {row: rank for rank, row in enumerate(sorted(means, key=lambda row: -means[row]), start=1)}


def kendall(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of two lists of scores; None where one of them is constant or has fewer than two entries."""
    from scipy.stats import kendalltau

    if len(first) < 2 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(kendalltau(first, second).statistic)


def seed_differences(
    runs: Runs[A], *, rows: tuple[str, str], shift: str, score: Callable[[A], float]
) -> stats.Interval:
    """The first row's mean score minus the second's under a shift ("none" for plain), over training seeds."""
    gaps = []
    for answers in runs.values():
        first, second = (item_means(select(answers, row=row, shift=shift), score) for row in rows)
        gaps.append(float(np.mean(list(first.values())) - np.mean(list(second.values()))))
    return stats.seed_interval(gaps, over=SEEDS)
