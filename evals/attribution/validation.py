"""How well attribution finds planted mechanisms: confusion, balanced accuracy, simple rivals, rank agreement; pure.

A case is one trained model under one shift. Intervals count trained models, for one model gives several cases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evals.attribution.regions import CLASSES, REGIONS
from evals.attribution.sampled_split import rank_correlation
from evals.stats.intervals import Interval, bootstrap_interval

DRAWS = 20_000


@dataclass(frozen=True)
class Case:
    """One planted model under one shift: `model` names the trained model, `fails` its failure rate there."""

    model: str
    shift: str
    truth: str
    found: str
    fails: float


def confusion(cases: Sequence[Case]) -> dict[str, dict[str, int]]:
    """truth -> found -> number of cases, every region named."""
    counts = Counter((case.truth, case.found) for case in cases)
    return {truth: {named: counts[truth, named] for named in REGIONS} for truth in CLASSES}


def _recalls(cases: Sequence[Case]) -> dict[str, tuple[float, int]]:
    """class -> (recall, number of trained models) of the classes that occur."""
    recalls = {}
    for truth in CLASSES:
        planted = [case for case in cases if case.truth == truth]
        if planted:
            right = sum(case.found == truth for case in planted) / len(planted)
            recalls[truth] = right, len({case.model for case in planted})
    return recalls


def balanced_accuracy(cases: Sequence[Case], *, seed: int = 0) -> Interval:
    """Mean recall over the classes that occur, with an interval that has a width where every case is right.

    Percentiles of the mean of recalls, each drawn from Jeffreys' posterior of its class with trained models as the
    trials (Brown, Cai & DasGupta 2001), as if recalls and models were independent: a model that has cases in several
    classes, or models that share a reference, make the interval too narrow. ValueError without a case.
    """
    recalls = _recalls(cases)
    if not recalls:
        raise ValueError("a balanced accuracy needs at least one case")
    rng = np.random.default_rng(seed)
    drawn = [rng.beta(r * n + 0.5, (1 - r) * n + 0.5, size=DRAWS) for r, n in recalls.values()]
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    value = float(np.mean([r for r, _ in recalls.values()]))
    models = len({case.model for case in cases})
    over = "trained models (" + ", ".join(f"{n} {name}" for name, (_, n) in recalls.items()) + ")"
    return Interval(value, float(min(low, value)), float(max(high, value)), over, models)


def largest_class(development: Sequence[Case], fresh: Sequence[Case]) -> list[str]:
    """What a rival answers that always names the class that was most frequent in development."""
    top = Counter(case.truth for case in development).most_common(1)[0][0]
    return [top] * len(fresh)


def by_failure_rate(development: Sequence[Case], fresh: Sequence[Case], *, k: int = 3) -> list[str]:
    """What a rival answers that knows failure rates alone: the majority of the k nearest development cases."""

    def nearest(case: Case) -> str:
        near = sorted(development, key=lambda d: abs(d.fails - case.fails))[:k]
        return Counter(d.truth for d in near).most_common(1)[0][0]

    return [nearest(case) for case in fresh]


def by_label(development: Sequence[Case], fresh: Sequence[Case]) -> list[str]:
    """What a rival answers that knows the shift's name alone: its most frequent mechanism in development."""
    counts: dict[str, Counter[str]] = {}
    for case in development:
        counts.setdefault(case.shift, Counter())[case.truth] += 1
    return [counts[case.shift].most_common(1)[0][0] if case.shift in counts else CLASSES[0] for case in fresh]


RIVALS: dict[str, Callable[[Sequence[Case], Sequence[Case]], list[str]]] = {
    "always the largest class": largest_class,
    "the failure rate alone": by_failure_rate,
    "the shift's name alone": by_label,
}


@dataclass(frozen=True)
class Agreement:
    """Rank agreement of two lists: Spearman and Kendall with bootstrap intervals over trained models."""

    spearman: Interval
    kendall: Interval
    points: int


def agreement(
    first: Sequence[float], second: Sequence[float], *, models: Sequence[str], draws: int = 2000, seed: int = 0
) -> Agreement:
    """Rank correlations of paired values; resamples draw trained models with all their points."""
    names = list(dict.fromkeys(models))
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    places = {name: np.flatnonzero([m == name for m in models]) for name in names}
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        chosen = np.concatenate([places[names[i]] for i in rng.integers(len(names), size=len(names))])
        drawn.append(rank_correlation(a[chosen].tolist(), b[chosen].tolist()))
    rho, tau = rank_correlation(a.tolist(), b.tolist())
    spearman, kendall = (
        bootstrap_interval([f[k] for f in drawn], estimate=value, n=len(names), over="trained models")
        for k, value in enumerate((rho, tau))
    )
    return Agreement(spearman, kendall, len(a))
