"""Measured suites to their table, and to the summary that the report and later commands read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError
from evals.items import Json
from recipes.suites.options import Options

if TYPE_CHECKING:
    from evals.backends.base import Backend
    from evals.backends.reward_model import RewardBackend
    from evals.measure.cells import Evaluated


def table_of(
    results: Mapping[str, Evaluated], *, backend: Backend | RewardBackend, max_missing: float
) -> Json:
    """Every number of every suite: outcomes, matched controls, families, means; and a hash over all of it."""
    from evals.tables.suite_tables import table_hash

    suites = {name: _entry(result, max_missing=max_missing) for name, result in results.items()}
    content = {"model": backend.name, "fingerprint": backend.fingerprint, "suites": suites}
    return {**content, "hash": table_hash(content)}


def _entry(result: Evaluated, *, max_missing: float) -> Json:
    from evals.tables.contrasts import placebo_pairs, placebo_table
    from evals.tables.outcomes import outcome_table
    from evals.tables.shift_families import family_table
    from evals.tables.suite_outcomes import comprehension_of, outcomes_of
    from evals.tables.suite_tables import number_table

    cells, shifts, measured = result.cells, result.shifts, result.measurements
    items = {cell.item.id: cell.item for cell in cells}
    sides = Counter("neither" if i.neutral else "harmful" if i.harmful else i.label or "other" for i in items.values())
    entry: Json = {
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


def shift_facts(results: Mapping[str, Evaluated]) -> dict[str, Json]:
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
    table: Json, results: Mapping[str, Evaluated], *, options: Options, facts: Mapping[str, object], command: str
) -> Json:
    """The table with examples of cells, facts about its shifts, and how it was made."""
    from evals.tables.examples import examples

    suites = {name: {**table["suites"][name], "examples": examples(result.cells)} for name, result in results.items()}
    judged = any("verdict" in result.measurements for result in results.values())
    return {
        **table, "title": options.title, "kind": "suites", "suites": suites, "shifts": shift_facts(results),
        "judge": list(options.judge) if judged else [], "max_missing": options.max_missing, "command": command,
        "provenance": dict(facts),
    }  # fmt: skip


def read_summary(folder: str) -> Json:
    """summary.json of an evaluation, empty where it has none; UserError where it cannot be read."""
    file = Path(folder) / "summary.json"
    if not file.is_file():
        return {}
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        shifts = summary.get("shifts", {})
        if not all(isinstance(fact["family"], str) and isinstance(fact["mode"], str) for fact in shifts.values()):
            raise TypeError("a shift without family and mode")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: not the summary of an evaluation ({error!r}); run align suites again") from error
    return summary
