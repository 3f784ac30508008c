"""The rewards benchmark's numbers: finished runs on disk -> one JSON-ready dict, t intervals over training seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from align.runs import RUN_FILE, environment, open_run
from align.testbed.world import load_world
from benchmarks.rewards.plan import BEFORE, BEST, ROW, trained, world_calls
from evals.items import Json
from evals.measure.answers import read_exact
from evals.stats.intervals import seed_interval


def collect(worlds: Sequence[str], seeds: Sequence[int], *, out: Path) -> Json:
    """Everything that is finished below `out`. Shares are regret shares on topics that fine-tuning never saw."""
    found = {world: _world(world, seeds, out=out) for world in worlds}
    table: Json = {"before": BEFORE, "best": BEST, "row": ROW, "seeds": list(seeds), "worlds": found}
    return table | {"environment": environment()}


def _world(world: str, seeds: Sequence[int], *, out: Path) -> Json:
    rows: dict[str, dict[int, Json]] = {}
    for seed in seeds:
        for row, call in world_calls(world, seed, out=out, more=True)[1].items():
            if (call.out / RUN_FILE).is_file():
                rows.setdefault(row, {})[seed] = dict(open_run(call.out).metrics)
    policies = {
        which: {seed: share for seed in seeds if (share := _row_share(world, seed, which, out=out)) is not None}
        for which in ("before", "best")
    }
    before, best = ({seed: one["share"] for seed, one in rows.get(row, {}).items()} for row in (BEFORE, BEST))
    return {
        "hash": load_world(world).hash,
        "rows": {row: _row(by_seed, before) for row, by_seed in rows.items()},
        "optimum_before": _over_seeds(before), "optimum_best": _over_seeds(best),
        "optimum_change": _change(best, before),
        "row_before": _over_seeds(policies["before"]), "row_best": _over_seeds(policies["best"]),
        "row_change": _change(policies["best"], policies["before"]),
        "diagnostics": _diagnostics(rows),
    }  # fmt: skip


def _over_seeds(by_seed: Mapping[int, float]) -> Json:
    """Mean, t interval over seeds, and each seed's own; all null where nothing was run."""
    if not by_seed:
        return {"value": None, "ci": None, "ci_over": "not run", "by_seed": {}}
    interval = seed_interval(list(by_seed.values()))
    own = {str(seed): value for seed, value in by_seed.items()}
    return {"value": interval.estimate, "ci": interval.pair, "ci_over": interval.says, "by_seed": own}


def _change(after: Mapping[int, float], before: Mapping[int, float]) -> Json:
    """Paired differences, seed by seed."""
    return _over_seeds({seed: after[seed] - before[seed] for seed in after if seed in before})


def _row(by_seed: Mapping[int, Json], before: Mapping[int, float]) -> Json:
    entries = list(by_seed.values())
    shares = {seed: one["share"] for seed, one in by_seed.items()}
    curves = [[[point[key] for key in ("pressure", "kl", "promised", "gained", "share")] for point in one["curve"]]
              for one in entries]  # fmt: skip
    loss = [np.mean([q["log_loss"] for q in one["quality"].values()]) for one in entries if "quality" in one]
    right = [np.mean([q["accuracy"] for q in one["quality"].values()]) for one in entries if "quality" in one]
    return {
        "share": _over_seeds(shares), "change": _change(shares, before),
        "share_by_weight": np.mean([one["share_by_weight"] for one in entries], 0).tolist(),
        "kl": float(np.mean([one["kl"] for one in entries])),
        "log_loss": float(np.mean(loss)) if loss else None, "accuracy": float(np.mean(right)) if right else None,
        "curve": np.mean(curves, 0).tolist(),
    }  # fmt: skip


def _diagnostics(rows: Mapping[str, Mapping[int, Json]]) -> Json:
    """What labels and promises, which need no gold, say of the share: Spearman's rank correlation over kinds of reward.

    One correlation a seed, over the rows that are learned; then their mean and interval.
    """
    learned = {row: by_seed for row, by_seed in rows.items() if not row.startswith("oracle")}
    seeds = sorted({seed for by_seed in learned.values() for seed in by_seed})
    asked = {
        "log_loss": lambda one: np.mean([q["log_loss"] for q in one["quality"].values()]),
        "accuracy": lambda one: np.mean([q["accuracy"] for q in one["quality"].values()]),
        "kl": lambda one: one["kl"],
        "promised": lambda one: next(p["promised"] for p in one["curve"] if p["pressure"] == 1),
    }
    found: Json = {}
    for name, value in asked.items():
        by_seed = {}
        for seed in seeds:
            here = [one[seed] for one in learned.values() if seed in one]
            if len(here) >= 5:
                by_seed[seed] = float(spearmanr([value(one) for one in here], [one["share"] for one in here]).statistic)
        found[name] = _over_seeds(by_seed)
    return found


def _row_share(world: str, seed: int, which: str, *, out: Path) -> float | None:
    """The regret share of the policies that were trained on these rewards; None where they are not all judged."""
    plan = trained(world, seed, out=out)[which]
    calls, controls = plan.cells[ROW], plan.cells["reference"]
    if not all((call.out / RUN_FILE).is_file() for call in (*calls, *controls)):
        return None
    regrets = [
        np.mean([answer.regret for call in made for answer in read_exact(call.out / "cells.jsonl")])
        for made in (calls, controls)
    ]
    return float(regrets[0] / regrets[1])
