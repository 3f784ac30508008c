"""Measured cells of one policy on one suite to one table: outcomes, and means of every number per shift; pure.

Every interval runs over base items, samples of one item averaged first; differences to the plain prompts are paired.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evals.items import NO_SHIFT, Json, Missing, digest
from evals.measure.cells import Cell, Evaluated
from evals.stats.intervals import clustered_mean, paired_difference
from evals.tables.contrasts import control_pairs, control_table, family_table
from evals.tables.outcomes import outcome_table
from evals.tables.reward_suite import reward_table
from evals.tables.suite_outcomes import comprehension_of, outcomes_of

if TYPE_CHECKING:
    from evals.backends.base import Backend
    from evals.backends.reward_model import RewardBackend

# text, verdicts and bookkeeping have tables of their own, or none
SKIPPED = {"completion": {"text", "finished"}, "comprehension": {"text"}, "verdict": {"why", "verdict", "can_fail"}}


def item_means(cells: Sequence[Cell], measurement: str, field: str) -> dict[str, dict[str, float]]:
    """shift -> item -> mean of a numeric field over the item's samples; Missing values and None are left out."""
    gathered: dict[str, dict[str, list[float]]] = {}
    for cell in cells:
        value = cell.value(measurement)
        if isinstance(value, Missing) or not isinstance(value.get(field), (int, float)):
            continue
        gathered.setdefault(cell.shift.name, {}).setdefault(cell.item.id, []).append(float(value[field]))
    return {
        shift: {item: sum(values) / len(values) for item, values in items.items()} for shift, items in gathered.items()
    }


def numeric_fields(cells: Sequence[Cell], measurement: str) -> list[str]:
    """The fields that hold numbers or truth values, in order of first appearance; lists and text are not averaged."""
    fields: dict[str, None] = {}
    for cell in cells:
        value = cell.value(measurement)
        if isinstance(value, Missing):
            continue
        for name, entry in value.items():
            if isinstance(entry, (bool, int, float)) and name not in SKIPPED.get(measurement, ()):
                fields.setdefault(name)
    return list(fields)


def number_table(cells: Sequence[Cell], measurement: str) -> Json:
    """field -> shift -> mean with its interval, the paired change against the plain prompts, and Missing by reason."""
    missing: dict[str, Counter[str]] = {}
    clusters = {cell.item.id: cell.item.cluster for cell in cells}
    for cell in cells:
        value = cell.value(measurement)
        if isinstance(value, Missing):
            missing.setdefault(cell.shift.name, Counter())[value.reason] += 1
    table: Json = {}
    for field in numeric_fields(cells, measurement):
        means = item_means(cells, measurement, field)
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


def table_hash(table: Mapping[str, object]) -> str:
    """A hash of every number of a table: the same plan on the same model has the same, however it was interrupted."""
    return digest(table)


def table_of(results: Mapping[str, Evaluated], *, backend: Backend | RewardBackend, max_missing: float) -> Json:
    """Every number of every suite: outcomes, matched controls, families, means; and a hash over all of it."""
    suites = {name: suite_table(result, max_missing=max_missing) for name, result in results.items()}
    content = {"model": backend.name, "fingerprint": backend.fingerprint, "suites": suites}
    return {**content, "hash": table_hash(content)}


def suite_table(result: Evaluated, *, max_missing: float) -> Json:
    """The numbers of one suite. UserError where a larger share than `max_missing` is missing under a rate."""
    cells, shifts, measured = result.cells, result.shifts, result.measurements
    items = {cell.item.id: cell.item for cell in cells}
    sides = Counter("neither" if i.neutral else "harmful" if i.harmful else i.label or "other" for i in items.values())
    entry: Json = {
        "kind": result.suite.kind.name, "items": len(items), "labels": dict(sorted(sides.items())),
        "shift_count": len(shifts), "cells": len(cells) * len(measured),
        "numbers": {name: number_table(cells, name) for name in measured},
    }  # fmt: skip
    if "verdict" in measured:
        outcomes = outcomes_of(cells)
        comprehension = comprehension_of(cells)
        entry["outcomes"] = outcome_table(outcomes, comprehension=comprehension, max_missing=max_missing)
        entry["placebo"] = control_table(outcomes, pairs=control_pairs(shifts.values()))
        counted = {name: shift.family for name, shift in shifts.items() if shift.mode not in ("none", "control")}
        entry["families"] = family_table(outcomes, families=counted)
    if "pairs" in measured:
        entry["rewards"] = reward_table(cells, max_missing=max_missing)
    return entry
