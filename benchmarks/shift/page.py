"""The shift benchmark's page: shift.json -> shift.md and its figures; every number on it is generated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from align.functional import fronts
from benchmarks.command import write_table
from benchmarks.pages import Entry, excludes_zero, render, write
from benchmarks.shift import figures
from evals.items import NO_SHIFT

PARTS = ("front", "mitigation", "hh")
EXPLAINS = "graft_embeddings"  # an arm that explains the others and is no mitigation
CONTROLS = ("best_of", "kl_overspender", "length_only")  # how their rows' names begin


def write_page(table: Entry, *, folder: Path, command: str) -> None:
    """Write `shift.json`, `shift.md` and one figure for each part into `folder`."""
    write_table(folder / "shift.json", table)
    files = {"shift.md": page(table, command=command)}
    for part, name, draw in (
        ("front", "front", figures.front), ("front", "split", figures.split),
        ("mitigation", "mitigation", figures.mitigation), ("hh", "hh", figures.front),
    ):  # fmt: skip
        if part in table:
            files[f"shift-{name}.svg"] = draw(table[part])
    write(folder, files)


def page(table: Entry, *, command: str) -> str:
    """The page of the parts that the table has."""
    parts = {part: table.get(part) for part in PARTS}
    known = (
        arms, asked_everywhere, at_lower_corner, changed, core_seconds, drop, helping, missing_controls, moves,
        plain_percentiles, verdicts, without_gain,
    )  # fmt: skip
    functions = {function.__name__: function for function in known}
    return render(Path(__file__).with_name("page.md.j2"), **parts, **functions, table=table, command=command)


def missing_controls(part: Entry) -> list[str]:
    """The negative controls that a part lacks."""
    return [kind for kind in CONTROLS if not any(row.startswith(kind) for row in part.get("controls", ()))]


def drop(found: Entry, methods: Sequence[str]) -> Entry:
    """Of the methods under one shift: the rows by the rise of their regret and by gain retained (where it is
    defined), the mismatched parts in order, and the rows whose regret, or mismatched part, both intervals tell from 0.
    """
    rows = found["rows"]
    gains = [row for row in methods if rows[row]["gain_retained"]["value"] is not None]
    return {
        "rows": rows,
        "optimum": rows[methods[0]]["optimum"],
        "order": sorted(methods, key=lambda row: rows[row]["regret_rise"]["value"]),
        "gains": sorted(gains, key=lambda row: rows[row]["gain_retained"]["value"]),
        "mismatched": sorted(rows[row]["mismatched"]["value"] for row in methods if "mismatched" in rows[row]),
        "nonzero": [row for row in methods if excludes_zero(rows[row]["regret_rise"])],
        "sure": [row for row in methods if "mismatched" in rows[row] and excludes_zero(rows[row]["mismatched"])],
    }


def moves(ranks: Entry, methods: Sequence[str]) -> Entry:
    """The methods that keep their rank, those that move as "name before to after", and the number of each verdict."""
    before, after = ranks["ranks_home"], ranks["ranks_away"]
    return {
        "same": [row for row in methods if before[row] == after[row]],
        "moved": [f"{row} {before[row]} to {after[row]}" for row in methods if before[row] != after[row]],
        "counts": {word: verdicts({"": {"ranks": ranks}}).count(word) for word in ("kept", "inverted", "lost", "new")},
    }


def verdicts(shifts: Entry) -> list[str]:
    """The verdict of every pair of methods under every shift."""
    return [pair["verdict"] for found in shifts.values() for pair in found["ranks"]["pairs"]]


def changed(shifts: Entry) -> list[tuple[str, Entry]]:
    """(shift, pair) of every pair whose verdict is not `kept` or `level`."""
    pairs = [(shift, pair) for shift, found in shifts.items() for pair in found["ranks"]["pairs"]]
    return [(shift, pair) for shift, pair in pairs if pair["verdict"] not in ("kept", "level")]


def without_gain(part: Entry, *, by_shift: bool = True) -> list[str]:
    """Rows whose gain retained is not defined, with the shift and the reason, or with the reason alone."""
    reasons = set()
    for shift, found in part["shifts"].items():
        for row in (*part["methods"], *part["controls"]):
            gain = found["rows"][row]["gain_retained"]
            if gain["value"] is None:
                reasons.add(f"{row}, {shift}: {gain['over_seeds']}" if by_shift else f"{row}: {gain['over_seeds']}")
    return sorted(reasons)


def plain_percentiles(part: Entry) -> bool:
    """Whether the intervals of gain retained are of before they were expanded: draws are not in the table."""
    gains = [row["gain_retained"] for found in part["shifts"].values() for row in found["rows"].values()]
    return not any("expanded" in gain["over_items"] for gain in gains)


def at_lower_corner(hh: Entry) -> dict[str, tuple[float, list[float | None]]]:
    """Row -> (hypervolume gained on plain prompts, share retained under each shift or None where nothing was gained).

    For tables of before the corner was two standard deviations below the reference's mean, which was one: estimates
    from the published points. Empty for a table with the corner of today.
    """
    if "reference_point_is" in hh:
        return {}
    points = {
        row: {shift: np.array([point["values"] for point in by[shift]]) for shift in (NO_SHIFT, *hh["shifts"])}
        for row, by in hh["fronts"].items()
    }
    corner = 2 * np.array(hh["reference_point"]) - points["reference"][NO_SHIFT][0]

    def gain(row: str, shift: str) -> float:
        own, start = (fronts.hypervolume(points[name][shift], ref_point=corner) for name in (row, "reference"))
        return own - start

    shown = {}
    for row in (row for row in points if row != "reference"):
        home = gain(row, NO_SHIFT)
        shown[row] = home, [gain(row, shift) / home if home > 0 else None for shift in hh["shifts"]]
    return shown


def asked_everywhere(part: Entry, found: Entry) -> list[str]:
    """Rows with a point at every preference that the first method has one at."""
    moved = {row: len(found["rows"][row]["displacement"]) for row in (*part["methods"], *part["controls"])}
    return [row for row, count in moved.items() if count == moved[part["methods"][0]]]


def arms(found: Entry) -> dict[str, Entry]:
    """The kinds of training that are compared with the arm `plain` on families they never saw."""
    groups = {name: group for name, group in found["groups"].items() if name not in ("plain", EXPLAINS)}
    return {name: group for name, group in groups.items() if group["held_out"] is not None}


def helping(found: Entry) -> dict[str, Entry]:
    """The arms under which both intervals say that the regret on held-out families is lower."""
    cuts = {name: group["held_out"]["regret_reduction"] for name, group in arms(found).items()}
    return {name: group for name, group in arms(found).items() if cuts[name]["value"] > 0 and excludes_zero(cuts[name])}


def core_seconds(found: Entry, group: Entry) -> float:
    """Mean over the arms of one kind of training."""
    return float(sum(found["ledger"][arm]["cpu_seconds"] for arm in group["arms"]) / len(group["arms"]))
