"""Attribution validated on planted models: is the mechanism found that was trained in, and the exact split matched?

    python -m benchmarks.attribution.run --check                      # one seed at a smoke budget, and no verdict
    python -m benchmarks.attribution.run --publish docs/results       # six seeds; attribution.md, attribution.json,
        the map
    python -m benchmarks.attribution.run --seeds 0 1 3 4 --minutes 30 # one sitting; the same command goes on

Bounds are calibrated on the controls of the development seeds, written down, and never changed by a fresh seed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SMOKE = {"pretrain": 6000, "sft": 3000, "comparisons": 200, "steps": 4, "samples": 8, "count": 32}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="benchmarks/attribution/run.py"
    )
    parser.add_argument("--check", action="store_true", help="one seed at a smoke budget")
    parser.add_argument("--config", type=Path, default=HERE.parents[1] / "recipes" / "configs" / "planted.yaml")
    parser.add_argument("--seeds", nargs="+", type=int, default=None, help="default: all of the config")
    parser.add_argument("--count", type=int, default=256, help="samples per prompt and side of the sampled split")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each; 0: all in this one")
    parser.add_argument("--minutes", type=float, default=None, help="start no new stage after so many minutes")
    parser.add_argument("--out", type=Path, default=None, help="default: runs/planted, or runs/planted-check")
    parser.add_argument("--publish", type=Path, default=None, help="folder for the page and its numbers")
    return parser.parse_args(argv)


def configuration(arguments: argparse.Namespace) -> Any:
    """The planted models' configuration, cut to a smoke budget for --check."""
    from recipes.config import build, read_yaml
    from recipes.testbed.planted_plan import Config, check

    values = read_yaml(arguments.config)
    values["out"] = str(arguments.out or ("runs/planted-check" if arguments.check else "runs/planted"))
    if arguments.seeds:
        values["seeds"] = arguments.seeds
    if arguments.check:
        values |= {"seeds": [0], "development": [0], "fresh": [0], "samples": SMOKE["samples"]}
        values["comparisons"] = SMOKE["comparisons"]
        for name in ("pretrain", "sft"):
            values[name] = {**values[name], "documents": SMOKE[name]}
        values["references"] = {k: {"ciphered": v["ciphered"]} for k, v in values["references"].items()}
        for spec in values["plants"].values():
            small = {"steps": SMOKE["steps"]} if "steps" in spec["settings"] else {"epochs": 1.0}
            spec["settings"] = {**spec["settings"], **small}
    config = build(Config, values, where=arguments.config.name)
    check(config, where=arguments.config.name)
    return config


def split_tasks(config: Any, plants: Sequence[Any], *, count: int) -> tuple[list[Any], dict[int, tuple[Path, Path]]]:
    """Exact and sampled split of the plants that ask for it, and seed -> their folders."""
    from align.runs import jsonable
    from align.testbed.world import load_world
    from benchmarks.attribution import stages
    from recipes.pipeline.tasks import Task

    base = {"world": jsonable(load_world(config.world).config)}
    tasks, folders = [], {}
    for seed in dict.fromkeys(plant.seed for plant in plants):
        mine = [plant for plant in plants if plant.seed == seed and plant.split]
        place = Path(config.out) / f"seed-{seed}"
        policies = {plant.name: [str(plant.policy), plant.weights] for plant in mine}
        reference = str(mine[0].reference)
        needs = tuple(f"{plant.name} [{seed}]" for plant in mine)
        folders[seed] = place / "exact-split", place / "sampled-split"
        common = {**base, "reference": reference, "policies": policies}
        tasks += [
            Task(f"sampled split [{seed}]", stages.sampled,
                 {**common, "out": str(folders[seed][1]), "count": count, "seed": seed}, needs),
            Task(f"exact split [{seed}]", stages.exact, {**common, "out": str(folders[seed][0])}, needs),
        ]  # fmt: skip
    return tasks, folders


def run(arguments: argparse.Namespace) -> int:
    from benchmarks.attribution.page import collect, write_page
    from recipes.pipeline.tasks import run_tasks
    from recipes.testbed.planted_plan import make_plan

    config = configuration(arguments)
    tasks, plants = make_plan(config)
    count = SMOKE["count"] if arguments.check else arguments.count
    more, folders = split_tasks(config, plants, count=count)
    start = time.monotonic()
    deadline = None if arguments.minutes is None else start + 60 * arguments.minutes
    left = run_tasks([*tasks, *more], workers=arguments.workers, label="attribution", deadline=deadline)
    if left:
        print(f"{left} of {len(tasks) + len(more)} stages left; the same command goes on", file=sys.stderr)
    table = collect(config, plants=plants, folders=folders, count=count)
    folder = arguments.publish or Path(config.out)
    write_page(table, folder=folder, command=" ".join(["python -m benchmarks.attribution.run", *sys.argv[1:]]))
    print(f"{len(table['cases'])} cases, {time.monotonic() - start:.0f} s: {folder / 'attribution.md'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    from align.errors import guarded

    return guarded(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
