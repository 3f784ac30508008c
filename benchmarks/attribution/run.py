"""Attribution validated on planted models: is the cause found that was trained in, and what do the exact parts say?

    python -m benchmarks.attribution.run --check                      # one seed at a smoke budget, and no verdict
    python -m benchmarks.attribution.run --publish docs/results       # all seeds; attribution.md, attribution.json, map
    python -m benchmarks.attribution.run --seeds 0 --minutes 30       # one sitting; the same command goes on

Bounds are calibrated on the controls of the development seeds, and never changed by a fresh seed; a seed that was
developed on, or that a page made with other development seeds has shown, is refused as a fresh one.
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
from benchmarks.attribution.page import Planting, check_fresh, collect, write_page
from evals.items import Json
from recipes.config import build, read_yaml
from recipes.pipeline.plan import Plan
from recipes.pipeline.provenance import command_line
from recipes.testbed.planted import Config, Plant, Planted, planted_plans

HERE = Path(__file__).resolve().parent
MODULE = "benchmarks.attribution.run"
SMOKE = {"pretrain": 6000, "sft": 3000, "comparisons": 200, "samples": 8, "count": 16}


def options() -> argparse.ArgumentParser:
    found = command.parser(__doc__ or "", module=MODULE)
    found.add_argument("--check", action="store_true", help="one seed at a smoke budget")
    found.add_argument("--config", type=Path, default=HERE.parents[1] / "recipes" / "configs" / "planted.yaml")
    found.add_argument("--seeds", nargs="+", type=int, default=None, help="default: all of the config")
    found.add_argument("--count", type=int, default=64, help="samples per prompt and source of the sampled parts")
    return command.sitting(found, out="runs/planted, or runs/planted-check")


def configuration(arguments: argparse.Namespace) -> Config:
    """The planted models' configuration, cut to a smoke budget for --check."""
    values: Json = {**read_yaml(arguments.config)}
    values["out"] = str(arguments.out or ("runs/planted-check" if arguments.check else "runs/planted"))
    if arguments.seeds:
        values["seeds"] = arguments.seeds
    if arguments.check:
        values |= {"seeds": [0, 1], "development": [0], "fresh": [1], "samples": SMOKE["samples"]}
        values["comparisons"] = SMOKE["comparisons"]
        for name in ("pretrain", "sft"):
            values[name] = {**values[name], "documents": SMOKE[name]}
        values["references"] = dict(list(values["references"].items())[:2])
        values["plants"] = {k: v for k, v in values["plants"].items() if v.get("sampled")}
        for spec in values["plants"].values():
            spec["settings"] = {**spec["settings"], "epochs": 1.0}
    return build(Config, values, where=arguments.config.name)


def parts_calls(plans: Mapping[int, Sequence[Plan]], *, count: int) -> dict[Path, tuple[Call, Call]]:
    """A plan's folder of plants -> its policies' parts: exact ones of all, sampled ones of those that ask for it."""
    calls = {}
    for seed, every in plans.items():
        for plan in every:
            setting = _setting(plan)
            rows = [row for row in plan.rows if isinstance(row, Plant)]
            weights = {row.name: Weights.parse(row.weights) for row in rows}
            policies = {row.name: plan.fits[row.name][weights[row.name].label].run for row in rows}
            some = [row.name for row in rows if row.sampled]
            world, reference = setting.world, setting.made("sft")
            exact = stages.exact.call(
                setting.folder("exact-parts"), world=world, reference=reference, policies=policies, weights=weights
            )
            sampled = stages.sampled.call(
                setting.folder("sampled-parts"), world=world, reference=reference,
                policies={n: policies[n] for n in some}, weights={n: weights[n] for n in some}, count=count, seed=seed,
            )  # fmt: skip
            calls[setting.folder("plants")] = (
                exact.named(f"exact parts{setting.tag}"), sampled.named(f"sampled parts{setting.tag}")
            )  # fmt: skip
    return calls


def _setting(plan: Plan) -> Planted:
    assert isinstance(plan.setting, Planted)
    return plan.setting


def plantings(plans: Mapping[int, Sequence[Plan]], parts: Mapping[Path, tuple[Call, Call]]) -> list[Planting]:
    """Every plant on every reference of every seed."""
    found = []
    for seed, every in plans.items():
        for plan in every:
            setting = _setting(plan)
            exact, sampled = parts[setting.folder("plants")]
            for row in plan.rows:
                assert isinstance(row, Plant)
                place, folders = plan.cells[row.name][0].out, (exact.out, sampled.out)
                found.append(Planting(row, setting.about, f"{setting.name} {seed}", seed, place, folders))
    return found


def run(arguments: argparse.Namespace) -> int:
    config = configuration(arguments)
    check_fresh(config, published=arguments.publish / "attribution.json" if arguments.publish else None)
    plans = planted_plans(config, where=arguments.config.name)
    count = SMOKE["count"] if arguments.check else arguments.count
    parts = parts_calls(plans, count=count)
    each = [plan for every in plans.values() for plan in every]  # one reference after the other, its parts at its end
    calls = [call for plan in each for call in (*plan.calls, *parts[_setting(plan).folder("plants")])]
    command.run_plan(calls, arguments, label="attribution")
    table = collect(config, plants=plantings(plans, parts), count=count)
    folder = arguments.publish or Path(config.out)
    write_page(table, folder=folder, command=command_line(f"python -m {MODULE}", None))
    print(f"{len(table['cases'])} cases: {folder / 'attribution.md'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return command.main(run, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
