"""Groups and families of shifts: the worst group (WILDS), and what a family scores seen and held out; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np


def worst_group(values: Mapping[str, float], *, higher_is_better: bool) -> str:
    """The group with the worst value; of equal ones, the first by name."""
    if not values:
        raise ValueError("a worst group needs at least one group")
    sign = 1 if higher_is_better else -1
    return min(values, key=lambda group: (sign * values[group], group))


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
