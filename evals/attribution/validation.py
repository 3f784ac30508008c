"""How well attribution finds planted causes: confusion, balanced accuracy, ablations, rivals, rank agreement; pure.

A case is one trained model under one shift. Models that start from one reference share what is read from it, so that
intervals count references.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evals.attribution.regions import (
    CANNOT_TELL,
    CLASSES,
    DECIDES,
    NEITHER,
    REGIONS,
    VERDICTS,
    Signals,
    Thresholds,
    attribute,
)
from evals.stats.intervals import Interval, bootstrap_interval

DRAWS = 10_000
OVER = "references"


@dataclass(frozen=True)
class Case:
    """One planted model under one shift: what it started from, what was planted and found, its failure rate there."""

    model: str
    reference: str
    shift: str
    truth: str
    found: str
    fails: float

    @property
    def right(self) -> bool:
        """Whether the cause was named; where nothing was planted, whether none was."""
        return self.found == self.truth or (self.truth == NEITHER and self.found == CANNOT_TELL)


def confusion(cases: Sequence[Case]) -> dict[str, dict[str, int]]:
    """truth -> verdict -> number of cases."""
    counts = Counter((case.truth, case.found) for case in cases)
    return {truth: {named: counts[truth, named] for named in VERDICTS} for truth in REGIONS}


def _counts(cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray]:
    """(right, all) cases, each (references, classes)."""
    names = list(dict.fromkeys(case.reference for case in cases))
    found = np.zeros((2, len(names), len(REGIONS)))
    for case in cases:
        place = names.index(case.reference), REGIONS.index(case.truth)
        found[(1, *place)] += 1
        found[(0, *place)] += case.right
    return found[0], found[1]


def _accuracy(right: np.ndarray, every: np.ndarray) -> np.ndarray:
    """Mean recall over the classes that occur, of sums (..., classes)."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nanmean(np.where(every > 0, right / np.where(every > 0, every, 1), np.nan), axis=-1))


def _resampled(sides: Sequence[Sequence[Case]], *, seed: int) -> tuple[list[np.ndarray], int]:
    """The balanced accuracy of each list of the same cases (entry 0), then in resamples of references; and how many."""
    counts = [_counts(cases) for cases in sides]
    references = len(counts[0][0])
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(references, np.full(references, 1 / references), size=DRAWS)
    every = np.concatenate([np.ones((1, references)), drawn])
    return [_accuracy(every @ right, every @ total) for right, total in counts], references


def balanced_accuracy(cases: Sequence[Case], *, seed: int = 0) -> Interval:
    """Mean recall over the classes that occur, bootstrap interval over references.

    Where every reference agrees that would have no width; then each class's recall is drawn from Jeffreys' posterior
    with its references as trials (Brown, Cai & DasGupta 2001). ValueError without a case.
    """
    if not cases:
        raise ValueError("a balanced accuracy needs at least one case")
    (values,), references = _resampled([cases], seed=seed)
    if np.ptp(values) > 0:
        return bootstrap_interval(values[1:], estimate=float(values[0]), n=references, over=OVER)
    right, every = _counts(cases)
    rng = np.random.default_rng(seed)
    occur = every.sum(0) > 0
    trials, recall = (every > 0).sum(0)[occur], right.sum(0)[occur] / every.sum(0)[occur]
    drawn = rng.beta(recall * trials + 0.5, (1 - recall) * trials + 0.5, size=(DRAWS, occur.sum())).mean(-1)
    low, high = (float(x) for x in np.quantile(drawn, [0.025, 0.975]))
    value = float(values[0])
    return Interval(value, min(low, value), max(high, value), f"{OVER}, all alike (Jeffreys)", references)


def gain(full: Sequence[Case], other: Sequence[Case], *, seed: int = 0) -> Interval:
    """Balanced accuracy of `full` minus that of another verdict on the same cases, bootstrap over references."""
    (first, second), references = _resampled([full, other], seed=seed)
    lead = first - second
    return bootstrap_interval(lead[1:], estimate=float(lead[0]), n=references, over=OVER)


# What it costs to do without each signal, and what recognition would add or replace: why it decides nothing.
ABLATIONS = {f"without {name}": tuple(n for n in DECIDES if n != name) for name in DECIDES}
OTHERS = {
    "with recognition beside distance (the rule before)": (*DECIDES, "recognition"),
    "with recognition in place of distance": ("comprehension", "pull", "recognition"),
}


def verdict_by(signals: Sequence[Signals], deciding: Sequence[str], *, thresholds: Thresholds) -> str:
    """The verdict on one case that is made of these signals alone."""
    (found,) = attribute(signals, thresholds=thresholds, deciding=deciding)
    return found.region


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
    "largest_class": largest_class,
    "failure_rate": by_failure_rate,
    "shift_name": by_label,
}


def agreement(
    first: Sequence[float], second: Sequence[float], *, references: Sequence[str], draws: int = 2000, seed: int = 0
) -> Interval:
    """Spearman's rho of paired values; resamples draw references with all their points."""
    names = list(dict.fromkeys(references))
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    places = {name: np.flatnonzero([r == name for r in references]) for name in names}
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        chosen = np.concatenate([places[names[i]] for i in rng.integers(len(names), size=len(names))])
        drawn.append(spearman(a[chosen], b[chosen]))
    return bootstrap_interval(drawn, estimate=spearman(a, b), n=len(names), over=OVER)


def spearman(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Spearman's rho: the correlation of ranks, ties sharing theirs; nan where one side does not vary.

    ValueError for fewer than 3 values or unlike numbers of them. (scipy's spearmanr is twenty times slower.)
    """
    from scipy.stats import rankdata

    if len(first_N) != len(second_N) or len(first_N) < 3:
        raise ValueError(f"{len(first_N)} and {len(second_N)} values: as many on both sides, at least 3")
    a, b = (ranks - ranks.mean() for ranks in (rankdata(first_N), rankdata(second_N)))
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread else math.nan
