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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import command

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


def run(arguments: argparse.Namespace) -> int:
    from benchmarks.shift import plan as planning
    from benchmarks.shift.hh import hh_plan
    from benchmarks.shift.page import write_page
    from benchmarks.shift.table import collect
    from benchmarks.testbed.plan import read_file
    from recipes.pipeline.plan import ordered

    found, arms = planning.read_file(arguments.config)
    trained = read_file(HERE.parent / "testbed" / "rows.yaml")
    out, seeds = arguments.out or Path("runs/benchmark"), arguments.seeds
    makers: dict[str, Callable[[], Mapping[object, object]]] = {
        "front": lambda: planning.front_plans(found.front, trained=trained, out=out, seeds=seeds),
        "mitigation": lambda: planning.mitigation_plans(
            found.mitigation, list(arms.values()), trained=trained, out=out, seeds=seeds
        ),
        "hh": lambda: hh_plan(found.hh, run=arguments.hh, out=out),
    }
    made = {part: makers[part]() for part in arguments.parts}
    for part, plans in made.items():
        calls = [call for one in plans.values() for call in (one if part == "hh" else one.calls)]
        command.run_plan(ordered(calls), arguments, label=part)
    if arguments.publish is not None:
        write_page(collect(found, arms, made), folder=arguments.publish, command=" ".join(sys.argv[1:]))
        print(f"page: {arguments.publish / 'shift.md'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return command.main(run, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
