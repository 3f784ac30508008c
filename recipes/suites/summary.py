"""Measured suites to their table, to the summary that the report reads, and to the outcomes that a comparison pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def table_of(results: Mapping[str, Any], *, backend: Any, max_missing: float) -> dict[str, Any]:
    """Every number of suite -> (suite, asked, found): outcomes, twins, families, means; and a hash over all of it."""
    from evals.tables.suite_tables import table_hash

    suites = {name: _entry(*result, max_missing=max_missing) for name, result in results.items()}
    content = {"model": backend.name, "fingerprint": backend.fingerprint, "suites": suites}
    return {**content, "hash": table_hash(content)}


def _entry(suite: Any, asked: Any, found: Mapping[str, Any], *, max_missing: float) -> dict[str, Any]:
    from evals.tables.contrasts import placebo_pairs, placebo_table
    from evals.tables.outcomes import outcome_table
    from evals.tables.shift_families import family_table
    from evals.tables.suite_outcomes import comprehension_of, outcomes_of
    from evals.tables.suite_tables import number_table

    items = {one.item.id: one.item for one in asked}
    shifts = {one.shift.name: one.shift for one in asked}
    sides = Counter("neither" if i.neutral else "harmful" if i.harmful else i.label or "other" for i in items.values())
    entry: dict[str, Any] = {
        "kind": suite.kind, "items": len(items), "labels": dict(sorted(sides.items())), "shift_count": len(shifts),
        "cells": sum(len(cells) for cells in found.values()),
        "numbers": {measured: number_table(asked, cells) for measured, cells in found.items()},
    }  # fmt: skip
    if "verdict" in found:
        outcomes = outcomes_of(asked, found["verdict"])
        comprehension = comprehension_of(asked, found)
        entry["outcomes"] = outcome_table(outcomes, comprehension=comprehension, max_missing=max_missing)
        entry["placebo"] = placebo_table(outcomes, pairs=placebo_pairs(shifts.values()))
        counted = {name: shift.family for name, shift in shifts.items() if shift.mode not in ("none", "control")}
        entry["families"] = family_table(outcomes, families=counted)
    if "pairs" in found:
        from evals.tables.reward_suite import reward_table

        entry["rewards"] = reward_table(asked, found["pairs"], max_missing=max_missing)
    return entry


def shift_facts(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """shift -> what a reader should know of it, for every shift that was asked."""
    return {
        one.shift.name: {
            "family": one.shift.family, "mode": one.shift.mode, "about": one.shift.about,
            "placebo": one.shift.placebo, "version": one.shift.version,
        }
        for _, asked, _ in results.values()
        for one in asked
    }  # fmt: skip


def summary_of(
    table: Mapping[str, Any], results: Mapping[str, Any], *, config: Any, facts: Mapping[str, Any], command: str
) -> dict[str, Any]:
    """The table with examples of cells, facts about its shifts, and how it was made."""
    from evals.tables.examples import examples

    suites = {
        name: {**table["suites"][name], "examples": examples(asked, found)}
        for name, (_, asked, found) in results.items()
    }
    judged = any("verdict" in found for _, _, found in results.values())
    return {
        **table, "title": config.title, "kind": "suites", "suites": suites, "shifts": shift_facts(results),
        "judge": list(config.judge) if judged else [], "max_missing": config.max_missing, "command": command,
        "provenance": dict(facts),
    }  # fmt: skip


def write_outcomes(results: Mapping[str, Any], file: Path) -> None:
    """Every judged outcome as a line: what `align compare` pairs."""
    from evals.items import Missing
    from evals.tables.export import write_rows
    from evals.tables.suite_outcomes import outcomes_of

    rows: list[dict[str, Any]] = []
    for name, (_, asked, found) in results.items():
        for one in outcomes_of(asked, found["verdict"]) if "verdict" in found else ():
            gone = isinstance(one.verdict, Missing)
            row = {**one.__dict__, "suite": name, "verdict": None if gone else str(one.verdict)}
            rows.append({**row, "missing": one.verdict.reason if isinstance(one.verdict, Missing) else None})
    if rows:
        write_rows(rows, file)


