"""The shift benchmark's numbers: finished cells on disk -> one JSON-ready dict; nothing is evaluated here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from align.data.answers import ExactAnswer
from align.runs import RUN_FILE, open_run
from benchmarks.shift.plan import Front, Mitigation, Plan
from benchmarks.testbed.plan import CONTROLS
from evals.items import NO_SHIFT
from evals.tables import heldout_families as families
from evals.tables import shifted_fronts as shifted

DRAWS = 1000
Runs = dict[int, list[ExactAnswer]]


def collect(found: Any, plans: Mapping[str, Any]) -> dict[str, Any]:
    """`front`, `mitigation` and `hh`, each from what is finished (absent where nothing is), and the provenance."""
    from align.runs import commit, environment
    from align.testbed.world import load_world
    from benchmarks.shift.hh import hh_answers, hh_table

    table: dict[str, Any] = {"environment": environment(), "commit": commit()}
    for part, spec, make in (("front", found.front, front_table), ("mitigation", found.mitigation, mitigation_table)):
        runs = finished(plans[part]) if part in plans else {}
        if runs:
            more = {"plan": plans[part]} if part == "mitigation" else {}
            table[part] = make(runs, spec=spec, world=load_world(spec.world), **more)
    answers = hh_answers(plans["hh"]) if "hh" in plans else []
    if answers:
        table["hh"] = hh_table(answers, spec=found.hh)
    return table


def finished(plan: Plan) -> Runs:
    """Cells of every seed whose reference is finished, with the rows that all those seeds have."""
    from evals.measure.answers import read_exact

    seeds = sorted({seed for seed, row in plan.cells if row == "reference" and _done(plan.cells[seed, row])})
    rows = dict.fromkeys(row for _, row in plan.cells)
    whole = [row for row in rows if all(_done(plan.cells[seed, row]) for seed in seeds)]
    return {
        seed: [a for row in whole for folder in plan.cells[seed, row] for a in read_exact(folder / "cells.jsonl")]
        for seed in seeds
    }


def _done(folders: Sequence[Path]) -> bool:
    return all((folder / RUN_FILE).is_file() for folder in folders)


def front_table(runs: Runs, *, spec: Front, world: Any) -> dict[str, Any]:
    """`shifts.<shift>`: parts of the drop, gain retained and displacement of every row; rank changes of methods."""
    (some, *_) = runs.values()
    rows = list(dict.fromkeys(answer.row for answer in some))
    methods = [row for row in rows if row not in CONTROLS]
    point = [world.config.reference_point] * len(world.objectives)
    table: dict[str, Any] = {}
    for shift in spec.shifts:
        entries = {}
        for row in rows:
            entry: dict[str, Any] = dict(shifted.exact_parts(runs, row=row, shift=shift))
            entry["gain_retained"] = shifted.gain_over_seeds(
                runs, row=row, shift=shift, reference_row="reference", reference_point=point, draws=DRAWS, seed=0
            )
            entry["displacement"] = shifted.displacements(runs, row=row, shift=shift, objectives=world.objectives)
            entries[row] = entry
        table[shift] = {"rows": entries, "ranks": ranks(runs, rows=methods, shift=shift)}
    return {
        "world": {"name": world.config.name, "hash": world.hash},
        "seeds": list(runs),
        "controls": [row for row in rows if row in CONTROLS],
        "methods": methods,
        "regret": {row: {s: _regret(runs, row, s) for s in (NO_SHIFT, *spec.shifts)} for row in rows},
        "fronts": {row: {s: _points(runs, row, s) for s in (NO_SHIFT, *spec.shifts)} for row in rows},
        "shifts": table,
    }


def ranks(runs: Runs, *, rows: Sequence[str], shift: str) -> dict[str, Any]:
    """Rank changes by mean J over preferences, seeds averaged within each base item; each pair over seeds, too."""
    pooled = [answer for answers in runs.values() for answer in answers]
    sides = [
        {row: shifted.item_means(shifted.select(pooled, row=row, shift=side), _objective_value) for row in rows}
        for side in (NO_SHIFT, shift)
    ]
    found = shifted.rank_changes(*sides)
    for entry in found["pairs"]:
        first, second = entry["pair"]
        for name, side in (("home", NO_SHIFT), ("away", shift)):
            over = shifted.seed_differences(runs, rows=(first, second), shift=side, score=_objective_value)
            entry[name] |= {"ci_seeds": over.pair, "over_seeds": over.says}
    return found


def _objective_value(answer: ExactAnswer) -> float:
    return answer.J


def _regret(runs: Runs, row: str, shift: str) -> dict[str, Any]:
    return families.over_seeds_and_items(
        {seed: families.regret(cells, row=row, shift=shift) for seed, cells in runs.items()}
    )


def _points(runs: Runs, row: str, shift: str) -> list[dict[str, Any]]:
    """Mean values and KL per preference, over seeds and prompts: what the figure draws."""
    from evals.tables.surfaces import exact_points

    pooled = [a for answers in runs.values() for a in answers if a.row == row and a.shift == shift]
    kept = ("preference", "values", "kl", "J", "regret")
    points = [point.jsonable() for point in exact_points(pooled)]
    return [{name: point[name] for name in kept} for point in points]


def mitigation_table(runs: Runs, *, spec: Mitigation, plan: Plan, world: Any) -> dict[str, Any]:
    """Arms x families, reductions on held-out families against training on plain alone, and what they cost."""
    from align.testbed.world import spelling_split

    (some, *_) = runs.values()
    done = list(dict.fromkeys(answer.row for answer in some))
    splits = {s: spelling_split(s) for s in range(1, world.config.spellings + 1)}
    arms = {arm: _trained_on(spec, arm) for arm in spec.arms if arm in done}
    matrix = {
        row: {
            split: {
                "mismatched": families.level(runs, pairs=[(row, split)]),
                "regret": families.level(runs, pairs=[(row, split)], of=families.regret),
                "held_out": s not in arms.get(row, ()),
            }
            for s, split in splits.items()
        }
        for row in done
    }
    groups = _groups(arms)
    return {
        "world": {"name": world.config.name, "hash": world.hash},
        "seeds": list(runs),
        "arms": {arm: list(on) for arm, on in arms.items()},
        "matrix": matrix,
        "plain": {row: families.level(runs, pairs=[(row, NO_SHIFT)], of=families.regret) for row in done},
        "groups": {
            name: _group(runs, spec=spec, group=group, arms=arms, splits=splits) for name, group in groups.items()
        },
        "reference": {split: shifted.exact_parts(runs, row="reference", shift=split) for split in splits.values()},
        "ledger": {arm: _ledger(plan, runs, arm) for arm in arms},
    }


def _trained_on(spec: Mitigation, arm: str) -> tuple[int, ...]:
    """The spellings that an arm, or any part of an average, was trained on."""
    how = spec.arms[arm]
    return tuple(sorted({*how.spellings, *(s for part in how.made_of for s in spec.arms[part].spellings)}))


def _groups(arms: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    """Arms that differ only in which families they hold out: one line of the table each."""
    groups: dict[str, list[str]] = {}
    for arm in arms:
        stem = arm.rstrip("0123456789").rstrip("_") if arm[-1].isdigit() and "." not in arm else arm
        groups.setdefault(f"{stem} ({len(arms[arm]) - 1} families)" if stem != arm else arm, []).append(arm)
    return groups


def _group(
    runs: Runs, *, spec: Mitigation, group: Sequence[str], arms: Mapping[str, Sequence[int]], splits: Mapping[int, str]
) -> dict[str, Any]:
    """Held-out levels and reductions of one line, and its cost on plain prompts, all against the arm `plain`."""
    pairs = [(arm, split) for arm in group for s, split in splits.items() if s not in arms[arm]]
    seen = [(arm, split) for arm in group for s, split in splits.items() if s in arms[arm]]
    entry: dict[str, Any] = {"arms": list(group), "held_out": None, "seen": None}
    measures = {"mismatched": families.mismatched, "regret": families.regret}
    for name, chosen in (("held_out", pairs), ("seen", seen)):
        if chosen:
            entry[name] = {f"{k}": families.level(runs, pairs=chosen, of=of) for k, of in measures.items()}
            entry[name] |= {
                f"{k}_reduction": families.reduction(runs, baseline="plain", pairs=chosen, of=of)
                for k, of in measures.items()
            }
    scores: dict[str, Callable[[ExactAnswer], float]] = {"J": _objective_value, "kl": lambda answer: answer.kl}
    entry["cost"] = {
        name: families.cost(runs, baseline="plain", arms=group, preference=None, score=score)
        for name, score in scores.items()
    }
    for k, name in enumerate(("helpful", "harmless")):
        entry["cost"][name] = [
            {"preference": w}
            | families.cost(
                runs, baseline="plain", arms=group, preference=w, score=partial(shifted.objective_score, k=k)
            )
            for w in spec.weights
        ]
    return entry


def _ledger(plan: Plan, runs: Runs, arm: str) -> dict[str, float]:
    """Mean core-seconds, samples and FLOPs of an arm's own training over the seeds."""
    ledgers = [open_run(plan.fits[seed, arm]).ledger for seed in runs]
    names = ("cpu_seconds", "samples_drawn", "flops")
    return {name: sum(ledger[name] for ledger in ledgers) / len(ledgers) for name in names}
