"""The testbed benchmark's table: finished cells and ledgers on disk -> one JSON-ready dict, intervals over seeds."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align.runs import RUN_FILE, commit, environment, open_run
from benchmarks.testbed import stages as bench
from benchmarks.testbed.plan import CONTROLS, Plan, Rows, preferences_of, row_key
from evals.stats import intervals as stats
from evals.tables.surfaces import ExactPoint
from recipes.pipeline.provenance import ledger_table

KEYS = (
    "regret_mean", "regret_share", "regret_share_ci", "matched_kl_hypervolume", "kl", "worst_weight_regret",
    "kendall_tau", "training_runs", "samples_drawn", "flops", "seconds",
)  # fmt: skip


def collect(
    plan: Plan, *, found: Rows, worlds: Sequence[str], seeds: Sequence[int], rows: Sequence[str]
) -> dict[str, Any]:
    """`methods.<row>.worlds.<world>` over the seeds whose cells are all there, and the optimum's own numbers."""
    from align.testbed.world import load_world

    methods: dict[str, Any] = {}
    for name in worlds:
        world = load_world(name)
        entries: dict[str, dict[int, dict[str, Any]]] = {}
        for seed in seeds:
            for row, entry in seed_table(plan, found=found, world=world, seed=seed, rows=rows).items():
                entries.setdefault(row, {})[seed] = entry
        for row, by_seed in entries.items():
            about = methods.setdefault(row, {**describe(found, row), "worlds": {}})
            parts = split(plan, found=found, world=world, row=row, by_seed=by_seed)
            about["worlds"][name] = over_seeds(by_seed) | parts
    return {
        "methods": methods,
        "worlds": {name: {"hash": load_world(name).hash} for name in worlds},
        "seeds": list(seeds),
        "split": found.split,
        "controls": list(CONTROLS),
        "environment": environment(),
        "commit": commit(),
    }


def split(
    plan: Plan, *, found: Rows, world: Any, row: str, by_seed: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    """Regret of the predicted fixed point (`wrong_objective`) and the rest (`unfinished`); None where it is unknown.

    Predictions belong to the first seed's reference: the split is that seed's.
    """
    kind, nothing = found.rows.get(row, {}).get("fixed_point", "none"), {"wrong_objective": None, "unfinished": None}
    seed = min(by_seed)
    if kind == "none":
        return nothing
    regret = by_seed[seed]["regret_mean"]
    if kind == "scalarised":
        return {"wrong_objective": 0.0, "unfinished": regret}
    folders = [plan.predictions.get((world.config.name, row, w.label)) for w in preferences_of(world)]
    if not all(folder is not None and (folder / RUN_FILE).is_file() for folder in folders):
        return nothing
    predicted = float(np.mean([bench.read_point(folder).regret for folder in folders if folder]))
    return {"wrong_objective": predicted, "unfinished": regret - predicted}


def describe(found: Rows, row: str) -> dict[str, Any]:
    """What a row is, for readers of the table."""
    spec = found.rows.get(row, {})
    keys = ("method", "runs", "asks", "rewards", "specialists_of", "fixed_point", "note", "settings", "contender")
    return {"key": row_key(found, row), "control": row in CONTROLS, **{k: spec[k] for k in keys if k in spec}}


def seed_table(plan: Plan, *, found: Rows, world: Any, seed: int, rows: Sequence[str]) -> dict[str, dict[str, Any]]:
    """One entry per row whose cells of this world and seed are all finished."""
    from evals.tables.tradeoffs import Yardstick, points_table

    name, labels = world.config.name, [w.label for w in preferences_of(world)]
    points: dict[str, list[ExactPoint]] = {}
    for row in (*CONTROLS, *rows):
        folders = [plan.cells.get((name, seed, row, label)) for label in labels]
        if all(folder is not None and (folder / RUN_FILE).is_file() for folder in folders):
            points[row] = [bench.read_point(folder) for folder in folders if folder]
    if "reference" not in points:
        return {}
    drawn = {row: _samples_per_response(plan, name, seed, row, labels) for row in points}
    yardstick = Yardstick(
        objectives=world.objectives,
        reference_point=[world.config.reference_point] * len(world.objectives),
        front_at_kl=_front_at_kl(plan, world=world, seed=seed),
    )
    info = {row: {"samples_per_response": n} for row, n in drawn.items()}
    table = points_table(points, yardstick=yardstick, info=info)
    result = {}
    for row, entry in table.items():
        regrets = [point["regret"] for point in entry["front"]]
        result[row] = {
            "regret_mean": entry["regret"],
            "regret_share": entry["regret_share"],
            "matched_kl_hypervolume": entry["matched_kl_hypervolume"],
            "raw_hypervolume": entry["raw_hypervolume"],
            "kl": entry["kl"],
            "worst_weight_regret": max(regrets),
            "kendall_tau": entry["kendall_tau"],
            "samples_per_response": drawn[row],
            "points": [
                {key: point[key] for key in ("preference", "values", "kl", "J", "regret", "malformed")}
                for point in entry["front"]
            ],
            "optimises": _claims(plan, name, seed, row),
            **_cost(plan, name, seed, row),
        }
    return result


def _samples_per_response(plan: Plan, world: str, seed: int, row: str, labels: Sequence[str]) -> int:
    return max(open_run(plan.cells[world, seed, row, label]).metrics["samples_per_response"] for label in labels)


def _front_at_kl(plan: Plan, *, world: Any, seed: int) -> Any:
    """KL -> the dense exact front (201 weights for two objectives) whose every point spends it."""
    from align.preferences import simplex_grid
    from align.testbed.optimum import RewardClasses, front_at_kl

    place = next(p for (w, s, _, _), p in plan.cells.items() if (w, s) == (world.config.name, seed)).parents[2]
    given = bench.read_facts(place / "facts")["classes"]
    classes = [RewardClasses(np.array(c["rewards"]), np.array(c["log_mass"])) for c in given]
    grid = simplex_grid(len(world.objectives), 200 if len(world.objectives) == 2 else 12)
    return lambda kl: front_at_kl(classes, grid, kl=kl)


def _claims(plan: Plan, world: str, seed: int, row: str) -> dict[str, str]:
    claims: dict[str, str] = {}
    for folder in plan.fits.get((world, seed, row), []):
        claims |= open_run(folder).metrics["optimises"]
    return claims


def _cost(plan: Plan, world: str, seed: int, row: str) -> dict[str, Any]:
    """Training runs, samples, FLOPs and core-seconds of a row: its fits and specialists, and what its rewards cost."""
    fits = [*plan.fits.get((world, seed, row), []), *plan.made_of.get((world, seed, row), [])]
    ledgers = {str(folder): open_run(folder).ledger for folder in fits}
    shared = {str(f): open_run(f).ledger for f in plan.shared.get((world, seed, row), []) if fits}
    total = ledger_table({**ledgers, **shared})["total"] if ledgers else {}
    evaluations = [p for (w, s, r, _), p in plan.cells.items() if (w, s, r) == (world, seed, row)]
    return {
        "training_runs": sum(ledger["flops"] > 0 for ledger in ledgers.values()),  # best-of-n trains nothing
        "samples_drawn": total.get("samples_drawn", 0),
        "scores_read": total.get("scores_read", 0),
        "flops": total.get("flops", 0.0),
        "seconds": sum(ledger["cpu_seconds"] for ledger in ledgers.values()),
        "evaluation_seconds": sum(open_run(folder).ledger["cpu_seconds"] for folder in evaluations),
    }


def over_seeds(by_seed: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds, the share's t interval, and every seed's own entry."""
    entries = list(by_seed.values())

    def mean(key: str) -> float | None:
        values = [entry[key] for entry in entries]
        return None if any(v is None for v in values) else float(np.mean(values))

    interval = stats.seed_interval([entry["regret_share"] for entry in entries])
    names = ("regret_mean", "regret_share", "matched_kl_hypervolume", "raw_hypervolume", "kl")
    costs = ("training_runs", "samples_drawn", "scores_read", "flops", "seconds", "evaluation_seconds")
    taus = [entry["kendall_tau"] for entry in entries]
    return {
        **{name: mean(name) for name in (*names, "worst_weight_regret", *costs)},
        "regret_share_ci": interval.pair,
        "regret_share_ci_over": interval.says,
        "kendall_tau": {k: float(np.mean([t[k] for t in taus])) if all(t[k] is not None for t in taus) else None
                        for k in taus[0]},
        "samples_per_response": max(entry["samples_per_response"] for entry in entries),
        "optimises": entries[0]["optimises"],
        "seeds": {str(seed): entry for seed, entry in by_seed.items()},
    }  # fmt: skip


def verdict(table: Mapping[str, Any], *, rows: Sequence[str]) -> int:
    """0 when at least 24 rows that are no controls have every key and a finite regret on every world, else 1."""
    bad = []
    for row in rows:
        worlds = table["methods"].get(row, {}).get("worlds", {})
        for world in table["worlds"]:
            entry = worlds.get(world, {})
            missing = [key for key in KEYS if key not in entry]
            if missing or not math.isfinite(entry["regret_mean"]) or entry["regret_mean"] < -1e-9:
                bad.append(f"{row} on {world}: {'no ' + ', '.join(missing) if missing else entry['regret_mean']}")
    for line in bad:
        print(line, file=sys.stderr)
    print(f"check: {len(rows)} rows, {len(bad)} without a finite regret or a key")
    return 0 if not bad and len(rows) >= 24 else 1
