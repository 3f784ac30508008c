"""The front under shift: methods x shifts x preferences x seeds, exact on the testbed and sampled on HH; what helps.

    python -m benchmarks.shift.run --publish docs/results                 # everything that is not there yet, then
        the page
    python -m benchmarks.shift.run --parts mitigation --minutes 30        # one part; one sitting: no new task after
        that

Parts: front (exact, world default), mitigation (exact, world spellings), hh (sampled, needs `--hh RUN`, a finished
`align hh --config recipes/configs/hh_methods.yaml`). One run directory per cell lies below `--out`; a second call goes
on where the first stopped, and fits of `benchmarks/testbed/run.py` in the same folder are used. `--publish` writes
`shift.json`, `shift.md` and its figures from all that is finished; a part that `--parts` leaves out stays as the
`shift.json` in that folder has it, and the page says at which commit it was made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import command
from evals.items import Json

HERE = Path(__file__).resolve().parent
PARTS = ("front", "mitigation", "hh")
MODULE = "benchmarks.shift.run"


def options() -> argparse.ArgumentParser:
    found = command.parser(__doc__ or "", module=MODULE)
    found.add_argument("--config", type=Path, default=HERE / "shift.yaml", help="rows, shifts and arms")
    found.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to run")
    found.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="training seeds")
    found.add_argument("--hh", type=Path, default=Path("runs/hh"), help="a finished `align hh` run, only read")
    return command.sitting(found, out="runs/benchmark")


def published(folder: Path) -> Json:
    """The table that the folder holds already; empty where it holds none."""
    file = folder / "shift.json"
    return command.read_table(file, hint="remove it, and publish all parts") if file.is_file() else {}


def run(arguments: argparse.Namespace) -> int:
    from benchmarks.shift import plan as planning
    from benchmarks.shift.hh import hh_plan
    from benchmarks.shift.page import write_page
    from benchmarks.shift.table import collect, with_published
    from benchmarks.testbed.plan import read_file
    from recipes.pipeline.plan import Plan, ordered

    found, arms = planning.read_file(arguments.config)
    trained = read_file(HERE.parent / "testbed" / "rows.yaml")
    out, seeds = arguments.out or Path("runs/benchmark"), arguments.seeds
    plans: dict[str, dict[int, Plan]] = {}
    if "front" in arguments.parts:
        plans["front"] = planning.front_plans(found.front, trained=trained, out=out, seeds=seeds)
    if "mitigation" in arguments.parts:
        every = list(arms.values())
        plans["mitigation"] = planning.mitigation_plans(found.mitigation, every, trained=trained, out=out, seeds=seeds)
    drawn = hh_plan(found.hh, run=arguments.hh, out=out) if "hh" in arguments.parts else {}
    for part, by_seed in plans.items():
        command.run_plan(ordered(call for one in by_seed.values() for call in one.calls), arguments, label=part)
    if drawn:
        command.run_plan([call for calls in drawn.values() for call in calls], arguments, label="hh")
    if arguments.publish is not None:
        table = with_published(collect(found, arms, plans, drawn), published(arguments.publish), run=arguments.parts)
        write_page(table, folder=arguments.publish, command=" ".join(sys.argv[1:]))
        print(f"page: {arguments.publish / 'shift.md'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return command.main(run, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
