"""Every method on the testbed's worlds, against the exact optimum: rows x worlds x seeds x preferences, resumable.

    python -m benchmarks.testbed.run --check      # all rows at a smoke budget on the default world, one seed
    python -m benchmarks.testbed.run --worlds default --seeds 0 1 2 --publish docs/results
    python -m benchmarks.testbed.run --minutes 30 ...            # one sitting: no new task is started after that

Cells lie below `--out`; a second call goes on where the first stopped. `--publish` writes the numbers of all complete
(row, world, seed) triples to `testbed.json` and the page `testbed.md` with its figures; triples that are published
there already, from runs that lie elsewhere, stay.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import command
from evals.items import Json

HERE = Path(__file__).resolve().parent
MODULE = "benchmarks.testbed.run"


def options() -> argparse.ArgumentParser:
    found = command.parser(__doc__ or "", module=MODULE)
    found.add_argument("--check", action="store_true", help="smoke budget, default world, one seed, and a verdict")
    found.add_argument("--config", type=Path, default=HERE / "rows.yaml", help="the rows")
    found.add_argument("--worlds", nargs="+", default=["default"], help="worlds of align.testbed.world")
    found.add_argument("--seeds", nargs="+", type=int, default=[0], help="training seeds")
    found.add_argument("--rows", nargs="+", default=None, help="only these rows (default: all of the config)")
    return command.sitting(found, out="runs/benchmark, or runs/benchmark-check")


def run(arguments: argparse.Namespace) -> int:
    from benchmarks.testbed.page import write_page
    from benchmarks.testbed.plan import grid, read_file
    from benchmarks.testbed.table import collect, verdict
    from recipes.pipeline.plan import ordered

    found = read_file(arguments.config)
    rows = found.named(arguments.rows)
    out = arguments.out or Path("runs") / ("benchmark-check" if arguments.check else "benchmark")
    worlds, seeds = (["default"], [0]) if arguments.check else (arguments.worlds, arguments.seeds)
    plans = grid(found, out=out, worlds=worlds, seeds=seeds, rows=rows, smoke=arguments.check)
    calls = ordered(call for plan in plans.values() for call in plan.calls)
    command.run_plan(calls, arguments, label="benchmark")
    table = collect(plans, found)
    command.write_table(out / "testbed.json", table)
    print(f"{len(table['methods'])} rows: {out / 'testbed.json'}")
    if arguments.publish is not None:
        whole = joined(table, arguments.publish)
        write_page(whole, folder=arguments.publish, command=" ".join(sys.argv[1:]))
        print(f"page: {arguments.publish / 'testbed.md'}")
    return verdict(table, rows=[row.name for row in rows]) if arguments.check else 0


def joined(table: Json, folder: Path) -> Json:
    """The table with what is published in `folder` already and still means the same; says what it leaves out."""
    from benchmarks.testbed.merge import merge

    file = folder / "testbed.json"
    if not file.is_file():
        return table
    published = json.loads(file.read_text(encoding="utf-8"))
    if published.get("split", "none") != table["split"]:
        print(f"{file}: judged on {published.get('split', 'none')}, not {table['split']}: replaced", file=sys.stderr)
        return table
    result, lost = merge(table, published=published)
    for name in lost:
        print(f"{file}: {name} meant something else and is left out", file=sys.stderr)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    return command.main(run, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
