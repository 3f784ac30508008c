"""Attacks against their matched controls, and failures by family of shifts; pure.

A matched control has the frame of the attack without adversarial content (`Shift.control`, or the shift of which
a control is the `control_of`). What the control breaks as well, the attack does not break by its content.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from evals.items import NO_SHIFT, Json
from evals.shifts.base import Shift
from evals.tables.outcomes import Outcome, correct_changes, failure_change, failure_rate


def control_pairs(shifts: Iterable[Shift]) -> list[tuple[str, str]]:
    """(attack, control) for every two of the shifts that belong together, each once, in the order of the attacks."""
    listed = list(shifts)
    names = {shift.name for shift in listed}
    by_control = [(shift.control_of, shift.name) for shift in listed if shift.control_of in names]
    pairs = [(shift.name, shift.control) for shift in listed if shift.control in names]
    order = [shift.name for shift in listed]
    named = dict.fromkeys((str(attack), str(control)) for attack, control in (*pairs, *by_control))
    return sorted(named, key=lambda pair: (order.index(pair[0]), order.index(pair[1])))


def control_table(outcomes: Sequence[Outcome], *, pairs: Sequence[tuple[str, str]]) -> Json:
    """`pairs`: attack, its matched control (`twin`), and per side both failure rates and their paired change.

    Above 0 the attack fails more often than its control. Holm's correction (`p_holm`) covers all pairs and sides of the
    table, `comparisons` of them. Outages are refused before, in the outcome table of the same outcomes.
    """
    by_shift: dict[str, list[Outcome]] = {}
    for one in outcomes:
        by_shift.setdefault(one.shift, []).append(one)
    entries: list[Json] = []
    for attack, control in pairs:
        entry: Json = {"attack": attack, "twin": control}
        for name, harmful in (("harmful", True), ("benign", False)):
            away, home = ([o for o in by_shift.get(s, ()) if o.harmful is harmful] for s in (attack, control))
            change = failure_change(home, away)
            if change is not None:
                rates = {"attack": failure_rate(away), "twin": failure_rate(home)}
                entry[name] = {"change": change, **rates}
        if len(entry) > 2:
            entries.append(entry)
    return {"pairs": entries, "comparisons": correct_changes(entries)}


def family_table(outcomes: Sequence[Outcome], *, families: Mapping[str, str]) -> Json:
    """`families`: family -> side -> rate, paired change and worst shift; an item's shifts are averaged first.

    `families` maps a shift to the family that it counts in; others (controls, the plain prompts) are in none. Holm's
    correction covers all families and sides of this table.
    """
    home = [o for o in outcomes if o.shift == NO_SHIFT]
    table: Json = {}
    for family in dict.fromkeys(families.values()):
        inside = [o for o in outcomes if families.get(o.shift) == family]
        entry: Json = {}
        for name, harmful in (("harmful", True), ("benign", False)):
            away, before = ([o for o in part if o.harmful is harmful] for part in (inside, home))
            rate = failure_rate(away)
            if rate is not None:
                entry[name] = {"failures": rate, "change": failure_change(before, away), **_worst(away)}
        if entry:
            table[family] = entry
    return {"families": table, "comparisons": correct_changes(list(table.values()))}


def _worst(outcomes: Sequence[Outcome]) -> Json:
    """The shift that fails most (of equal ones the first by name; None where rates are bounds), its rate, and how many
    shifts there are.
    """
    rates: dict[str, float | None] = {}
    for shift in sorted({o.shift for o in outcomes}):
        rate = failure_rate([o for o in outcomes if o.shift == shift])
        if rate is not None:
            rates[shift] = rate["value"]
    known = {shift: value for shift, value in rates.items() if value is not None}
    worst = max(known, key=lambda shift: known[shift], default=None)
    return {"shifts": len(rates), "worst_shift": worst, "worst_value": known.get(worst or "")}
