"""The page of an hh run with several methods: every row at every preference, judged by models no method trained on.

    align hh --config recipes/configs/hh_methods.yaml --data ../shared/data --out runs/hh
    python -m benchmarks.hh.methods runs/hh --publish docs/results

Writes `hh_methods.json` and `hh_methods.md`; reads nothing but the run's summary.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import command
from benchmarks.pages import Entry, render, write

KEPT = (
    "front", "kl", "raw_hypervolume", "raw_hypervolume_ci", "samples_per_response", "bits_per_byte", "ledger",
    "rewards",
)  # fmt: skip
COMMAND = "align hh --config recipes/configs/hh_methods.yaml --data ../shared/data --out runs/hh"


def lines(summary: Entry) -> list[str]:
    """The page; rows by hypervolume gained, the controls after the methods."""
    methods, controls = summary["methods"], list(summary.get("controls") or ())
    rows = sorted(methods, key=lambda row: (row in controls, -(methods[row]["raw_hypervolume"] or 0)))
    points = {row: {tuple(p["preference"]): p for p in methods[row]["front"]} for row in rows}
    corner = summary.get("world_details", summary).get("reference_point_is")
    return render(
        Path(__file__).with_name("methods.md.j2"), methods={row: methods[row] for row in rows}, controls=controls,
        corner=corner, points=points, command=COMMAND,
        preferences=sorted({w for by in points.values() for w in by}, reverse=True),
        over=next(p["ci_over"] for row in methods.values() for p in row["front"]), provenance=summary["provenance"],
        notes=summary.get("notes", ()),
    ).splitlines()  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    summary = command.read_table(arguments.run / "summary.json", hint=f"run `{COMMAND}` first")
    kept = {row: {name: entry[name] for name in KEPT if name in entry} for row, entry in summary["methods"].items()}
    numbers = {"command": COMMAND, "methods": kept, "controls": list(summary.get("controls") or ())}
    numbers["reference_point_is"] = summary["world_details"]["reference_point_is"]
    numbers |= {name: summary[name] for name in ("reward_models", "second_judge") if name in summary}
    numbers["provenance"] = {k: v for k, v in summary["provenance"].items() if k != "config"}  # its paths are local
    command.write_table(arguments.publish / "hh_methods.json", numbers)
    write(arguments.publish, {"hh_methods.md": "\n".join(lines(summary)) + "\n"})
    print(f"page: {arguments.publish / 'hh_methods.md'}")


def main(argv: Sequence[str] | None = None) -> int:
    options = command.parser(__doc__ or "", module="benchmarks.hh.methods")
    options.add_argument("run", type=Path, help="the run's folder")
    options.add_argument("--publish", type=Path, required=True, help="folder for the page and its numbers")
    return command.main(run, options, argv)


if __name__ == "__main__":
    sys.exit(main())
