"""Answers to the methods table: fronts, regret share, hypervolume, utility, control, exchange rate, gate; pure.

Shapes: M preferences, N points, G base items, K objectives. Every number is over the in-distribution answers (shift
"none") and weighs prompts equally. Rows are ranked by regret share; raw hypervolume is printed and never ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from align.data.answers import ExactAnswer, SampledAnswer
from align.errors import UserError
from align.functional import fronts
from evals.items import NO_SHIFT, Fields, Json
from evals.stats import intervals as stats
from evals.tables.surfaces import (
    ExactPoint,
    Point,
    Surface,
    exact_points,
    row_names,
    sampled_points,
    surface,
    volumes,
)

GATE_BAR = 0.25
Front = Callable[[float], np.ndarray]  # mean KL -> points_NK of the dense exact front whose every point spends it


def gate(*, regret_share: float | None, samples_per_response: int, complete: bool, bar: float) -> tuple[bool, str]:
    """(passes, why): a share at or below the bar, one sample per response, and every preference answered."""
    if regret_share is None:
        return False, "not gated: there is no exact optimum to take a regret share of"
    if not complete:
        return False, "fails: does not answer every preference that the reference model was asked for"
    if samples_per_response != 1:
        return False, f"fails: spends {samples_per_response} samples of the policy on each response"
    if regret_share > bar:
        return False, f"fails: regret share {regret_share:.3f} is above {bar:g}"
    return True, f"passes: regret share {regret_share:.3f} is at most {bar:g}"


def _values(points: Sequence[Point]) -> np.ndarray:
    return np.array([point.values for point in points], dtype=float)


def recovered_hypervolume(
    points_NK: np.ndarray, *, reference_NK: np.ndarray, exact_NK: np.ndarray, ref_point: Sequence[float]
) -> float | None:
    """`(HV(points) - HV(reference)) / (HV(exact) - HV(reference))`: 0 = the reference model, 1 = the exact front.

    None where the exact front adds no volume over the reference model.
    """
    volume, start, best = (
        fronts.hypervolume(table, ref_point=ref_point) for table in (points_NK, reference_NK, exact_NK)
    )
    return (volume - start) / (best - start) if best - start > 1e-12 else None


def measured_exchange_rate(
    points: Sequence[Point], *, reference_K: np.ndarray, objectives: Sequence[str]
) -> Json | None:
    """What a unit of the second objective costs in the first, over the points that weigh only these two.

    Points are first brought to the smallest KL among them, along straight lines from the reference: an approximation,
    rough where their KLs differ much. None where fewer than two of them spend KL.
    """
    edge = [point for point in points if not any(point.preference[2:]) and point.kl > 1e-9]
    if len(edge) < 2 or len(objectives) < 2:
        return None
    spent_N = np.array([point.kl for point in edge])
    rates = fronts.exchange_rate(fronts.at_common_kl(_values(edge), kl_N=spent_N, reference_K=reference_K), of=0, per=1)
    return {
        "of": objectives[0],
        "per": objectives[1],
        "kl": float(spent_N.min()),
        "overall": rates.overall,
        "slopes": list(rates.slopes),
        "preferences": [list(edge[i].preference) for i in rates.order],
    }


def _common(points: Sequence[Point], *, reference_K: np.ndarray, objectives: Sequence[str]) -> Json:
    """The columns that exact and sampled rows share; each point of `front` knows whether it is non-dominated."""
    values, weights = _values(points), np.array([point.preference for point in points], dtype=float)
    kept = fronts.nondominated(values)
    return {
        "front": [p.jsonable() | {"nondominated": bool(k)} for p, k in zip(points, kept, strict=True)],
        "expected_utility": fronts.expected_utility(values, weights_MK=weights),
        "conditioned_utility": fronts.conditioned_utility(values, weights_NK=weights),
        "kl": float(np.mean([point.kl for point in points])),
        "kl_max": max(point.kl for point in points),
        "kendall_tau": dict(zip(objectives, fronts.controllability(values, weights_NK=weights, tie=1e-9), strict=True)),
        "exchange_rate": measured_exchange_rate(points, reference_K=reference_K, objectives=objectives),
    }


def at_optimum_kl(points: Sequence[ExactPoint], *, reference: Sequence[ExactPoint]) -> np.ndarray:
    """(M, K) values at no more KL than the optimum spends at the same preference.

    A point that spends more is mixed with the reference model until it does not: `ref + kl* / kl (point - ref)`. The
    mixture of the two policies has these values, and KL is convex, so that it spends at most kl*.
    """
    kept = [min(1.0, point.kl_star / point.kl) if point.kl > 0 else 1.0 for point in points]
    return _values(reference) + np.array(kept)[:, None] * (_values(points) - _values(reference))


def _exact_row(
    points: Sequence[ExactPoint], *, reference: Mapping[tuple[float, ...], ExactPoint], row: str,
    ref_point: Sequence[float],
) -> Json:  # fmt: skip
    """Regret, its share and the raw recovered hypervolume, against the reference model at the same preferences."""
    missing = [list(point.preference) for point in points if point.preference not in reference]
    if missing:
        raise UserError(f"cells: the reference row has no preference {missing[0]}, which row '{row}' has; evaluate it")
    same = [reference[point.preference] for point in points]
    regrets, reference_regrets = ([point.regret for point in side] for side in (points, same))
    share = None
    if np.mean(reference_regrets) > 0:
        share = fronts.regret_share(regrets, reference_regrets_M=reference_regrets)
    best_NK = np.array([point.values_star for point in points], dtype=float)
    recovered = partial(recovered_hypervolume, reference_NK=_values(same), exact_NK=best_NK, ref_point=ref_point)
    return {
        "regret": float(np.mean(regrets)),
        "regret_share": share,
        "raw_hypervolume": recovered(_values(points)),
        "raw_hypervolume_over": "0 = reference model, 1 = exact optimum at the same beta and preferences",
        "matched_kl_hypervolume": recovered(at_optimum_kl(points, reference=same)),
        "matched_kl_hypervolume_over": "the same, at each preference at no more KL than the optimum spends there",
        "answered": len(points),
        "preferences": len(reference),
    }


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """What every row of a table is measured against.

    `reference_point` is the corner of hypervolumes (K), `reference_MK` the reference model's means (default: those of
    its points), `bar` the largest regret share that passes.
    """

    objectives: Sequence[str]
    reference_point: Sequence[float]
    front_at_kl: Front | None = None
    reference_row: str = "reference"
    reference_MK: np.ndarray | None = None
    bar: float = GATE_BAR


def points_table(
    points_of: Mapping[str, Sequence[ExactPoint]], *, yardstick: Yardstick, info: Mapping[str, Fields],
    seed_shares: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Json]:  # fmt: skip
    """Exact rows from their points, best regret share first: `exact_table` without the numbers of prompts and items."""
    points_of = {row: sorted(points, key=lambda point: point.preference) for row, points in points_of.items()}
    reference = {point.preference: point for point in points_of[yardstick.reference_row]}
    reference_MK = yardstick.reference_MK
    if reference_MK is None:
        reference_MK = _values(points_of[yardstick.reference_row])
    front_at_kl, objectives = yardstick.front_at_kl, yardstick.objectives
    table: dict[str, Json] = {}
    for row, points in points_of.items():
        entry = _exact_row(points, reference=reference, row=row, ref_point=yardstick.reference_point)
        entry |= _common(points, reference_K=reference_MK[0], objectives=objectives)
        interval = stats.seed_interval((seed_shares or {}).get(row) or [entry["regret_share"] or 0.0])
        entry["regret_share_ci"] = interval.pair
        entry["regret_share_ci_over"] = f"{interval.says}; the evaluation itself is exact"
        if entry["exchange_rate"] and front_at_kl is not None and len(objectives) == 2:
            exact = fronts.exchange_rate(front_at_kl(entry["exchange_rate"]["kl"]), of=0, per=1)
            entry["exchange_rate"]["exact_overall"] = exact.overall
        entry |= {"samples_per_response": 1, **info.get(row, {})}
        entry["passes"], entry["gate"] = gate(
            regret_share=entry["regret_share"],
            samples_per_response=entry["samples_per_response"],
            complete=entry["answered"] == entry["preferences"],
            bar=yardstick.bar,
        )
        table[row] = entry | {"gate_bar": yardstick.bar}
    order = sorted(table, key=lambda row: (table[row]["regret_share"] is None, table[row]["regret_share"] or 0.0))
    return {row: table[row] for row in order}


def exact_table(
    answers: Sequence[ExactAnswer],
    *,
    objectives: Sequence[str],
    reference_point: Sequence[float],
    front_at_kl: Front | None,
    info: Mapping[str, Fields],
    reference_row: str = "reference",
    seed_shares: Mapping[str, Sequence[float]] | None = None,
    bar: float = GATE_BAR,
) -> dict[str, Json]:
    """`methods` of summary.json from exact (testbed) answers: one JSON-ready dict per row, best regret share first.

    `info[row]` is what the row states of itself (optimises, note, rewards, samples_per_response, bits_per_byte,
    ledger, ...) and is copied in. `seed_shares[row]` are regret shares of training seeds; without at least 3 the
    interval is null with the reason. UserError for rows measured on different prompts than the reference row.
    """
    home = [answer for answer in answers if answer.shift == NO_SHIFT]
    base = surface(home, row=reference_row)
    rows = row_names(home)
    for row in rows:
        _same_prompts(surface(home, row=row), base)
    yardstick = Yardstick(
        objectives=objectives, reference_point=reference_point, front_at_kl=front_at_kl, reference_row=reference_row,
        reference_MK=base.points(), bar=bar,
    )  # fmt: skip
    points_of = {row: exact_points(answer for answer in home if answer.row == row) for row in rows}
    table = points_table(points_of, yardstick=yardstick, info=info, seed_shares=seed_shares)
    return {row: entry | {"prompts": len(base.prompts), "items": len(base.items)} for row, entry in table.items()}


def sampled_table(
    answers: Sequence[SampledAnswer],
    *,
    objectives: Sequence[str],
    reference_point: Sequence[float],
    info: Mapping[str, Fields],
    reference_row: str = "reference",
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Json]:
    """`methods` of summary.json from sampled answers (judge scores): values with intervals over prompts, no regret.

    `raw_hypervolume` is the volume gained over the reference model, in products of score units, with a bootstrap over
    prompts that all rows share. Largest gain first, with the KL that paid for it.
    """
    home = [answer for answer in answers if answer.shift == NO_SHIFT]
    base = surface(home, row=reference_row)
    counts = stats.cluster_counts(base.items, draws=draws, seed=seed)
    start = volumes(base, counts_DG=counts, ref_point=reference_point)
    why = "null: sampled responses, no exact optimum"
    table: dict[str, Json] = {}
    for row in row_names(home):
        own = surface(home, row=row)
        _same_prompts(own, base)
        gain = volumes(own, counts_DG=counts, ref_point=reference_point) - start
        interval = stats.bootstrap_interval(gain[1:], estimate=float(gain[0]), n=len(own.items), over="prompts")
        points = sampled_points(answer for answer in home if answer.row == row)
        outside = int((_values(points) <= np.array(reference_point)).any(axis=1).sum())
        outside_words = f"; {outside} of {len(points)} points lie below the reference point and count nothing"
        entry: Json = {"regret": None, "regret_share": None, "regret_share_ci": None}
        entry |= {"regret_share_ci_over": why, "matched_kl_hypervolume": None, "matched_kl_hypervolume_over": why}
        entry |= {"raw_hypervolume": interval.estimate, "raw_hypervolume_ci": interval.pair}
        entry["raw_hypervolume_over"] = f"gain over the reference model in score units; {interval.says}"
        entry["raw_hypervolume_over"] += outside_words if outside else ""
        entry |= _common(points, reference_K=base.points()[0], objectives=objectives)
        entry |= {"samples_per_response": 1, **info.get(row, {})}
        entry["passes"], entry["gate"] = None, "not gated: there is no exact optimum to take a regret share of"
        table[row] = entry | {"prompts": len(own.prompts), "items": len(own.items)}
    order = sorted(table, key=lambda row: -table[row]["raw_hypervolume"])
    return {row: table[row] for row in order}


def _same_prompts(own: Surface, base: Surface) -> None:
    if own.prompts != base.prompts or own.items != base.items:
        raise UserError(
            f"cells: row '{own.row}' is measured on {len(own.prompts)} prompts and row '{base.row}' on "
            f"{len(base.prompts)}, not the same ones; evaluate both on the same prompts"
        )


def controls_table(table: Mapping[str, Fields], *, controls: Mapping[str, str]) -> dict[str, Json]:
    """`controls` of summary.json: name -> its row's gated numbers, `passes` and `why`. UserError for a missing row."""
    kept = ("regret", "regret_share", "matched_kl_hypervolume", "raw_hypervolume", "kl", "samples_per_response")
    result: dict[str, Json] = {}
    for name, row in controls.items():
        if row not in table:
            raise UserError(f"controls: '{name}' names the row '{row}', which has no cells; evaluate it")
        entry = table[row]
        result[name] = {key: entry[key] for key in kept} | {"row": row, "passes": entry["passes"], "why": entry["gate"]}
    return result
