"""The drop of a row under a shift in four exact parts, from exact answers, with intervals over base items; pure.

    J_id - J_s = [J*_id - J*_t] surface + [J*_t - J*_s] competing
               + [R_s(pi_T) - R_id] carried over + [R_s - R_s(pi_T)] mismatched

for the matched control t and the transported policy pi_T (align/functional/parts.py). A shift that brings base items of
its own has no plain prompt to carry over from: its drop is not divided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from align.data.answers import ExactAnswer
from evals.items import NO_SHIFT, Json
from evals.stats import intervals as stats
from evals.tables.surfaces import Preference, by_preference

PARTS = ("surface", "competing", "carried_over", "mismatched")
UNDIVIDED = "null: the shift brings base items of its own, and nothing can be carried over to them item by item"
SAMPLED = "null: sampled responses, no exact optimum to divide the drop with"
LEAST_CONFLICT = 0.005  # in reward units: below it the optimum for one objective leaves the others where they are


def _reward(answer: ExactAnswer) -> float:
    return sum(w * v for w, v in zip(answer.preference, answer.values, strict=True))


def _control(answer: ExactAnswer) -> float:
    assert answer.J_star_control is not None  # `divided` has looked
    return answer.J_star if answer.shift == NO_SHIFT else answer.J_star_control


def _carried(answer: ExactAnswer) -> float:
    assert answer.regret_carried is not None
    return answer.regret_carried


# The rise of each score from the plain prompts to the shifted ones is the part: what is lost is positive.
WHOLE = ("drop", "reward_drop", "optimum", "regret_rise")  # the last two make up the drop, wherever items come from
SCORES: dict[str, Callable[[ExactAnswer], float]] = {
    "drop": lambda a: -a.J,
    "reward_drop": lambda a: -_reward(a),
    "optimum": lambda a: -a.J_star,
    "regret_rise": lambda a: a.regret,
    "surface": lambda a: -a.J_star if a.shift == NO_SHIFT else -_control(a),
    "competing": lambda a: 0.0 if a.shift == NO_SHIFT else _control(a) - a.J_star,
    "carried_over": lambda a: a.regret if a.shift == NO_SHIFT else _carried(a),
    "mismatched": lambda a: 0.0 if a.shift == NO_SHIFT else a.regret - _carried(a),
}


def divided(away: Sequence[ExactAnswer]) -> bool:
    """Whether the answers under a shift say what their parts are made of."""
    return all(a.J_star_control is not None and a.regret_carried is not None for a in away)


def drop_parts(home: Sequence[ExactAnswer], away: Sequence[ExactAnswer]) -> Json:
    """`WHOLE` and the four parts of one row, each with `_ci` over base items; JSON-ready.

    Means over prompts, per preference (`split`) and averaged over preferences. The parts are null with the reason in
    `split_over` where the shift has base items of its own.
    """
    after = by_preference(away)
    before = {preference: group for preference, group in by_preference(home).items() if preference in after}
    names = tuple(SCORES) if divided(away) else WHOLE
    by_weights: list[Json] = [
        {"preference": list(p)}
        | {name: _mean(after[p], SCORES[name]) - _mean(before[p], SCORES[name]) for name in names}
        for p in before
    ]
    result: Json = dict.fromkeys((*SCORES, *(f"{name}_ci" for name in SCORES)))
    says = UNDIVIDED
    for name in names:
        interval = _interval(before, after, SCORES[name])
        result |= {name: float(np.mean([entry[name] for entry in by_weights])), f"{name}_ci": interval.pair}
        says = interval.says if name == "mismatched" else says
    return result | {"split": by_weights, "split_over": says}


def no_parts() -> Json:
    """The entry of a row without exact answers."""
    return {**dict.fromkeys((*SCORES, *(f"{name}_ci" for name in SCORES))), "split": [], "split_over": SAMPLED}


def objectives_disagree(reference: Sequence[ExactAnswer]) -> bool:
    """Whether the optimum for one objective alone puts another below where the reference has it; else the part that is
    called competing is a pull.

    Asked of the reference's answers under the shift, at the preferences that want one objective only.
    """
    worst = 0.0
    for preference, group in by_preference(reference).items():
        if max(preference) < 1.0:
            continue
        for k, weight in enumerate(preference):
            if not weight:
                worst = max(worst, float(np.mean([a.values[k] - a.values_star[k] for a in group])))
    return worst > LEAST_CONFLICT


def _mean(answers: Sequence[ExactAnswer], score: Callable[[ExactAnswer], float]) -> float:
    return float(np.mean([score(answer) for answer in answers]))


def _interval(
    before: Mapping[Preference, Sequence[ExactAnswer]], after: Mapping[Preference, Sequence[ExactAnswer]],
    score: Callable[[ExactAnswer], float],
) -> stats.Interval:  # fmt: skip
    """Over base items, of the mean rise of a score within each, averaged over preferences."""

    def per_item(groups: Mapping[Preference, Sequence[ExactAnswer]]) -> dict[str, float]:
        gathered: dict[str, list[float]] = {}
        for group in groups.values():
            for answer in group:
                gathered.setdefault(answer.item, []).append(score(answer))
        return {item: float(np.mean(values)) for item, values in gathered.items()}

    home, away = per_item(before), per_item(after)
    if set(home) == set(away):
        return stats.paired_difference(away, second=home, over="base items, paired")
    return stats.unpaired_difference(
        list(away.values()), second_M=list(home.values()), clusters_N=list(away), clusters_M=list(home)
    )
