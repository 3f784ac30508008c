"""The tables of docs/statistics.md: results/coverage.json -> the lines between the page's two marks."""

from __future__ import annotations

from pathlib import Path

from align.errors import UserError
from benchmarks.command import write_table
from benchmarks.pages import Entry, heading

BEGIN, END = "<!-- begin: tables of benchmarks.coverage.run -->\n", "<!-- end -->"


def write_page(found: Entry, *, folder: Path) -> None:
    """Write `results/coverage.json` and the tables of `statistics.md`; UserError where the page has no marks."""
    page = folder / "statistics.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if text.count(BEGIN) != 1 or END not in text:
        raise UserError(f"{page} has no marks {BEGIN.strip()} and {END}; give the folder of the published page")
    before, rest = text.split(BEGIN)
    write_table(folder / "results" / "coverage.json", found)
    page.write_text(before + BEGIN + tables(found) + rest[rest.index(END) :], encoding="utf-8")


def tables(found: Entry) -> str:
    """All tables; shares in %."""
    lines = [
        f"{found['evaluations']:,} evaluations a row, seed {found['seed']}; the standard error of a share of 95 % is "
        f"{100 * (0.95 * 0.05 / found['evaluations']) ** 0.5:.2f} points.",
        "", "### Coverage of 95 % intervals: rare paired changes, %", "", *_rare(found["rare"]),
    ]  # fmt: skip
    titles = {
        "others": "Coverage of 95 % intervals: other yes/no numbers, %",
        "coverage": "Coverage of 95 % intervals: everything else, %",
        "hard": "Where intervals cover too little, %",
        "type_one": "Rejections at 5 % where nothing differs, %",
    }
    head = heading(["estimator", "base items", "degrees of freedom", "share"], align="lr")
    for part, title in ((part, title) for part, title in titles.items() if found[part]):
        lines += ["", f"### {title}", "", head]
        for row in found[part]:
            degrees = "-" if row["degrees"] is None else f"{row['degrees']:.0f}"
            name = row["name"].replace("|", "\\|")
            lines.append(f"| {name} | {row['clusters']} | {degrees} | {100 * row['share']:.2f} |")
    return "\n".join(lines) + "\n"


def _rare(rows: list[Entry]) -> list[str]:
    """A line per change, a column per number of items."""
    sizes = sorted({row["clusters"] for row in rows})
    share = {(row["name"], row["clusters"]): f"{100 * row['share']:.2f}" for row in rows}
    names = dict.fromkeys(row["name"] for row in rows)
    head = heading(["true change", *(f"{size} items" for size in sizes)], align="lr")
    return [head, *(f"| {name} | {' | '.join(share.get((name, size), '') for size in sizes)} |" for name in names)]
