"""Methods against mismatched generalization: trained on all families of shifts but one, judged exactly on that one.

    python -m benchmarks.heldout.run --seeds 0 1 2 --publish docs/results
    python -m benchmarks.heldout.run --seeds 7 --candidates bct_restored    # settings are chosen on seed 7 alone

Runs lie below `--out` and a second call goes on where the first stopped; a candidate is in the
table on the families for which it is finished at all seeds of this call.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import command

MODULE = "benchmarks.heldout.run"
HERE = Path(__file__).resolve().parent


def options() -> argparse.ArgumentParser:
    found = command.parser(__doc__ or "", module=MODULE)
    found.add_argument("--config", type=Path, default=HERE / "heldout.yaml", help="the world and the candidates")
    found.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="training seeds")
    found.add_argument("--candidates", nargs="+", default=None, help="these alone, and what they are made of")
    return command.sitting(found, out="runs/heldout")


def run(arguments: argparse.Namespace) -> int:
    from align.testbed.world import load_world
    from benchmarks.heldout.page import write_page
    from benchmarks.heldout.plan import plan_of, read_file
    from benchmarks.heldout.table import collect
    from recipes.pipeline.plan import ordered

    spec, candidates = read_file(arguments.config, only=arguments.candidates)
    out, world = arguments.out or Path("runs/heldout"), load_world(spec.world)
    plans = {seed: plan_of(spec, candidates, world=world, seed=seed, out=out) for seed in arguments.seeds}
    in_turn = (call for calls in zip(*(plan.calls for plan in plans.values()), strict=True) for call in calls)
    command.run_plan(ordered(in_turn), arguments, label="heldout")
    table = collect(spec, candidates, plans, world=world)
    command.write_table(out / "heldout.json", table)
    print(f"numbers: {out / 'heldout.json'}")
    if arguments.publish is not None:
        write_page(table, folder=arguments.publish)
        print(f"page: {arguments.publish / 'heldout.md'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return command.main(run, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
