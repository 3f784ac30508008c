"""The held-out benchmark's page: heldout.json -> heldout.md; every number on it is generated."""

from __future__ import annotations

from pathlib import Path

from benchmarks.command import write_table
from benchmarks.pages import Entry, filled, heading, listed, ranged, render, write
from evals.report.words import interval, num, percent
from evals.tables.under_shift.parts import PARTS

WORDS = {"mismatched": "the mismatched part", "regret": "the regret", "cost": "the cost on plain prompts"}


def write_page(table: Entry, *, folder: Path) -> None:
    """Write `heldout.json` and `heldout.md` into `folder`."""
    write_table(folder / "heldout.json", table)
    write(folder, {"heldout.md": page(table)})


def page(table: Entry) -> str:
    """The Markdown page; a function of the numbers alone."""
    known = (best, by_family, changes, likeness, over_the_bar, parts, share)
    functions = {function.__name__: function for function in known}
    return filled(render(Path(__file__).with_name("page.md.j2"), table=table, **functions))


def share(entry: Entry) -> str:
    """The share of the mismatched part that goes, with its interval over seeds, in percent."""
    found, pair = entry["share"], entry["share"]["ci_seeds"]
    return percent(found["value"]) + ("" if pair is None else f" [{num(100 * pair[0], 0)}, {num(100 * pair[1], 0)}]")


def missed(entry: Entry) -> str:
    """What of the bar a candidate does not reach."""
    return listed([words for name, words in WORDS.items() if not entry["reached"][name]])


def best(table: Entry) -> list[str]:
    """The candidates, by the share of the mismatched part that goes; what only explains is left out."""
    rows = {name: one for name, one in table["candidates"].items() if not one["explains"]}
    return sorted(rows, key=lambda name: -rows[name]["share"]["value"])


def over_the_bar(table: Entry) -> list[str]:
    """The candidates that meet all of the bar's conditions."""
    return [name for name in best(table) if table["candidates"][name]["reached"]["all"]]


def changes(table: Entry) -> str:
    """Every candidate against doing nothing."""
    lines = [heading(["candidate", "what it is", "mismatched part lowered by", "share", "regret lowered by", "J, plain",
                      "pairs lowered", "core-s", "bar: misses"])]  # fmt: skip
    for name, one in table["candidates"].items():
        pairs = [pair["mismatched_lowered"] > 0 for by_family in one["by_seed"].values() for pair in by_family.values()]
        cells = [
            f"*{name}*" if one["explains"] else name, one["what"],
            ranged(one["mismatched_lowered"], sign=True), share(one),
            ranged(one["regret_lowered"], sign=True), ranged(one["plain_change"], sign=True),
            f"{sum(pairs)} of {len(pairs)}", num(one["core_seconds"], 0),
            "explains" if one["explains"] else "" if one["reached"]["all"] else missed(one),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parts(table: Entry) -> str:
    """Levels of every row: J on plain prompts and on the held-out family, the four parts between, the regret there."""
    lines = [heading(["row", "J, plain", "J, held out", *(name.replace("_", " ") for name in PARTS), "regret, held out",
                      "mismatched, families trained on"])]  # fmt: skip
    for name, one in table["levels"].items():
        seen = "" if one["seen"] is None else ranged(one["seen"])
        cells = [ranged(one[key]) for key in ("J_plain", "J", *PARTS, "regret")]
        lines.append(f"| {name} | {' | '.join([*cells, seen])} |")
    return "\n".join(lines)


def by_family(table: Entry) -> str:
    """The mismatched part of every row on each family while it is held out."""
    lines = [heading(["row", *table["families"]])]
    for name, one in table["levels"].items():
        lines.append(f"| {name} | {' | '.join(_held(one, family) for family in table['families'])} |")
    return "\n".join(lines)


def likeness(table: Entry) -> str:
    """What the reference's spellings share."""
    lines = [heading(["in the reference", "found by the other spellings", "by chance", "cosine to them"])]
    for kind, one in table["shared"].items():
        found, cosine = (f"{num(one[key]['value'], 2)} {interval(one[key]['ci'], 2)}" for key in ("found", "cosine"))
        lines.append(f"| {kind} | {found} | {num(one['chance'], 2)} | {cosine} |")
    return "\n".join(lines)


def _held(level: Entry, family: str) -> str:
    return ranged(level["by_family"][family]) if family in level["by_family"] else ""
