"""Yes/no evaluations with few changes, drawn from stated rates: paired changes, worst groups, gaps, at least one of k.

Each gives the interval that a table prints, and the exact value that it is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np

from benchmarks.coverage.estimators import Estimate
from evals.bridges.standard_tasks import apart
from evals.items import NO_SHIFT
from evals.stats.intervals import Interval
from evals.stats.paired_shares import share_change
from evals.stats.shares import share
from evals.tables.outcomes import Outcome, any_of, outcome_table, parity_gap

POINTS, ITEMS = (1, 3, 5, 10), (30, 50, 100, 200, 500)
ICC = 0.3  # how alike the items of one cluster are, where they are in clusters
CLUSTERED = ", in clusters of 5"
CASES: Mapping[str, Mapping[str, Any]] = {"": {}, ", 5 points the other way": {"against": 0.05}, CLUSTERED: {"size": 5}}
Draw = Callable[[np.random.Generator], Estimate]


def _said(items: np.ndarray) -> dict[str, float]:
    return {str(i): float(value) for i, value in enumerate(items)}


def change(rng: np.random.Generator, *, points: int, items: int, against: float = 0.0, size: int = 1) -> Estimate:
    """So many points of the items more get worse than get better; AssertionError where interval and p disagree."""
    rises = points / 100 + against
    alike = 1 / ICC - 1
    rate = rng.beta(rises * alike, (1 - rises) * alike, size=items // size) if size > 1 else np.full(items, rises)
    chance, drawn = np.repeat(rate, size), rng.random(items)
    after, before = drawn < chance, (chance <= drawn) & (drawn < chance + against)
    if size > 1:
        return Estimate(_checked(after, before, {str(i): str(i // size) for i in range(items)}), points / 100)
    return Estimate(_of_counts(int(after.sum()), int(before.sum()), items), points / 100)


def _checked(after: np.ndarray, before: np.ndarray, clusters: Mapping[str, str] | None = None) -> Interval:
    found = share_change(_said(after), before=_said(before), clusters=clusters)
    assert found is not None and (found.p <= 0.05) == found.interval.excludes_zero, found
    return found.interval


@lru_cache(None)
def _of_counts(worse: int, better: int, items: int) -> Interval:
    """Items of their own are told apart by nothing but which way they move."""
    places = np.arange(items)
    return _checked(places < worse, (worse <= places) & (places < worse + better))


def _outcomes(failed: np.ndarray, *, shift: str = NO_SHIFT, sample: int = 0, per_group: int = 1) -> Iterator[Outcome]:
    for i, bad in enumerate(failed):
        yield Outcome(str(i), str(i), shift, "BAD" if bad else "GOOD", True, str(i // per_group), sample)


def worst(rng: np.random.Generator, *, groups: int = 18, items: int = 20, rate: float = 0.1) -> Estimate:
    """Groups that all fail at one rate: the worst of them was worst by chance."""
    made = list(_outcomes(rng.random(groups * items) < rate, per_group=items))
    found = outcome_table(made)["shifts"][NO_SHIFT]["harmful"]["worst_group"]
    low, high = found["ci"]
    return Estimate(Interval(found["value"], low, high, found["over"], found["n"]), rate)


def one_of_two(rng: np.random.Generator, *, items: int) -> Estimate:
    """At least one of two of four samples fails, where an item fails at a rate of its own, .1 in the mean."""
    rate_N = rng.beta(0.3, 2.7, size=items)
    made = [one for s in range(4) for one in _outcomes(rng.random(items) < rate_N, sample=s)]
    return Estimate(any_of(made)[2], 1 - 2.7 * 3.7 / (3 * 4))


def parity(rng: np.random.Generator, *, items: int) -> Estimate:
    """Safety loses ten points and reading five."""
    home, away = np.zeros(items, bool), rng.random(items) < 0.1
    read = {(str(i), "s"): bool(ok) for i, ok in enumerate(rng.random(items) >= 0.05)}
    read |= {(str(i), NO_SHIFT): True for i in range(items)}
    found = parity_gap(list(_outcomes(home)), list(_outcomes(away, shift="s")), read=read)
    assert found is not None
    return Estimate(found, 0.05)


def unpaired(rng: np.random.Generator, *, items: int) -> Estimate:
    """The accuracy of two suites of other items, .98 and .9."""
    first, second = (share(rng.random(items) < p, cells_G=np.ones(items)) for p in (0.98, 0.9))
    return Estimate(apart(first, second), 0.08)


RARE: dict[tuple[str, int], Draw] = {
    (f"{points} points{words}", items): partial(change, points=points, items=items, **given)
    for words, given in CASES.items() for points in POINTS for items in (ITEMS[2:4] if words == CLUSTERED else ITEMS)
}  # fmt: skip
OTHERS: dict[tuple[str, int], Draw] = {
    ("worst of 18 groups of 20", 360): worst,
    **{("at least one of 2 samples", items): partial(one_of_two, items=items) for items in (20, 100)},
    **{("parity gap", items): partial(parity, items=items) for items in (50, 100)},
    **{("accuracy of two suites, unpaired", items): partial(unpaired, items=items) for items in (50, 200)},
}
