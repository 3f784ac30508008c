"""Leave-one-family-out: what training on some shift families does on those held out; pure.

From exact answers (`reduction`, `cost`) or from judged responses (`transfer_matrix`). Exact ones come as one list for
each training run (seed), as in `shifted_fronts`. The rise of the regret of a row under a shift that keeps
the base items is `regret_s - regret_id`, item by item; a reduction is the baseline row's rise minus the arm's, paired
by base item and seed: positive is better. A reduction alone is no merit (who learned nothing may have no rise at all),
so the regret under the shift itself and the cost on plain inputs stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from align.data.answers import ExactAnswer
from align.errors import UserError
from evals.items import NO_SHIFT, Json
from evals.stats import intervals as stats
from evals.stats.paired_shares import paired_change
from evals.stats.robustness import leave_families_out
from evals.tables.outcomes import Outcome, check_missing, identified, mean_share, shares, stated
from evals.tables.under_shift.shifted_fronts import ITEMS, SEEDS, Exact, item_means, select

PerItem = Mapping[str, float]
Trained = frozenset[str]


def regret_rise(answers: Sequence[ExactAnswer], *, row: str, shift: str) -> dict[str, float]:
    """`regret_s - regret_id` of each base item, averaged over preferences; UserError where the items differ."""
    away = regret(answers, row=row, shift=shift)
    home = regret(answers, row=row, shift=NO_SHIFT)
    if set(home) != set(away):
        raise UserError(f"cells: shift '{shift}' changes the base items; the rise of regret has no value for each")
    return {item: away[item] - home[item] for item in home}


def regret(answers: Sequence[ExactAnswer], *, row: str, shift: str) -> dict[str, float]:
    """Mean regret of each base item under a shift ("none" for plain)."""
    return item_means(select(answers, row=row, shift=shift), lambda answer: answer.regret)


def averaged(parts: Sequence[PerItem]) -> dict[str, float]:
    """The mean of several values per item, item by item; all parts must have the same items."""
    if any(set(part) != set(parts[0]) for part in parts):
        raise UserError("answers: the parts to average differ in base items")
    return {item: float(np.mean([part[item] for part in parts])) for item in parts[0]}


def over_seeds_and_items(values: Mapping[int, PerItem]) -> Json:
    """The mean of per-item values of each seed with its two intervals: over seeds, and over items (seeds averaged)."""
    over_seeds = stats.seed_interval([float(np.mean(list(part.values()))) for part in values.values()], over=SEEDS)
    pooled = averaged(list(values.values()))
    over_items = stats.clustered_mean(list(pooled.values()), clusters_N=list(pooled), over=ITEMS)
    return {
        "value": over_seeds.estimate,
        "ci_seeds": over_seeds.pair,
        "ci_items": over_items.pair,
        "over_seeds": over_seeds.says,
        "over_items": over_items.says,
    }


def level(runs: Exact, *, pairs: Sequence[tuple[str, str]], of: Callable[..., PerItem] = regret_rise) -> Json:
    """The mean of `of` (the rise of the regret, or the regret) over (row, shift) pairs."""
    return over_seeds_and_items(
        {seed: averaged([of(answers, row=row, shift=shift) for row, shift in pairs]) for seed, answers in runs.items()}
    )


def reduction(
    runs: Exact,
    *,
    baseline: str,
    pairs: Sequence[tuple[str, str]],
    of: Callable[..., PerItem] = regret_rise,
) -> Json:
    """`of` of the baseline minus that of each (arm, shift) pair, paired by item, seed and shift; mean over pairs."""

    def difference(answers: Sequence[ExactAnswer]) -> dict[str, float]:
        parts = []
        for arm, shift in pairs:
            without, with_arm = (of(answers, row=row, shift=shift) for row in (baseline, arm))
            parts.append({item: without[item] - with_arm[item] for item in without})
        return averaged(parts)

    return over_seeds_and_items({seed: difference(answers) for seed, answers in runs.items()})


def cost(
    runs: Exact,
    *,
    baseline: str,
    arms: Sequence[str],
    preference: Sequence[float] | None,
    score: Callable[[ExactAnswer], float],
) -> Json:
    """Mean over arms of a score on plain inputs minus the baseline's, at one preference (None: over all)."""

    def scores(answers: Sequence[ExactAnswer], row: str) -> dict[str, float]:
        kept = select(answers, row=row, shift=NO_SHIFT)
        if preference is not None:
            kept = [answer for answer in kept if answer.preference == tuple(preference)]
        return item_means(kept, score)

    values = {}
    for seed, answers in runs.items():
        before = scores(answers, baseline)
        parts = [scores(answers, arm) for arm in arms]
        mean = averaged(parts)
        values[seed] = {item: mean[item] - before[item] for item in before}
    return over_seeds_and_items(values)


# --- from judged responses -------------------------------------------------------------------------------------------


def transfer_matrix(
    evaluations: Mapping[Trained, Sequence[Outcome]], *, families: Mapping[str, str], harmful: bool = True,
    max_missing: float = 0.05,
) -> Json:  # fmt: skip
    """`rows`: trained families, and per measured family the failure rate with its interval and whether it was held out.

    `families`: shift -> family, for the shifts that count (no controls); the plain prompts are a column of their own.
    `transfer`: family -> mean rate of the rows that trained on it (seen) and that did not (held out), and held out
    minus seen, paired by base item: above 0 where training on the family itself is what helps. `curve`: number of
    families trained on -> mean held-out rate. An item's shifts are averaged first. UserError where evaluations were
    asked different items, a trained family was not measured, or too many verdicts are missing.
    """
    sides = {key: [o for o in judged if o.harmful is harmful] for key, judged in evaluations.items()}
    names = list(dict.fromkeys(families.values()))
    _check(sides, names)
    clusters = {o.item: o.cluster for judged in sides.values() for o in judged}
    columns = [*([NO_SHIFT] if any(o.shift == NO_SHIFT for o in next(iter(sides.values()))) else []), *names]
    columns_of = {**families, NO_SHIFT: NO_SHIFT}
    by_item: dict[Trained, dict[str, dict[str, float]]] = {}
    rows = []
    for trained, judged in sides.items():
        by_item[trained], cells = {}, {}
        for column in columns:
            chosen = [o for o in judged if columns_of.get(o.shift) == column]
            what = f"trained on {_label(trained)}, {column}"
            check_missing([o.verdict for o in chosen], what=what, max_missing=max_missing)
            by_item[trained][column] = shares(chosen, verdict="BAD")
            rate = mean_share(by_item[trained][column], clusters=clusters)
            if rate is None:
                raise UserError(f"{what}: no verdict at all; leave the family out of the evaluations")
            cells[column] = stated(rate) | {"held_out": column != NO_SHIFT and column not in trained}
        rows.append({"trained": sorted(trained), "cells": cells})
    means = {key: {f: _mean(by_item[key][f]) for f in names} for key in by_item}
    transfer, curve = leave_families_out(means)
    return {
        "columns": columns, "rows": rows, "side": "harmful" if harmful else "benign",
        "transfer": {
            family: {"seen": one.seen, "held_out": one.held_out, "change": _gap(by_item, family, clusters)}
            for family, one in transfer.items()
        },
        "curve": {str(count): value for count, value in curve.items()},
    }  # fmt: skip


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def _gap(
    by_item: Mapping[Trained, Mapping[str, Mapping[str, float]]], family: str, clusters: Mapping[str, str]
) -> Json | None:
    """Held out minus seen over the items that every row has; None where every row, or none, trained on the family."""
    sides = []
    for seen in (False, True):
        rows = [tables[family] for trained, tables in by_item.items() if (family in trained) is seen]
        items = set.intersection(*(set(row) for row in rows)) if rows else set()
        sides.append({item: sum(row[item] for row in rows) / len(rows) for item in sorted(items)})
    change = paired_change(sides[0], before=sides[1], clusters=clusters) if all(sides) else None
    return None if change is None else stated(change)


def _label(trained: Trained) -> str:
    return ",".join(sorted(trained)) or "none"


def _check(sides: Mapping[Trained, Sequence[Outcome]], families: Sequence[str]) -> None:
    if len(sides) < 2 or not families:
        raise UserError("a transfer matrix needs two evaluations or more, under at least one family of shifts")
    if not all(identified(judged) for judged in sides.values()):
        raise UserError(
            "a judge of these evaluations cannot say BAD; evaluate with one that can (--judge rules llm:MODEL)"
        )
    first, *others = ({(o.shift, o.item, o.sample) for o in judged} for judged in sides.values())
    for trained, items in zip(list(sides)[1:], others, strict=True):
        if items != first:
            shift, item, _ = min(items ^ first, key=str)
            who = f"the evaluation trained on {_label(trained)}"
            raise UserError(f"{who} differs in item {item} under shift {shift}; evaluate both alike")
    for trained in sides:
        unknown = sorted(trained - set(families))
        if unknown:
            raise UserError(f"family {unknown[0]!r} was trained on but not measured (measured: {', '.join(families)})")
