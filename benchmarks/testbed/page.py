"""The testbed benchmark's page: testbed.json -> testbed.md and its figures; every number on it is generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.command import write_table
from benchmarks.pages import Entry, render, write
from benchmarks.testbed import figures
from benchmarks.testbed.matched import NEAR, matched_by_points
from benchmarks.testbed.merge import commits_of
from evals.items import NO_SHIFT
from evals.report.words import num
from evals.stats.intervals import LEVEL
from evals.stats.paired_tests import family, t_test

GATE = 0.25  # the regret share from which a control fails, and up to which a method passes


def write_page(found: Entry, *, folder: Path, command: str) -> None:
    """Write `testbed.json`, `testbed.md` and one figure per world and kind into `folder`."""
    write_table(folder / "testbed.json", found)
    worlds = {world: rows for world in found["worlds"] if (rows := ranked(found, world))}
    text = render(
        Path(__file__).with_name("page.md.j2"), found=found, split=found.get("split", NO_SHIFT), gate=GATE,
        command=command, commits=commits_of(found),
        stands_in=all(e["matched_kl_hypervolume"] is None for rows in worlds.values() for e in rows.values()),
        worlds=[(world, rows, summary(rows), matched(rows, world=world)) for world, rows in worlds.items()],
    )  # fmt: skip
    files = {"testbed.md": text}
    for world, rows in worlds.items():
        files[f"testbed-{world}-shares.svg"] = figures.shares(rows, world=world)
        files[f"testbed-{world}-cost.svg"] = figures.cost(rows, world=world)
    write(folder, files)


def ranked(table: Entry, world: str) -> dict[str, dict[str, object]]:
    """The world's rows by regret share, each with what the table says about the row."""
    found = {
        row: {**entry["worlds"][world], **{k: v for k, v in entry.items() if k != "worlds"}}
        for row, entry in table["methods"].items()
        if world in entry["worlds"]
    }
    return dict(sorted(found.items(), key=lambda item: item[1]["regret_share"]))


def matched(rows: Mapping[str, Entry], *, world: str) -> dict[str, str]:
    """Row -> its hypervolume at matched KL, to two digits where `best_of_256` stands in for the optimum."""
    exact = {row: entry["matched_kl_hypervolume"] for row, entry in rows.items()}
    if NEAR not in rows or any(value is not None for value in exact.values()):
        return {row: "" if value is None else num(value) for row, value in exact.items()}
    return {row: num(value, 2) for row, value in matched_by_points(rows, world=world).items()}


def summary(rows: Mapping[str, Entry]) -> Entry:
    """The names of a world's rows: controls, methods, contenders (by regret share), those that pass the gate from one
    sample per response (`sure`: methods, by the whole interval), and those that are worse than the reference, by the
    interval or by the mean alone; from how many the first contender is told, and how many seeds rows have.
    """
    methods = [row for row, entry in rows.items() if not entry["control"]]
    contenders = [row for row in methods if rows[row].get("contender", True)]
    passing = [row for row, e in rows.items() if e["regret_share"] <= GATE and e["samples_per_response"] == 1]
    limits = {row: rows[row]["regret_share_ci"] for row in methods}
    worse = [row for row in methods if limits[row] is not None and limits[row][0] > 1]
    return {
        "controls": [row for row in rows if row not in methods],
        "methods": methods,
        "contenders": contenders,
        "told": told_from(rows, contenders),
        "passing": passing,
        "sure": [row for row in passing if row in methods and limits[row] is not None and limits[row][1] <= GATE],
        "worse": worse,
        "worse_mean": [row for row in methods if rows[row]["regret_share"] > 1 and row not in worse],
        "seeds": sorted({len(entry["seeds"]) for entry in rows.values()}),
    }


def told_from(rows: Mapping[str, Entry], contenders: Sequence[str]) -> int | None:
    """From how many other contenders the first is told: paired t over training seeds, Holm over those pairs.

    None where a pair shares fewer than three seeds: then no order is established.
    """
    shares = {row: {s: e["regret_share"] for s, e in rows[row]["seeds"].items()} for row in contenders}
    tests = []
    for other in contenders[1:]:
        both = shares[contenders[0]].keys() & shares[other].keys()
        if len(both) < 3:
            return None
        tests.append(t_test({s: shares[contenders[0]][s] for s in both}, second={s: shares[other][s] for s in both}))
    if not tests:
        return None
    return sum(test.p_adjusted is not None and test.p_adjusted <= 1 - LEVEL for test in family(tests))
