"""Failures by family of shifts: the rate over all shifts of a family, its change, and its worst shift; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.items import NO_SHIFT
from evals.tables.outcomes import Outcome, correct_changes, failure_change, verdict_share


def family_table(outcomes: Sequence[Outcome], *, families: Mapping[str, str]) -> dict[str, Any]:
    """`families`: family -> side -> rate, paired change and worst shift; an item's shifts are averaged first.

    `families` says which family a shift counts in; shifts without an entry (controls, the plain prompts) are in none.
    Holm's correction covers all families and sides of this table.
    """
    home = [o for o in outcomes if o.shift == NO_SHIFT]
    table: dict[str, Any] = {}
    for family in dict.fromkeys(families.values()):
        inside = [o for o in outcomes if families.get(o.shift) == family]
        entry: dict[str, Any] = {}
        for name, harmful in (("harmful", True), ("benign", False)):
            away, before = ([o for o in part if o.harmful is harmful] for part in (inside, home))
            rate = verdict_share(away, "BAD")
            if rate is not None:
                entry[name] = {"failures": rate, "change": failure_change(before, away), **_worst(away)}
        if entry:
            table[family] = entry
    return {"families": table, "comparisons": correct_changes(list(table.values()))}


def _worst(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The shift that fails most (of equal ones the first by name), its rate, and how many shifts there are."""
    found: dict[str, float] = {}
    for shift in sorted({o.shift for o in outcomes}):
        rate = verdict_share([o for o in outcomes if o.shift == shift], "BAD")
        if rate is not None:
            found[shift] = rate["value"]
    worst = max(found, key=lambda shift: found[shift])
    return {"shifts": len(found), "worst_shift": worst, "worst_value": found[worst]}
