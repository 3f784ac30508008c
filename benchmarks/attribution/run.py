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
from collections.abc import Mapping, Sequence
from pathlib import Path

from align.preferences import Weights
from align.runs import Call
from benchmarks import command
from benchmarks.attribution import stages
from benchmarks.attribution.page import Planting, collect, write_page
from evals.items import Json
from recipes.config import build, read_yaml
from recipes.pipeline.plan import Plan
from recipes.pipeline.provenance import command_line
from recipes.testbed.planted import Config, Plant, Planted, calls_of, planted_plans

HERE = Path(__file__).resolve().parent
MODULE = "benchmarks.attribution.run"
SMOKE = {"pretrain": 6000, "sft": 3000, "comparisons": 200, "steps": 4, "samples": 8, "count": 32}


def options() -> argparse.ArgumentParser:
    found = command.parser(__doc__ or "", module=MODULE)
    found.add_argument("--check", action="store_true", help="one seed at a smoke budget")
    found.add_argument("--config", type=Path, default=HERE.parents[1] / "recipes" / "configs" / "planted.yaml")
    found.add_argument("--seeds", nargs="+", type=int, default=None, help="default: all of the config")
    found.add_argument("--count", type=int, default=256, help="samples per prompt and side of the sampled split")
    return command.sitting(found, out="runs/planted, or runs/planted-check")


def configuration(arguments: argparse.Namespace) -> Config:
    """The planted models' configuration, cut to a smoke budget for --check."""
    values: Json = {**read_yaml(arguments.config)}
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
    return build(Config, values, where=arguments.config.name)


def plantings(plans: Mapping[int, Sequence[Plan]]) -> list[Planting]:
    """Every plant of every seed."""
    return [
        Planting(row, seed, plan.cells[row.name][0].out)
        for seed, every in plans.items()
        for plan in every
        for row in plan.rows
        if isinstance(row, Plant)
    ]


def split_calls(plans: Mapping[int, Sequence[Plan]], *, count: int) -> dict[int, tuple[Call, Call]]:
    """Seed -> the exact and the sampled split of the plants that ask for it, which share one reference."""
    calls = {}
    for seed, every in plans.items():
        plan = next(one for one in every if any(isinstance(row, Plant) and row.split for row in one.rows))
        rows = [row for row in plan.rows if isinstance(row, Plant) and row.split]
        setting = plan.setting
        assert isinstance(setting, Planted)
        weights = {row.name: Weights.parse(row.weights) for row in rows}
        policies = {row.name: plan.fits[row.name][weights[row.name].label].run for row in rows}
        world, reference, place = setting.world, setting.made("sft"), setting.out
        exact = stages.exact.call(
            place / "exact-split", world=world, reference=reference, policies=policies, weights=weights
        )
        sampled = stages.sampled.call(
            place / "sampled-split", world=world, reference=reference, policies=policies, weights=weights, count=count,
            seed=seed,
        )  # fmt: skip
        calls[seed] = exact.named(f"exact split [{seed}]"), sampled.named(f"sampled split [{seed}]")
    return calls


def run(arguments: argparse.Namespace) -> int:
    config = configuration(arguments)
    plans = planted_plans(config, where=arguments.config.name)
    count = SMOKE["count"] if arguments.check else arguments.count
    splits = split_calls(plans, count=count)
    more = [call for pair in splits.values() for call in reversed(pair)]
    command.run_plan([*calls_of(plans), *more], arguments, label="attribution")
    folders = {seed: (exact.out, sampled.out) for seed, (exact, sampled) in splits.items()}
    table = collect(config, plants=plantings(plans), folders=folders, count=count)
    folder = arguments.publish or Path(config.out)
    write_page(table, folder=folder, command=command_line(f"python -m {MODULE}", None))
    print(f"{len(table['cases'])} cases: {folder / 'attribution.md'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return command.main(run, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
