"""The shift benchmark's numbers: finished cells on disk -> one JSON-ready dict; nothing is evaluated here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from align.data.answers import ExactAnswer, SampledAnswer
from align.runs import Call, commit, environment, open_run
from align.testbed.world import World, load_world, spelling_split
from benchmarks.shift.hh import hh_table
from benchmarks.shift.plan import Arm, Front, Mitigation, Rows
from benchmarks.testbed.plan import CONTROLS
from benchmarks.testbed.table import finished
from evals.items import NO_SHIFT, Fields, Json
from evals.tables.under_shift import heldout_families as families
from evals.tables.under_shift import shifted_fronts as shifted
from evals.tables.under_shift.parts import PARTS
from recipes.pipeline.plan import Plan
from recipes.pipeline.summary import answers_of
from recipes.testbed.demo_summary import exact_of

DRAWS = 1000
Runs = dict[int, list[ExactAnswer]]


def objective(answer: ExactAnswer) -> float:
    """J."""
    return answer.J


def collect(
    found: Rows, arms: Mapping[str, Arm], plans: Mapping[str, Mapping[int, Plan]], drawn: Mapping[str, Sequence[Call]]
) -> Json:
    """`front`, `mitigation` and `hh`, each from what is finished (absent where nothing is), and the provenance.

    `plans`: part -> its plans by seed; `drawn`: of hh, row -> calls.
    """
    table: Json = {"environment": environment(), "commit": commit()}
    runs = whole(plans.get("front", {}))
    if runs:
        table["front"] = front_table(runs, spec=found.front, world=load_world(found.front.world))
    runs = whole(plans.get("mitigation", {}))
    if runs:
        costs = ledgers(plans["mitigation"], runs)
        world = load_world(found.mitigation.world)
        table["mitigation"] = mitigation_table(runs, spec=found.mitigation, arms=arms, world=world, ledger=costs)
    answers = [a for calls in drawn.values() if finished(calls) for a in answers_of(calls)]
    if answers:
        table["hh"] = hh_table([a for a in answers if isinstance(a, SampledAnswer)], spec=found.hh)
    return table


def with_published(table: Json, published: Json, *, run: Sequence[str]) -> Json:
    """The table with the parts of a published one that were not run this time, and `made`: part -> its commit.

    `parts` are the four exact parts by world, shift and row, for those who read numbers and not tables.
    """
    left = [part for part in ("front", "mitigation", "hh") if part not in run and part in published]
    kept: Json = {part: published[part] for part in left}
    before = published.get("made", {})
    made = {part: before.get(part, published["commit"]) for part in kept}
    made |= {part: table["commit"] for part in ("front", "mitigation", "hh") if part in table}
    merged: Json = {**table, **kept, "made": made}
    if "front" in merged:
        merged["parts"] = {merged["front"]["world"]["name"]: four_parts(merged["front"]["shifts"])}
    return merged


def four_parts(shifts: Fields) -> Json:
    """Shift -> row -> part -> `value` and `ci` (over seeds, else over base items) where the drop is divided."""
    return {
        shift: {
            row: {
                part: {"value": entry[part]["value"], "ci": entry[part]["ci_seeds"] or entry[part]["ci_items"]}
                for part in PARTS
            }
            for row, entry in found["rows"].items()
            if all(part in entry for part in PARTS)
        }
        for shift, found in shifts.items()
    }


def whole(plans: Mapping[int, Plan]) -> Runs:
    """Answers of every seed whose reference is finished, with the rows that all those seeds have."""
    seeds = [seed for seed, plan in plans.items() if finished(plan.cells["reference"])]
    first = plans[seeds[0]].cells if seeds else {}
    rows = [row for row in first if all(finished(plans[seed].cells[row]) for seed in seeds)]
    return {seed: [a for row in rows for a in exact_of(plans[seed].cells[row])] for seed in seeds}


def ledgers(plans: Mapping[int, Plan], runs: Runs) -> dict[str, dict[str, float]]:
    """Mean core-seconds, samples and FLOPs of each arm's own training over the seeds."""
    names, means = ("cpu_seconds", "samples_drawn", "flops"), {}
    for arm in {answer.row for answers in runs.values() for answer in answers} - {"reference"}:
        spent = [open_run(plans[seed].runs_of(arm)[0].out).ledger for seed in runs]
        means[arm] = {name: sum(ledger[name] for ledger in spent) / len(spent) for name in names}
    return means


def front_table(runs: Runs, *, spec: Front, world: World) -> Json:
    """`shifts.<shift>`: parts of the drop, gain retained and displacement of every row; rank changes of methods."""
    (some, *_) = runs.values()
    rows = list(dict.fromkeys(answer.row for answer in some))
    methods = [row for row in rows if row not in CONTROLS]
    point = [world.config.reference_point] * len(world.objectives)
    table: Json = {}
    for shift in spec.shifts:
        entries = {}
        for row in rows:
            entries[row] = {
                **shifted.exact_parts(runs, row=row, shift=shift),
                "gain_retained": shifted.gain_over_seeds(
                    runs, row=row, shift=shift, reference_row="reference", reference_point=point, draws=DRAWS, seed=0
                ),
                "displacement": shifted.displacements(runs, row=row, shift=shift, objectives=world.objectives),
            }
        table[shift] = {"rows": entries, "ranks": ranks(runs, rows=methods, shift=shift)}
    return {
        "world": {"name": world.config.name, "hash": world.hash},
        "seeds": list(runs),
        "controls": [row for row in rows if row in CONTROLS],
        "methods": methods,
        "regret": {row: {s: regret(runs, row, s) for s in (NO_SHIFT, *spec.shifts)} for row in rows},
        "fronts": {row: {s: _points(runs, row, s) for s in (NO_SHIFT, *spec.shifts)} for row in rows},
        "shifts": table,
    }


def verdict(pair: Fields) -> str:
    """`kept`, `inverted`, `lost`, `new` or `level`, as in `shifted_fronts.rank_changes`, over seeds too.

    A row leads where its test over base items says so, and the interval over training seeds, where there are three or
    more, leaves out 0.
    """
    leads = []
    for side in (pair["home"], pair["away"]):
        seeds = side.get("ci_seeds")
        sure = side["p_holm"] <= shifted.LEVEL and (seeds is None or seeds[0] > 0 or seeds[1] < 0)
        leads.append((1 if side["difference"] > 0 else -1) if sure else 0)
    if all(leads):
        return "kept" if leads[0] == leads[1] else "inverted"
    return "lost" if leads[0] else "new" if leads[1] else "level"


def ranks(runs: Runs, *, rows: Sequence[str], shift: str) -> Json:
    """Rank changes by mean J over preferences, seeds averaged within each base item; each pair over seeds, too."""
    pooled = [answer for answers in runs.values() for answer in answers]
    sides = [
        {row: shifted.item_means(shifted.select(pooled, row=row, shift=side), objective) for row in rows}
        for side in (NO_SHIFT, shift)
    ]
    found = shifted.rank_changes(*sides)
    for entry in found["pairs"]:
        first, second = entry["pair"]
        for name, side in (("home", NO_SHIFT), ("away", shift)):
            over = shifted.seed_differences(runs, rows=(first, second), shift=side, score=objective)
            entry[name] |= {"ci_seeds": over.pair, "over_seeds": over.says}
        entry["verdict"] = verdict(entry)
    return found


def regret(runs: Runs, row: str, shift: str) -> Json:
    return families.level(runs, pairs=[(row, shift)], of=families.regret)


def _points(runs: Runs, row: str, shift: str) -> list[Json]:
    """Mean values and KL per preference, over seeds and prompts: what the figure draws."""
    from evals.tables.surfaces import exact_points

    pooled = [a for answers in runs.values() for a in answers if a.row == row and a.shift == shift]
    kept = ("preference", "values", "kl", "J", "regret")
    points = [point.jsonable() for point in exact_points(pooled)]
    return [{name: point[name] for name in kept} for point in points]


def mitigation_table(
    runs: Runs, *, spec: Mitigation, arms: Mapping[str, Arm], world: World, ledger: Mapping[str, Mapping[str, float]]
) -> Json:
    """Arms x families, reductions on held-out families against training on plain alone, and what they cost."""
    (some, *_) = runs.values()
    done = list(dict.fromkeys(answer.row for answer in some))
    splits = {s: spelling_split(s) for s in range(1, world.config.spellings + 1)}
    trained = {name: _trained_on(arms, name) for name in arms if name in done}
    matrix = {
        row: {
            split: {
                "regret_rise": families.level(runs, pairs=[(row, split)]),
                "regret": regret(runs, row, split),
                "held_out": s not in trained.get(row, ()),
            }
            for s, split in splits.items()
        }
        for row in done
    }
    groups = _groups(trained)
    return {
        "world": {"name": world.config.name, "hash": world.hash},
        "seeds": list(runs),
        "arms": {arm: list(on) for arm, on in trained.items()},
        "matrix": matrix,
        "plain": {row: regret(runs, row, NO_SHIFT) for row in done},
        "groups": {
            name: _group(runs, spec=spec, group=group, arms=trained, splits=splits) for name, group in groups.items()
        },
        "reference": {split: shifted.exact_parts(runs, row="reference", shift=split) for split in splits.values()},
        "ledger": {arm: ledger[arm] for arm in trained},
    }


def _trained_on(arms: Mapping[str, Arm], name: str) -> tuple[int, ...]:
    """The spellings that an arm, or any part of an average, was trained on."""
    arm = arms[name]
    return tuple(sorted({*arm.spellings, *(s for part in arm.made_of for s in arms[part].spellings)}))


def _groups(arms: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    """Arms that differ only in which families they hold out: one line of the table each."""
    groups: dict[str, list[str]] = {}
    for arm in arms:
        stem = arm.rstrip("0123456789").rstrip("_") if arm[-1].isdigit() and "." not in arm else arm
        groups.setdefault(f"{stem} ({len(arms[arm]) - 1} families)" if stem != arm else arm, []).append(arm)
    return groups


def _group(
    runs: Runs, *, spec: Mitigation, group: Sequence[str], arms: Mapping[str, Sequence[int]], splits: Mapping[int, str]
) -> Json:
    """Held-out levels and reductions of one line, and its cost on plain prompts, all against the arm `plain`."""
    every = [(arm, s, split) for arm in group for s, split in splits.items()]
    entry: Json = {"arms": list(group), "held_out": None, "seen": None}
    for name, seen in (("held_out", False), ("seen", True)):
        pairs = [(arm, split) for arm, s, split in every if (s in arms[arm]) is seen]
        if pairs:
            entry[name] = {}
            for kind, of in (("regret_rise", families.regret_rise), ("regret", families.regret)):
                change = families.reduction(runs, baseline="plain", pairs=pairs, of=of)
                entry[name] |= {kind: families.level(runs, pairs=pairs, of=of), f"{kind}_reduction": change}
    cost = partial(families.cost, runs, baseline="plain", arms=group)
    entry["cost"] = {"J": cost(preference=None, score=objective), "kl": cost(preference=None, score=lambda a: a.kl)}
    for k, name in enumerate(("helpful", "harmless")):
        score = partial(shifted.objective_score, k=k)
        entry["cost"][name] = [{"preference": w, **cost(preference=w, score=score)} for w in spec.weights]
    return entry
