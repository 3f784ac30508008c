"""The testbed benchmark's table: finished cells and ledgers on disk -> one JSON-ready dict, intervals over seeds."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from align.data.answers import ExactAnswer
from align.runs import RUN_FILE, Call, commit, environment, open_run
from align.testbed.world import load_world
from benchmarks.testbed.plan import CONTROLS, Benchmark, Cell, Rows, target_of
from evals.items import NO_SHIFT, Fields, Json
from evals.stats import intervals as stats
from recipes.pipeline.plan import Plan
from recipes.pipeline.provenance import ledger_table
from recipes.pipeline.summary import shared
from recipes.testbed.demo_summary import exact_of

KEYS = (
    "regret_mean", "regret_share", "regret_share_ci", "matched_kl_hypervolume", "kl", "worst_weight_regret",
    "kendall_tau", "training_runs", "samples_drawn", "flops", "seconds",
)  # fmt: skip
DESCRIBED = (
    "method", "runs", "asks", "rewards", "specialists_of", "fixed_point", "note", "settings", "contender",
)  # fmt: skip


def collect(plans: Mapping[Cell, Plan], found: Rows) -> Json:
    """`methods.<row>.worlds.<world>` over the seeds whose cells are all there, and the provenance."""
    worlds, seeds = list(dict.fromkeys(world for world, _ in plans)), list(dict.fromkeys(seed for _, seed in plans))
    methods: dict[str, Json] = {}
    for name in worlds:
        entries: dict[str, dict[int, Fields]] = {}
        for seed in seeds:
            for row, entry in seed_table(plans[name, seed]).items():
                entries.setdefault(row, {})[seed] = entry
        for row, by_seed in entries.items():
            about = methods.setdefault(row, {**describe(found, row), "worlds": {}})
            parts = split(plans[name, min(by_seed)], row=row, regret=by_seed[min(by_seed)]["regret_mean"])
            about["worlds"][name] = over_seeds(by_seed) | parts
    return {
        "methods": methods,
        "worlds": {name: {"hash": load_world(name).hash} for name in worlds},
        "seeds": seeds,
        "split": found.file.split,
        "controls": list(CONTROLS),
        "environment": environment(),
        "commit": commit(),
    }


def finished(calls: Sequence[Call]) -> bool:
    """Whether all the runs are there."""
    return bool(calls) and all((call.out / RUN_FILE).is_file() for call in calls)


def at_home(calls: Sequence[Call], home: str) -> list[ExactAnswer]:
    """The answers to the judged prompts, which are the table's own: no shift."""
    return [dataclasses.replace(answer, shift=NO_SHIFT) for answer in exact_of(calls) if answer.shift == home]


def split(plan: Plan, *, row: str, regret: float) -> dict[str, float | None]:
    """Regret of the predicted fixed point (`wrong_objective`) and the rest (`unfinished`); None where it is unknown.

    Predictions belong to the first seed's reference: the split is that seed's.
    """
    nothing: dict[str, float | None] = {"wrong_objective": None, "unfinished": None}
    about, setting = plan.row(row), plan.setting
    if about is None or about.target == "none" or not isinstance(setting, Benchmark):
        return nothing
    target = target_of(about)
    if target is None:
        return {"wrong_objective": 0.0, "unfinished": regret}
    calls = setting.predictions(*target)
    if target not in setting.predicted or not finished(calls):
        return nothing
    from evals.tables.surfaces import exact_points

    predicted = float(np.mean([point.regret for point in exact_points(at_home(calls, setting.home))]))
    return {"wrong_objective": predicted, "unfinished": regret - predicted}


def describe(found: Rows, row: str) -> Json:
    """What a row is, for readers of the table."""
    spec = next((one.given() for one in found.rows if one.name == row), {})
    return {"key": found.key(row), "control": row in CONTROLS, **{k: spec[k] for k in DESCRIBED if k in spec}}


def seed_table(plan: Plan) -> dict[str, Fields]:
    """One entry per row whose cells of this world and seed are all finished."""
    from evals.tables.tradeoffs import exact_table

    setting = plan.setting
    assert isinstance(setting, Benchmark)
    done = {row: calls for row, calls in plan.cells.items() if finished(calls)}
    if "reference" not in done:
        return {}
    drawn = {row: max(open_run(c.out).metrics["samples_per_response"] for c in calls) for row, calls in done.items()}
    table = exact_table(
        [answer for calls in done.values() for answer in at_home(calls, setting.home)],
        objectives=setting.objectives,
        reference_point=[setting.world.config.reference_point] * len(setting.objectives),
        front_at_kl=None,
        info={row: {"samples_per_response": n} for row, n in drawn.items()},
    )
    kept = ("preference", "values", "kl", "J", "regret", "malformed")
    return {
        row: {
            "regret_mean": entry["regret"],
            **{k: entry[k] for k in ("regret_share", "matched_kl_hypervolume", "raw_hypervolume", "kl", "kendall_tau")},
            "worst_weight_regret": max(point["regret"] for point in entry["front"]),
            "samples_per_response": drawn[row],
            "points": [{key: point[key] for key in kept} for point in entry["front"]],
            "optimises": {k: v for c in plan.runs_of(row) for k, v in open_run(c.out).metrics["optimises"].items()},
            **_cost(plan, row),
        }
        for row, entry in table.items()
    }


def _cost(plan: Plan, row: str) -> dict[str, float]:
    """Training runs, samples, FLOPs and core-seconds of a row: its fits and specialists, and what its rewards cost."""
    about = plan.row(row)
    fits = [*plan.runs_of(row), *plan.specialists.get(row, {}).values()]
    ledgers = {str(call.out): open_run(call.out).ledger for call in fits}
    pairs = list(plan.setting.comparisons()) if about is not None else []
    read = {str(c.out): open_run(c.out).ledger for c in [*pairs, *(shared(plan, about) if about else [])]}
    total = ledger_table({**ledgers, **read})["total"] if ledgers else {}
    return {
        "training_runs": sum(ledger["flops"] > 0 for ledger in ledgers.values()),  # best-of-n trains nothing
        "samples_drawn": total.get("samples_drawn", 0),
        "scores_read": total.get("scores_read", 0),
        "flops": total.get("flops", 0.0),
        "seconds": sum(ledger["cpu_seconds"] for ledger in ledgers.values()),
        "evaluation_seconds": sum(open_run(call.out).ledger["cpu_seconds"] for call in plan.cells[row]),
    }


def over_seeds(by_seed: Mapping[int, Fields]) -> Json:
    """Means over seeds, the share's t interval, and every seed's own entry."""
    entries = list(by_seed.values())

    def mean(values: Sequence[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return float(np.mean(known)) if len(known) == len(values) else None

    interval = stats.seed_interval([entry["regret_share"] for entry in entries])
    names = (
        "regret_mean", "regret_share", "matched_kl_hypervolume", "raw_hypervolume", "kl", "worst_weight_regret",
        "training_runs", "samples_drawn", "scores_read", "flops", "seconds", "evaluation_seconds",
    )  # fmt: skip
    taus = [entry["kendall_tau"] for entry in entries]
    return {
        **{name: mean([entry[name] for entry in entries]) for name in names},
        "regret_share_ci": interval.pair,
        "regret_share_ci_over": interval.says,
        "kendall_tau": {name: mean([tau[name] for tau in taus]) for name in taus[0]},
        "samples_per_response": max(entry["samples_per_response"] for entry in entries),
        "optimises": entries[0]["optimises"],
        "seeds": {str(seed): entry for seed, entry in by_seed.items()},
    }


def verdict(table: Fields, *, rows: Sequence[str]) -> int:
    """0 when at least 24 rows that are no controls have every key and a finite regret on every world, else 1."""
    bad = []
    for row in rows:
        worlds = table["methods"].get(row, {}).get("worlds", {})
        for world in table["worlds"]:
            entry = worlds.get(world, {})
            missing = [key for key in KEYS if key not in entry]
            if missing or not math.isfinite(entry["regret_mean"]) or entry["regret_mean"] < -1e-9:
                bad.append(f"{row} on {world}: {'no ' + ', '.join(missing) if missing else entry['regret_mean']}")
    for one in bad:
        print(one, file=sys.stderr)
    print(f"check: {len(rows)} rows, {len(bad)} without a finite regret or a key")
    return 0 if not bad and len(rows) >= 24 else 1
