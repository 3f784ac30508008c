"""The front under shift: methods x shifts x preferences x seeds, exact on the testbed and sampled on HH; what helps.

    python -m benchmarks.shift.run --publish docs/results                 # everything that is not there yet, then
        the page
    python -m benchmarks.shift.run --parts mitigation --minutes 30        # one part; one sitting: no new task after
        that

Parts: front (exact, world default), mitigation (exact, world spellings), hh (sampled, needs `--hh RUN`, a finished
`align hh --config recipes/configs/hh_methods.yaml`). One run directory per cell lies below `--out`; a second call goes
on where the first stopped, and fits of `benchmarks/testbed/run.py` in the same folder are used. `--publish` writes
`shift.json`, `shift.md` and its figures from all that is finished.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PARTS = ("front", "mitigation", "hh")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="benchmarks/shift/run.py"
    )
    parser.add_argument("--config", type=Path, default=HERE / "shift.yaml", help="rows, shifts and arms")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="training seeds")
    parser.add_argument("--hh", type=Path, default=Path("runs/hh"), help="a finished `align hh` run, only read")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each; 0: all in this one")
    parser.add_argument("--minutes", type=float, default=None, help="start no new task after so many minutes")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="where the runs lie")
    parser.add_argument("--publish", type=Path, default=None, help="folder for shift.json, shift.md and its figures")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> int:
    from benchmarks.shift import plan as planning
    from benchmarks.shift.hh import hh_plan
    from benchmarks.shift.page import write_page
    from benchmarks.shift.table import collect
    from benchmarks.testbed import plan as testbed_plan
    from recipes.pipeline.tasks import run_tasks

    found = planning.read_rows(arguments.config)
    trained = testbed_plan.read_rows(HERE.parent / "testbed" / "rows.yaml")
    common: dict[str, Any] = {"trained": trained, "out": arguments.out, "seeds": arguments.seeds}
    makers: dict[str, Callable[[], Any]] = {
        "front": lambda: planning.front_plan(found, **common),
        "mitigation": lambda: planning.mitigation_plan(found, **common),
        "hh": lambda: hh_plan(found.hh, run=arguments.hh, out=arguments.out),
    }
    deadline = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    plans = {part: makers[part]() for part in arguments.parts}
    for part, plan in plans.items():
        left = run_tasks(plan.tasks, workers=arguments.workers, label=part, deadline=deadline)
        if left:
            print(f"{part}: {left} of {len(plan.tasks)} tasks left; the same command goes on", file=sys.stderr)
    if arguments.publish is not None:
        table = collect(found, plans)
        write_page(table, folder=arguments.publish, command=" ".join(sys.argv[1:]))
        print(f"page: {arguments.publish / 'shift.md'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    from align.errors import guarded

    return guarded(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
