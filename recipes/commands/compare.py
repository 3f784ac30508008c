"""Two evaluations of suites, paired item by item: differences per shift with intervals, exact tests and Holm.

align compare runs/before runs/after

Both folders were written by `align suites MODEL --suite ...` with the same suites and shifts. Positive differences mean
that the second fails more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from align import checks
from align.errors import UserError
from evals.items import Json
from evals.report.suite_summary import read_summary
from evals.report.suite_words import pair
from recipes.config import option, parse


@dataclass(frozen=True, kw_only=True)
class Config:
    runs: tuple[str, ...] = option(help="two folders written by align suites")
    max_missing: float = option(0.05, help="a side that lacks a larger share of its verdicts is refused")
    out: str | None = option(None, help="file for the numbers (default: comparison.json in the second folder)")
    title: str = option("Two policies under shift", help="title of the report")


def lines_of(compared: Mapping[str, Json]) -> list[str]:
    """What the terminal shows: one line per suite, shift and side."""
    lines = []
    for suite, table in compared.items():
        lines.append(f"{suite}: second minus first, {table['comparisons']} comparisons (Holm)")
        for shift, sides in table["shifts"].items():
            for side, entry in sides.items():
                change = entry["change"]
                if change is None:
                    lines.append(f"  {shift:28} {side:8} first {pair(entry['first'])}, second {pair(entry['second'])}")
                    continue
                low, high = change["ci"] or (float("nan"), float("nan"))
                interval = f"[{low:+.3f}, {high:+.3f}]"
                lines.append(
                    f"  {shift:28} {side:8} {change['value']:+.3f} {interval}  p {change['p']:.3g} "
                    f"(Holm {change['p_holm']:.3g}), n {change['n']}"
                )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align compare", about=__doc__ or "", positional=("runs",))
    if len(config.runs) != 2:
        raise UserError(f"{where}: give two folders, not {len(config.runs)}")
    checks.shares(config, "max_missing", place=f"{where}: ")
    from align.runs import write_json
    from align.runs.derived import keep_strangers
    from evals.report import write_report
    from evals.tables.outcomes import compare_outcomes
    from evals.tables.suite_outcomes import read_outcomes
    from recipes.pipeline.numbers import check_target, files_of
    from recipes.pipeline.provenance import command_line, provenance

    target = Path(config.out) if config.out else Path(config.runs[1]) / "comparison.json"
    if target.suffix != ".json":
        raise UserError(f"{where}: --out {target} must end in .json; the report goes beside it, ending in .html")
    html = target.with_suffix(".html")
    first, second = (read_outcomes(folder) for folder in config.runs)
    if set(first) != set(second):
        odd = sorted(set(first) ^ set(second))[0]
        raise UserError(f"{where}: suite {odd!r} was evaluated in one of the two folders only; evaluate it in both")
    compared = {suite: compare_outcomes(first[suite], second[suite], max_missing=config.max_missing) for suite in first}
    for file in (target, html):
        check_target(file, inputs=files_of(config.runs), where=where)
    summaries = [read_summary(folder) for folder in config.runs]
    sides = [
        {"folder": folder, "model": summary.get("model", folder), "fingerprint": summary.get("fingerprint", "unknown")}
        for folder, summary in zip(config.runs, summaries, strict=True)
    ]
    shifts = {**summaries[1].get("shifts", {}), **summaries[0].get("shifts", {})}
    summary = {
        "title": config.title, "kind": "comparison", "first": sides[0], "second": sides[1], "suites": compared,
        "shifts": shifts, "command": command_line("align compare", argv), "provenance": provenance(config, seed=0),
    }  # fmt: skip
    keep_strangers(target, html, like=summary)
    write_json(target, summary)
    page = write_report(target, html)
    print("\n".join(lines_of(compared)))
    print(f"report: {page}\nnumbers: {target}")
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("compare")
