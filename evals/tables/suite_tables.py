"""Measured cells of one policy on one suite to one table: outcomes, and means of every number per shift; pure.

Every interval runs over base items, samples of one item averaged first; differences to the plain prompts are paired.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from evals.items import NO_SHIFT, Missing, digest
from evals.measure.engine import Asked
from evals.measure.store import Measured
from evals.stats.intervals import clustered_mean, paired_difference

Found = Mapping[str, Sequence[Measured]]
# text, verdicts and bookkeeping have tables of their own, or none
SKIPPED = {"completion": {"text", "finished"}, "comprehension": {"text"}, "verdict": {"why", "verdict"}}


def item_means(asked: Sequence[Asked], cells: Sequence[Measured], field: str) -> dict[str, dict[str, float]]:
    """shift -> item -> mean of a numeric field over the item's samples; Missing cells and None are left out."""
    gathered: dict[str, dict[str, list[float]]] = {}
    for one, cell in zip(asked, cells, strict=True):
        if isinstance(cell.value, Missing) or not isinstance(cell.value.get(field), (int, float)):
            continue
        gathered.setdefault(one.shift.name, {}).setdefault(one.item.id, []).append(float(cell.value[field]))
    return {
        shift: {item: sum(values) / len(values) for item, values in items.items()} for shift, items in gathered.items()
    }


def numeric_fields(cells: Sequence[Measured]) -> list[str]:
    """The fields that hold numbers or truth values, in order of first appearance; lists and text are not averaged."""
    fields: dict[str, None] = {}
    for cell in cells:
        if isinstance(cell.value, Missing):
            continue
        for name, value in cell.value.items():
            if isinstance(value, (bool, int, float)) and name not in SKIPPED.get(cell.measurement, ()):
                fields.setdefault(name)
    return list(fields)


def number_table(asked: Sequence[Asked], cells: Sequence[Measured]) -> dict[str, Any]:
    """field -> shift -> mean with its interval, the paired change against the plain prompts, and Missing by reason."""
    missing: dict[str, Counter[str]] = {}
    clusters = {one.item.id: one.item.cluster for one in asked}
    for one, cell in zip(asked, cells, strict=True):
        if isinstance(cell.value, Missing):
            missing.setdefault(one.shift.name, Counter())[cell.value.reason] += 1
    table: dict[str, Any] = {}
    for field in numeric_fields(cells):
        means = item_means(asked, cells, field)
        home = means.get(NO_SHIFT, {})
        table[field] = {}
        for shift, items in means.items():
            entry = clustered_mean(list(items.values()), clusters_N=[clusters[i] for i in items]).stated
            shared = [item for item in items if item in home]
            if shift != NO_SHIFT and shared:
                change = paired_difference(
                    {i: items[i] for i in shared}, second={i: home[i] for i in shared},
                    clusters={i: clusters[i] for i in shared}, over="base items, paired",
                )  # fmt: skip
                entry["change"] = change.stated
            table[field][shift] = entry
    return {"fields": table, "missing": {shift: dict(sorted(counts.items())) for shift, counts in missing.items()}}


def table_hash(table: Mapping[str, Any]) -> str:
    """A hash of every number of a table: the same plan on the same model has the same, however it was interrupted."""
    return digest(table)
