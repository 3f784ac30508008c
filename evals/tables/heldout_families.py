"""Leave-one-family-out: what training on some shift families does on those held out, from exact cells; pure.

Cells come as one list for each training run (seed), as in `evals.tables.shifted_fronts`. The mismatched part of a
row under a
shift that keeps the base items is `regret_s - regret_id`, item by item; a reduction is the baseline row's part minus
the arm's, paired by base item and seed: positive is better. A reduction alone is no merit (the untouched reference has
no mismatched part at all), so the regret under the shift itself and the cost on plain inputs stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from align.errors import UserError
from evals.items import NO_SHIFT
from evals.stats import intervals as stats
from evals.tables.shifted_fronts import ITEMS, SEEDS, Runs, item_means, select
from evals.tables.tradeoffs import Cell

PerItem = Mapping[str, float]


def mismatched(cells: Sequence[Cell], *, row: str, shift: str) -> dict[str, float]:
    """`regret_s - regret_id` of each base item, averaged over preferences; UserError where the items differ."""
    away = regret(cells, row=row, shift=shift)
    home = regret(cells, row=row, shift=NO_SHIFT)
    if set(home) != set(away):
        raise UserError(f"cells: shift '{shift}' changes the base items; its mismatched part has no value for each")
    return {item: away[item] - home[item] for item in home}


def regret(cells: Sequence[Cell], *, row: str, shift: str) -> dict[str, float]:
    """Mean regret of each base item under a shift ("none" for plain)."""
    return item_means(select(cells, row=row, shift=shift), lambda cell: float(cell["regret"]))


def averaged(parts: Sequence[PerItem]) -> dict[str, float]:
    """The mean of several values per item, item by item; all parts must have the same items."""
    if any(set(part) != set(parts[0]) for part in parts):
        raise UserError("cells: the parts to average differ in base items")
    return {item: float(np.mean([part[item] for part in parts])) for item in parts[0]}


def over_seeds_and_items(values: Mapping[int, PerItem]) -> dict[str, Any]:
    """The mean of per-item values of each seed with its two intervals: over seeds, and over items (seeds averaged)."""
    over_seeds = stats.seed_interval([float(np.mean(list(part.values()))) for part in values.values()], over=SEEDS)
    pooled = averaged(list(values.values()))
    over_items = stats.clustered_mean(list(pooled.values()), clusters_N=list(pooled), over=ITEMS)
    return {
        "value": over_seeds.estimate,
        "ci_seeds": over_seeds.pair,
        "ci_items": over_items.pair,
        "over_seeds": over_seeds.says,
        "over_items": over_items.says,
    }


def level(
    runs: Runs, *, pairs: Sequence[tuple[str, str]], of: Callable[..., PerItem] = mismatched
) -> dict[str, Any]:
    """The mean of `of` (the mismatched part, or the regret) over (row, shift) pairs."""
    return over_seeds_and_items(
        {seed: averaged([of(cells, row=row, shift=shift) for row, shift in pairs]) for seed, cells in runs.items()}
    )


def reduction(
    runs: Runs,
    *,
    baseline: str,
    pairs: Sequence[tuple[str, str]],
    of: Callable[..., PerItem] = mismatched,
) -> dict[str, Any]:
    """`of` of the baseline minus that of each (arm, shift) pair, paired by item, seed and shift; mean over pairs."""

    def difference(cells: Sequence[Cell]) -> dict[str, float]:
        parts = []
        for arm, shift in pairs:
            without, with_arm = (of(cells, row=row, shift=shift) for row in (baseline, arm))
            parts.append({item: without[item] - with_arm[item] for item in without})
        return averaged(parts)

    return over_seeds_and_items({seed: difference(cells) for seed, cells in runs.items()})


def cost(
    runs: Runs,
    *,
    baseline: str,
    arms: Sequence[str],
    preference: Sequence[float] | None,
    score: Callable[[Cell], float],
) -> dict[str, Any]:
    """Mean over arms of a score on plain inputs minus the baseline's, at one preference (None: over all)."""

    def scores(cells: Sequence[Cell], row: str) -> dict[str, float]:
        kept = select(cells, row=row, shift=NO_SHIFT)
        if preference is not None:
            kept = [cell for cell in kept if list(cell["preference"]) == list(preference)]
        return item_means(kept, score)

    values = {}
    for seed, cells in runs.items():
        before = scores(cells, baseline)
        parts = [scores(cells, arm) for arm in arms]
        mean = averaged(parts)
        values[seed] = {item: mean[item] - before[item] for item in before}
    return over_seeds_and_items(values)
