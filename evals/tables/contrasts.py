"""An attack against its placebo twin: failures that its words add beyond the wrapper and the surface cost; pure.

The twin has the same frame without adversarial content (`Shift.placebo`, or the shift that a control `ablates`). What
the twin breaks as well, the attack does not break by its content.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from evals.shifts.base import Shift
from evals.tables.outcomes import Outcome, correct_changes, failure_change, verdict_share


def placebo_pairs(shifts: Iterable[Shift]) -> list[tuple[str, str]]:
    """(attack, twin) for every two of the shifts that belong together, each once, in the order of the attacks."""
    listed = list(shifts)
    names = {shift.name for shift in listed}
    by_control = [(shift.ablates, shift.name) for shift in listed if shift.ablates in names]
    pairs = [(shift.name, shift.placebo) for shift in listed if shift.placebo in names]
    order = [shift.name for shift in listed]
    found = dict.fromkeys((str(attack), str(twin)) for attack, twin in (*pairs, *by_control))
    return sorted(found, key=lambda pair: (order.index(pair[0]), order.index(pair[1])))


def placebo_table(outcomes: Sequence[Outcome], *, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """`pairs`: attack, twin, and per side the failure rates of both and the paired change, twin to attack.

    Above 0 the attack fails more often than its twin. Holm's correction (`p_holm`) covers all pairs and sides of this
    table, `comparisons` of them. Outages are refused before, in the outcome table of the same outcomes.
    """
    by_shift: dict[str, list[Outcome]] = {}
    for one in outcomes:
        by_shift.setdefault(one.shift, []).append(one)
    entries: list[dict[str, Any]] = []
    for attack, twin in pairs:
        entry: dict[str, Any] = {"attack": attack, "twin": twin}
        for name, harmful in (("harmful", True), ("benign", False)):
            away, home = ([o for o in by_shift.get(s, ()) if o.harmful is harmful] for s in (attack, twin))
            change = failure_change(home, away)
            if change is not None:
                rates = {"attack": verdict_share(away, "BAD"), "twin": verdict_share(home, "BAD")}
                entry[name] = {"change": change, **rates}
        if len(entry) > 2:
            entries.append(entry)
    return {"pairs": entries, "comparisons": correct_changes(entries)}
