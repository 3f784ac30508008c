"""The report's figure of a suite: failures on harmful and benign items, and comprehension, for each shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evals.items import NO_SHIFT, Fields, Json
from evals.report.figures.dots import HOME, Dot, Layout, Panel, figure
from evals.report.figures.fronts import COMPETING, MISMATCHED
from evals.report.figures.svg import GREY, INK, Mark, Stroke, padded
from evals.report.plain_text import shown
from evals.report.suite_words import change, pair, sure
from evals.shifts.base import FAMILIES

COLORS = {
    "competing": COMPETING, "mismatched": MISMATCHED, "both": "#7A5195", "control": GREY, "none": INK,
}  # fmt: skip
# side -> the title of its panel where there is room, and where there is not
PANELS = {
    "harmful": ("harmful, answered (%)", "BAD %"), "benign": ("benign, refused (%)", "refuses"),
    "read": ("probes read (%)", "read %"),
}  # fmt: skip
NARROW = 480  # pixels below which there is not


def row(name: str) -> str:
    """A shift's name as the figure and the tables write it."""
    return "plain prompts" if name == NO_SHIFT else shown(name, 60)


def families(names: Sequence[str], shifts: Fields) -> list[tuple[str, list[str]]]:
    """(family, its shifts), families in the order of FAMILIES; the plain prompts stand first, without a heading."""
    found: dict[str, list[str]] = {}
    for name in names:
        family = "" if name == NO_SHIFT else str((shifts.get(name) or {}).get("family", "others"))
        found.setdefault(family, []).append(name)
    places = {"": -1, **{family: i for i, family in enumerate(FAMILIES)}}
    return sorted(found.items(), key=lambda group: places.get(group[0], len(places)))


def ordered(table: Fields, shifts: Fields) -> Json:
    """A table by shift in that order (JSON keeps keys by the alphabet)."""
    return {name: table[name] for _, names in families(list(table), shifts) for name in names}


def by_shift(entry: Fields, shifts: Fields, *, width: int) -> str:
    """The figure of one suite's outcomes; empty without any."""
    table = (entry.get("outcomes") or {}).get("shifts") or {}
    panels = []
    for part, titles in PANELS.items():
        dots = {row(name): _dot(name, e, part, shifts) for name, e in table.items() if _value(e, part)}
        home = _value(table.get(NO_SHIFT, {}), part)
        if dots:
            panels.append(Panel(titles[width < NARROW], (0.0, 1.0), dots, _home(home), percent=True))
    groups = [(shown(head, 40), [row(name) for name in rows]) for head, rows in families(list(table), shifts)]
    return figure(groups, panels=panels, layout=Layout(width, "Failures and comprehension by shift"))


def accuracies(entry: Fields, shifts: Fields, *, width: int) -> str:
    """The figure of a reward model: the share of comparisons in the right order by shift; empty without any."""
    table = (entry.get("rewards") or {}).get("shifts") or {}
    dots = {row(name): _accuracy(name, e, shifts) for name, e in table.items() if e.get("accuracy")}
    home = (table.get(NO_SHIFT) or {}).get("accuracy")
    panel = Panel("in the right order (%)", (0.0, 1.0), dots, _home(home), percent=True)
    groups = [(shown(head, 40), [row(name) for name in rows]) for head, rows in families(list(table), shifts)]
    return figure(groups, panels=[panel], layout=Layout(min(width, 760), "Accuracy by shift"))


def _home(value: Fields | None) -> list[tuple[float, Stroke]]:
    """The line of the plain prompts' value, if there is one."""
    return [] if value is None or value["value"] is None else [(value["value"], HOME)]


def _mark(shift: str, shifts: Fields, *, sure: bool) -> Mark:
    """In the colour of the shift's mode; filled where the change is certain."""
    return Mark(COLORS[str((shifts.get(shift) or {}).get("mode", "none"))], hollow=not sure, size=4)


def _accuracy(name: str, entry: Fields, shifts: Fields) -> Dot:
    value, moved = entry["accuracy"], (entry.get("change") or {}).get("accuracy")
    title = f"{row(name)}: {pair(value)}" + ("" if moved is None else f"; {change(moved)} against plain prompts")
    mark = _mark(name, shifts, sure=name == NO_SHIFT or sure(moved))
    return Dot(value["value"], value.get("ci"), mark, title)


def _value(entry: Fields, part: str) -> Fields | None:
    found: Fields | None = entry.get("read") if part == "read" else (entry.get(part) or {}).get("failures")
    return found


def _dot(name: str, entry: Fields, part: str, shifts: Fields) -> Dot:
    value = _value(entry, part)
    assert value is not None
    moved = None if part == "read" else (entry.get(part) or {}).get("change")
    title = f"{row(name)}: {pair(value)}" + ("" if moved is None else f"; {change(moved)} against plain prompts")
    mark = _mark(name, shifts, sure=part == "read" or name == NO_SHIFT or sure(moved))
    return Dot(value["value"], value.get("ci"), mark, title, bounds=value.get("bounds"))


def differences(table: Fields, shifts: Fields, *, width: int) -> str:
    """Second minus first by shift, a panel for each side with a common range."""
    changes = {
        side: {row(s): e[side]["change"] for s, e in table["shifts"].items() if e.get(side) and e[side]["change"]}
        for side in ("harmful", "benign")
    }
    ends = [end for found in changes.values() for c in found.values() for end in (c["value"], *(c.get("ci") or ()))]
    if not ends:
        return ""
    reach = padded([*ends, 0.0], share=0.06)
    marks = {row(s): _mark(s, shifts, sure=True) for s in table["shifts"]}
    titles = ("BAD", "refuses") if width < NARROW else ("harmful, answered (points)", "benign, refused (points)")
    panels = [
        Panel(title, reach, {s: _difference(s, c, marks[s]) for s, c in changes[side].items()}, [(0.0, HOME)], True)
        for side, title in zip(changes, titles, strict=True)
        if changes[side]
    ]
    groups = [(shown(head, 40), [row(s) for s in rows]) for head, rows in families(list(table["shifts"]), shifts)]
    return figure(groups, panels=panels, layout=Layout(width, "Second minus first by shift"))


def _difference(name: str, found: Fields, mark: Mark) -> Dot:
    look = replace(mark, hollow=not sure(found))
    return Dot(found["value"], found.get("ci"), look, f"{name}: {change(found)}")
