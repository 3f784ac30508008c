"""The held-out benchmark's numbers: finished cells on disk -> one JSON-ready dict; nothing is evaluated here.

A difference is taken within a seed and a family, item by item; families are averaged within their seed, and the t
interval is over the seeds, for families of one seed share its policy and its reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from align.data.answers import ExactAnswer
from align.runs import commit, environment, open_run
from align.testbed.world import World, spelling_split
from benchmarks.heldout.plan import NOTHING, REFERENCE, Candidate, Place, Planned, Spec, families_of, places
from benchmarks.testbed.table import finished
from evals.items import NO_SHIFT, Json
from evals.stats.intervals import seed_interval
from evals.tables.under_shift import heldout_families as families
from evals.tables.under_shift.parts import PARTS, SCORES
from evals.tables.under_shift.shifted_fronts import item_means, select
from recipes.testbed.demo_summary import exact_of

Runs = Mapping[int, Sequence[ExactAnswer]]
LEAST_SHARE, MOST_COST = 0.5, 0.02  # the bar: of the mismatched part that goes, of J on plain prompts that it costs


def objective(answers: Sequence[ExactAnswer], *, row: str, shift: str) -> dict[str, float]:
    """J of each base item."""
    return item_means(select(answers, row=row, shift=shift), lambda answer: answer.J)


def part(answers: Sequence[ExactAnswer], *, row: str, shift: str, name: str) -> dict[str, float]:
    """One of the four parts of the drop in J, for each base item; above 0 is a loss."""
    away, home = (item_means(select(answers, row=row, shift=side), SCORES[name]) for side in (shift, NO_SHIFT))
    return {item: away[item] - home[item] for item in home}


mismatched = partial(part, name="mismatched")


def collect(spec: Spec, candidates: Sequence[Candidate], plans: Mapping[int, Planned], *, world: World) -> Json:
    """The policy, the reference, and every candidate, on the families for which it is finished at all seeds."""
    asked = families_of(spec, world)
    splits = [spelling_split(s) for s in asked]
    every = {row for plan in plans.values() for row in plan.cells}
    done = {row for row in every if all(finished([plan.cells[row]]) for plan in plans.values())}
    runs = {
        seed: [answer for row in plan.cells if row in done for answer in exact_of([plan.cells[row]])]
        for seed, plan in plans.items()
    }
    alike = {row: [Place(row, split) for split in splits] for row in (NOTHING, REFERENCE)}
    table: Json = {
        "environment": environment(), "commit": commit(), "seeds": list(plans), "families": splits,
        "world": {"name": world.config.name, "hash": world.hash, "prompts": len(world.test_prompts(NO_SHIFT))},
        "policy": {"method": spec.method, "weights": list(spec.preference.values), "settings": spec.settings},
        "consistency": spec.consistency, "bar": {"share": LEAST_SHARE, "cost": MOST_COST},
        "levels": {row: levels(runs, held) for row, held in alike.items() if row in done},
        "candidates": {}, "shared": _shared(plans),
    }  # fmt: skip
    for one in candidates:
        held = [place for place in places(one, candidates, families=asked).values() if place.row in done]
        if NOTHING in done and held:
            table["levels"][one.name] = levels(runs, held)
            made = {plan.made[place.row].out for plan in plans.values() for place in held}
            seconds = [open_run(out).ledger["cpu_seconds"] for out in made]
            table["candidates"][one.name] = {
                "what": one.what, "explains": one.explains, "settings": dict(one.consistency),
                "core_seconds": sum(seconds) / len(seconds), **changes(runs, held),
            }  # fmt: skip
    return table


def levels(runs: Runs, held: Sequence[Place]) -> Json:
    """J plain and held out, the parts, the regret; `seen`: the mismatched part on families that were trained on."""
    plain = sorted({(place.row, NO_SHIFT) for place in held})
    pairs = [(place.row, place.held_out) for place in held]
    seen = [(place.row, place.seen) for place in held if place.seen is not None]
    return {
        "J_plain": families.level(runs, pairs=plain, of=objective),
        "J": families.level(runs, pairs=pairs, of=objective),
        "regret": families.level(runs, pairs=pairs, of=families.regret),
        "by_family": {split: families.level(runs, pairs=[(row, split)], of=mismatched) for row, split in pairs},
        "seen": families.level(runs, pairs=seen, of=mismatched) if seen else None,
        **{name: families.level(runs, pairs=pairs, of=partial(part, name=name)) for name in PARTS},
    }


def changes(runs: Runs, held: Sequence[Place]) -> Json:
    """Against doing nothing: what goes of the mismatched part and of the regret, what plain J gains, and the bar."""
    pairs = [(place.row, place.held_out) for place in held]
    lowered: dict[str, Callable[..., families.PerItem]] = {"mismatched": mismatched, "regret": families.regret}
    found: Json = {
        f"{name}_lowered": families.reduction(runs, baseline=NOTHING, pairs=pairs, of=of)
        for name, of in lowered.items()
    }
    arms = sorted({row for row, _ in pairs})
    found["plain_change"] = families.cost(
        runs, baseline=NOTHING, arms=arms, preference=None, score=lambda answer: answer.J
    )
    by_seed = {
        seed: {split: _pair(answers, row, split, lowered) for row, split in pairs} for seed, answers in runs.items()
    }
    shares = [
        sum(entry["mismatched_lowered"] for entry in by_split.values())
        / sum(entry["mismatched_before"] for entry in by_split.values())
        for by_split in by_seed.values()
    ]
    share = seed_interval(shares)
    found |= {
        "share": {"value": share.estimate, "ci_seeds": share.pair, "ci_items": None, "over_seeds": share.says},
        "by_seed": {str(seed): values for seed, values in by_seed.items()},
    }
    return found | {"reached": reached(found)}


def _pair(
    answers: Sequence[ExactAnswer], row: str, split: str, lowered: Mapping[str, Callable[..., families.PerItem]]
) -> Json:
    """One seed and family: before, and what goes."""
    entry: Json = {}
    for name, of in lowered.items():
        before, after = (_mean(of(answers, row=one, shift=split)) for one in (NOTHING, row))
        entry |= {f"{name}_before": before, f"{name}_lowered": before - after}
    return entry


def _mean(values: families.PerItem) -> float:
    return sum(values.values()) / len(values)


def reached(change: Json) -> Json:
    """The bar's three conditions: half of the mismatched part, regret (intervals over seeds above 0), cost."""

    def lowered(what: str) -> bool:
        pair = change[what]["ci_seeds"]
        return pair is not None and pair[0] > 0

    found = {
        "mismatched": change["share"]["value"] >= LEAST_SHARE and lowered("mismatched_lowered"),
        "regret": lowered("regret_lowered"),
        "cost": change["plain_change"]["value"] >= -MOST_COST,
    }
    return found | {"all": all(found.values())}


def _shared(plans: Mapping[int, Planned]) -> Json:
    """Over seeds, of each kind of thing: how often it is found by other spellings, and how alike it is."""
    done = [open_run(plan.shared.out).metrics for plan in plans.values() if finished([plan.shared])]
    found: Json = {}
    for kind in done[0] if done else ():
        entries = {key: seed_interval([one[kind][key] for one in done]) for key in ("found", "cosine")}
        found[kind] = {key: {"value": one.estimate, "ci": one.pair} for key, one in entries.items()}
        found[kind]["chance"] = done[0][kind]["chance"]
    return found
