"""How a score holds under shift: gaps, effective robustness, worst cases, detection, held-out families; pure.

Every function is told which way is better. Shapes: N, M scores. Sources: HELM (worst case over perturbations), WILDS
(worst group), Taori et al. 2020 and Miller et al. 2021 (effective robustness, logits), Hendrycks & Gimpel 2017 (AUROC).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from align.errors import UserError
from evals.items import NO_SHIFT
from evals.stats.intervals import Interval, clustered_mean


@dataclass(frozen=True)
class Gap:
    """From in distribution to shifted; positive is worse. None where the denominator is 0."""

    absolute: float
    relative: float | None  # of the value in distribution
    normalised: float | None  # (id - ood) / (id - chance)
    retention: float | None  # (ood - chance) / (id - chance)


def gap(home: float, *, away: float, chance: float = 0.0, higher_is_better: bool = True) -> Gap:
    """The four gaps of a score. The last two are the same for an accuracy and for its error rate, as they should be."""
    drop = home - away if higher_is_better else away - home
    lead = home - chance
    return Gap(
        absolute=drop,
        relative=drop / home if home else None,
        normalised=(home - away) / lead if lead else None,
        retention=(away - chance) / lead if lead else None,
    )


# --- effective robustness --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EffectiveRobustness:
    """A model's accuracy under shift less what its accuracy in distribution predicts, and what that rests on.

    The line was fitted without the model. `low` and `high` are the others' range in distribution; outside it the
    prediction is an extrapolation. `residual_sd` is the others' own spread around the line, in logits. `clipped` counts
    accuracies moved off 0 or 1, where a logit is infinite.
    """

    value: float
    predicted: float
    slope: float
    intercept: float
    residual_sd: float
    models: int
    low: float
    high: float
    extrapolates: bool
    clipped: int


def effective_robustness(
    model: str, *, home: Mapping[str, float], away: Mapping[str, float], floor: float = 1e-3
) -> EffectiveRobustness:
    """`away[m] - expit(a + b logit(home[m]))` with a, b by least squares over all other models (Taori et al. 2020).

    Accuracies in [0, 1]. UserError for fewer than three other models, or others that are all equal in distribution:
    then there is no line.
    """
    if set(home) != set(away) or model not in home:
        raise ValueError(f"{model!r} and every other model need an accuracy in distribution and under the shift")
    if any(not 0 <= value <= 1 for side in (home, away) for value in side.values()):
        raise ValueError("an accuracy lies outside [0, 1]")
    others = [name for name in home if name != model]
    if len(others) < 3:
        raise UserError(
            f"effective robustness of {model}: {len(others)} other models, at least 3 make a line; evaluate more of "
            "them (earlier checkpoints are legitimate)"
        )
    before, after = (np.array([side[name] for name in others]) for side in (home, away))
    if np.ptp(before) == 0:
        raise UserError(f"effective robustness of {model}: the others are all equal in distribution; add models")
    every = np.array([*home.values(), *away.values()])
    x, y = _logit(before, floor), _logit(after, floor)
    slope, intercept = (float(value) for value in np.polyfit(x, y, 1))
    residuals = y - (intercept + slope * x)
    logit = intercept + slope * float(_logit(np.array([home[model]]), floor)[0])
    predicted = float(1 / (1 + np.exp(-logit)))
    low, high = float(before.min()), float(before.max())
    return EffectiveRobustness(
        value=away[model] - predicted, predicted=predicted, slope=slope, intercept=intercept,
        residual_sd=float(np.sqrt((residuals**2).sum() / (len(others) - 2))), models=len(others), low=low, high=high,
        extrapolates=not low <= home[model] <= high, clipped=int(((every < floor) | (every > 1 - floor)).sum()),
    )  # fmt: skip


def _logit(shares: np.ndarray, floor: float) -> np.ndarray:
    inside = np.clip(shares, floor, 1 - floor)
    return np.asarray(np.log(inside / (1 - inside)))


# --- worst cases ---------------------------------------------------------------------------------------------------


def worst_case(
    values: Mapping[str, Mapping[str, float]],
    *,
    higher_is_better: bool,
    clusters: Mapping[str, Hashable] | None = None,
) -> Interval:
    """`mean_i min_t` of item -> shift -> value, the plain prompt among the shifts; the max where lower is better.

    ValueError where an item lacks a shift that another has: a worst case over fewer shifts is a milder one.
    """
    shifts = {shift for found in values.values() for shift in found}
    if NO_SHIFT not in shifts:
        raise ValueError(f"a worst case includes the plain prompt, shift {NO_SHIFT!r}")
    for item, found in values.items():
        if set(found) != shifts:
            raise ValueError(f"item {item} lacks shift {sorted(shifts - set(found))[0]}")
    pick = min if higher_is_better else max
    worst = {item: pick(found.values()) for item, found in values.items()}
    labels = list(worst) if clusters is None else [clusters[item] for item in worst]
    return clustered_mean(list(worst.values()), clusters_N=labels)


def worst_group(values: Mapping[str, float], *, higher_is_better: bool) -> str:
    """The group with the worst value; of equal ones, the first by name."""
    if not values:
        raise ValueError("a worst group needs at least one group")
    sign = 1 if higher_is_better else -1
    return min(values, key=lambda group: (sign * values[group], group))


# --- detection -------------------------------------------------------------------------------------------------------


def auroc(shifted_N: Sequence[float] | np.ndarray, *, plain_M: Sequence[float] | np.ndarray) -> float:
    """P(a shifted input scores higher than a plain one), ties half: the area under the ROC curve (Mann-Whitney)."""
    shifted, plain = _scores(shifted_N, plain_M)
    ordered = np.sort(plain)
    below = np.searchsorted(ordered, shifted, side="left")
    upto = np.searchsorted(ordered, shifted, side="right")
    return float((below + upto).sum() / 2 / (len(shifted) * len(plain)))


def false_positive_rate(
    shifted_N: Sequence[float] | np.ndarray, *, plain_M: Sequence[float] | np.ndarray, at: float = 0.95
) -> float:
    """Share of plain inputs flagged at the highest threshold that flags at least `at` of the shifted (FPR@95TPR)."""
    shifted, plain = _scores(shifted_N, plain_M)
    needed = int(np.ceil(at * len(shifted) - 1e-9))
    threshold = np.sort(shifted)[::-1][max(needed, 1) - 1]
    return float((plain >= threshold).mean())


def average_precision(shifted_N: Sequence[float] | np.ndarray, *, plain_M: Sequence[float] | np.ndarray) -> float:
    """Area under precision over recall, step-wise, with the shifted inputs as positives (AUPR-out)."""
    shifted, plain = _scores(shifted_N, plain_M)
    total = 0.0
    for threshold, count in zip(*np.unique(shifted, return_counts=True), strict=True):
        hits, alarms = (shifted >= threshold).sum(), (plain >= threshold).sum()
        total += float(count / len(shifted) * hits / (hits + alarms))
    return total


def _scores(*sides: Sequence[float] | np.ndarray) -> list[np.ndarray]:
    arrays = [np.asarray(side, dtype=float) for side in sides]
    if any(array.ndim != 1 or len(array) == 0 or not np.isfinite(array).all() for array in arrays):
        raise ValueError("detection needs finite scores of at least one shifted and one plain input")
    return arrays


# --- families of shifts ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FamilyTransfer:
    """What training on some families of shifts does for one family: seen in training, held out, and the difference."""

    seen: float | None  # mean over the rows that trained on it
    held_out: float | None
    gap: float | None  # seen minus held out; its sign is the score's


def leave_families_out(
    table: Mapping[frozenset[str], Mapping[str, float]],
) -> tuple[dict[str, FamilyTransfer], dict[int, float]]:
    """From training families -> test family -> score: per test family what was seen and held out, and a learning curve.

    The curve is the mean held-out score by how many families were trained on. With the rows "all but one" this is the
    leave-one-family-out matrix with its diagonal held out. ValueError where the rows differ in test families.
    """
    columns: Iterable[str] = next(iter(table.values()), {})
    if not table or any(set(row) != set(columns) for row in table.values()):
        raise ValueError("every training set needs a score on the same test families")
    found, by_count = {}, dict[int, list[float]]()
    for family in columns:
        seen = [row[family] for trained, row in table.items() if family in trained]
        held = [row[family] for trained, row in table.items() if family not in trained]
        means = [float(np.mean(part)) if part else None for part in (seen, held)]
        both = means[0] - means[1] if means[0] is not None and means[1] is not None else None
        found[family] = FamilyTransfer(means[0], means[1], both)
        for trained, row in table.items():
            if family not in trained:
                by_count.setdefault(len(trained), []).append(row[family])
    return found, {count: float(np.mean(scores)) for count, scores in sorted(by_count.items())}
