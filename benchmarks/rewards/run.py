"""Rewards that hold: the exact optimum under learned rewards of many kinds, against gold, and a method trained on them.

    python -m benchmarks.rewards.run --worlds noisy sparse --seeds 0 1 2 --publish docs/results
    python -m benchmarks.rewards.run --parts rewards               # no policy is trained
    python -m benchmarks.rewards.run --parts more --worlds noisy   # ensembles, WARM, and the trainer's options too

Runs lie below `--out` and a second call goes on where the first stopped; the table holds what is finished. Worlds and
rows that are published already and are not in this call's runs are dropped: a page is made of one `--out`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import command

MODULE = "benchmarks.rewards.run"
PARTS = ("rewards", "rows", "more")


def options() -> argparse.ArgumentParser:
    found = command.parser(__doc__ or "", module=MODULE)
    found.add_argument("--worlds", nargs="+", default=["noisy", "sparse"], help="worlds of align.testbed.world")
    found.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="training seeds")
    found.add_argument("--parts", nargs="+", default=["rewards", "rows"], choices=PARTS, help="what is made, in order")
    return command.sitting(found, out="runs/rewards")


def run(arguments: argparse.Namespace) -> int:
    from benchmarks.rewards.page import write_page
    from benchmarks.rewards.plan import needed, trained, world_calls
    from benchmarks.rewards.table import collect
    from recipes.pipeline.plan import ordered

    out = arguments.out or Path("runs/rewards")
    cells = [(world, seed) for world in arguments.worlds for seed in arguments.seeds]
    calls = []
    for part in arguments.parts:
        for world, seed in cells:
            if part == "rows":
                calls += [call for plan in trained(world, seed, out=out).values() for call in needed(plan)]
            else:
                calls += world_calls(world, seed, out=out, more=part == "more")[0]
    command.run_plan(ordered(calls), arguments, label="rewards")
    table = collect(arguments.worlds, arguments.seeds, out=out)
    command.write_table(out / "rewards.json", table)
    print(f"numbers: {out / 'rewards.json'}")
    if arguments.publish is not None:
        command.write_table(arguments.publish / "rewards.json", table)
        write_page(table, folder=arguments.publish)
        print(f"page: {arguments.publish / 'rewards.md'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return command.main(run, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
