"""Measured suites to their table, and to the summary that the report reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals.backends.base import Backend
    from evals.measure.cells import Evaluated


def table_of(results: Mapping[str, Evaluated], *, backend: Backend, max_missing: float) -> dict[str, Any]:
    """Every number of every suite: outcomes, matched controls, families, means; and a hash over all of it."""
    from evals.tables.suite_tables import table_hash

    suites = {name: _entry(result, max_missing=max_missing) for name, result in results.items()}
    content = {"model": backend.name, "fingerprint": backend.fingerprint, "suites": suites}
    return {**content, "hash": table_hash(content)}


def _entry(result: Evaluated, *, max_missing: float) -> dict[str, Any]:
    from evals.tables.contrasts import placebo_pairs, placebo_table
    from evals.tables.outcomes import outcome_table
    from evals.tables.shift_families import family_table
    from evals.tables.suite_outcomes import comprehension_of, outcomes_of
    from evals.tables.suite_tables import number_table

    cells, shifts, measured = result.cells, result.shifts, result.measurements
    items = {cell.item.id: cell.item for cell in cells}
    sides = Counter("neither" if i.neutral else "harmful" if i.harmful else i.label or "other" for i in items.values())
    entry: dict[str, Any] = {
        "kind": result.suite.kind, "items": len(items), "labels": dict(sorted(sides.items())),
        "shift_count": len(shifts), "cells": len(cells) * len(measured),
        "numbers": {name: number_table(cells, name) for name in measured},
    }  # fmt: skip
    if "verdict" in measured:
        outcomes = outcomes_of(cells)
        comprehension = comprehension_of(cells)
        entry["outcomes"] = outcome_table(outcomes, comprehension=comprehension, max_missing=max_missing)
        entry["placebo"] = placebo_table(outcomes, pairs=placebo_pairs(shifts.values()))
        counted = {name: shift.family for name, shift in shifts.items() if shift.mode not in ("none", "control")}
        entry["families"] = family_table(outcomes, families=counted)
    if "pairs" in measured:
        from evals.tables.reward_suite import reward_table

        entry["rewards"] = reward_table(cells, max_missing=max_missing)
    return entry


def shift_facts(results: Mapping[str, Evaluated]) -> dict[str, dict[str, Any]]:
    """shift -> what a reader should know of it, for every shift that was asked."""
    return {
        name: {
            "family": shift.family, "mode": shift.mode, "about": shift.about, "placebo": shift.placebo,
            "version": shift.version,
        }
        for result in results.values()
        for name, shift in result.shifts.items()
    }  # fmt: skip


def summary_of(
    table: Mapping[str, Any], results: Mapping[str, Evaluated], *, config: Any, facts: Mapping[str, Any], command: str
) -> dict[str, Any]:
    """The table with examples of cells, facts about its shifts, and how it was made."""
    from evals.tables.examples import examples

    suites = {name: {**table["suites"][name], "examples": examples(result.cells)} for name, result in results.items()}
    judged = any("verdict" in result.measurements for result in results.values())
    return {
        **table, "title": config.title, "kind": "suites", "suites": suites, "shifts": shift_facts(results),
        "judge": list(config.judge) if judged else [], "max_missing": config.max_missing, "command": command,
        "provenance": dict(facts),
    }  # fmt: skip
