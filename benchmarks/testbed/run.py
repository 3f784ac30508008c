"""Every method on the testbed's worlds, against the exact optimum: rows x worlds x seeds x preferences, resumable.

    python -m benchmarks.testbed.run --check                     # all rows at a smoke budget on the default world,
        one seed
    python -m benchmarks.testbed.run --worlds default --seeds 0 1 2 --publish docs/results
    python -m benchmarks.testbed.run --minutes 30 ...            # one sitting: no new task is started after that

One JSON per finished cell lies below `--out`; a second call goes on where the first stopped. `--publish` writes the
numbers of all complete (row, world, seed) triples to `testbed.json` and the page `testbed.md` with its figures; triples
that are published there already, from runs that lie elsewhere, stay.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="benchmarks/testbed/run.py"
    )
    parser.add_argument("--check", action="store_true", help="smoke budget, default world, one seed, and a verdict")
    parser.add_argument("--config", type=Path, default=HERE / "rows.yaml", help="the rows")
    parser.add_argument("--worlds", nargs="+", default=["default"], help="worlds of align.testbed.world")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="training seeds")
    parser.add_argument("--rows", nargs="+", default=None, help="only these rows (default: all of the config)")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each; 0: all in this one")
    parser.add_argument("--minutes", type=float, default=None, help="start no new task after so many minutes")
    parser.add_argument("--out", type=Path, default=None, help="default: runs/benchmark, or runs/benchmark-check")
    parser.add_argument("--publish", type=Path, default=None, help="folder for testbed.json and testbed.md")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> int:
    from align.errors import UserError
    from benchmarks.testbed import plan as planning
    from benchmarks.testbed.page import write_page
    from benchmarks.testbed.table import collect, verdict
    from recipes.pipeline.tasks import run_tasks

    found = planning.read_rows(arguments.config)
    rows = list(found.rows) if arguments.rows is None else arguments.rows
    for row in rows:
        if row not in found.rows:
            raise UserError(f"--rows: no row {row!r} in {arguments.config.name}; it has {', '.join(found.rows)}")
    needed = {found.rows[row].get("specialists_of") for row in rows} - {None, *rows}
    rows = [row for row in found.rows if row in {*rows, *needed}]
    out = arguments.out or Path("runs") / ("benchmark-check" if arguments.check else "benchmark")
    worlds, seeds = (["default"], [0]) if arguments.check else (arguments.worlds, arguments.seeds)
    plan = planning.make_plan(found, out=out, worlds=worlds, seeds=seeds, rows=rows, smoke=arguments.check)
    start = time.monotonic()
    deadline = None if arguments.minutes is None else start + 60 * arguments.minutes
    left = run_tasks(plan.tasks, workers=arguments.workers, label="benchmark", deadline=deadline)
    if left:
        print(f"{left} of {len(plan.tasks)} tasks left; the same command goes on", file=sys.stderr)
    table = collect(plan, found=found, worlds=worlds, seeds=seeds, rows=rows)
    file = out / "testbed.json"
    file.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{len(table['methods'])} rows, {time.monotonic() - start:.0f} s: {file}")
    if arguments.publish is not None:
        write_page(joined(table, arguments.publish), folder=arguments.publish, command=" ".join(sys.argv[1:]))
        print(f"page: {arguments.publish / 'testbed.md'}")
    return verdict(table, rows=rows) if arguments.check else 0


def joined(table: dict[str, Any], folder: Path) -> dict[str, Any]:
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
    from align.errors import guarded

    return guarded(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
