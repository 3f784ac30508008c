"""Cells to the methods table: fronts, regret share, hypervolumes, utility, controllability, exchange rate, gate; pure.

Shapes: M preferences, N points, G base items, K objectives. Every number is over the in-distribution cells (shift
"none") and weighs prompts equally. Rows are ranked by regret share; raw hypervolume is printed and never ranks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from align.errors import UserError
from align.functional import fronts
from evals.items import NO_SHIFT
from evals.stats import intervals as stats

GATE_BAR = 0.25
Cell = Mapping[str, Any]
Preference = tuple[float, ...]
Front = Callable[[float], Any]  # mean KL -> points_NK of the dense exact front whose every point spends it


@dataclass(frozen=True)
class Surface:
    """One row under one shift, summed per base item: all that fronts and their bootstrap need."""

    row: str
    shift: str
    preferences: tuple[Preference, ...]
    items: tuple[str, ...]
    prompts: tuple[str, ...]
    sums_MGK: np.ndarray
    counts_MG: np.ndarray

    def points(self) -> np.ndarray:
        """Mean values per preference over prompts, M x K."""
        return self.resampled(np.ones((1, len(self.items))))[0]

    def resampled(self, counts_DG: np.ndarray) -> np.ndarray:
        """The points of each bootstrap resample, D x M x K; row d says how often each base item counts."""
        totals_DMK = np.einsum("dg,mgk->dmk", counts_DG, self.sums_MGK)
        return totals_DMK / np.einsum("dg,mg->dm", counts_DG, self.counts_MG)[:, :, None]

    def only(self, preferences: Sequence[Preference]) -> "Surface":
        """The same surface at some of its preferences."""
        kept = [self.preferences.index(preference) for preference in preferences]
        return replace(
            self, preferences=tuple(preferences), sums_MGK=self.sums_MGK[kept], counts_MG=self.counts_MG[kept]
        )

    def item_means(self, preference: Preference) -> dict[str, np.ndarray]:
        """Mean values of one preference per base item, each of shape K."""
        m = self.preferences.index(preference)
        return {item: self.sums_MGK[m, g] / self.counts_MG[m, g] for g, item in enumerate(self.items)}


def volumes(own: Surface, *, counts_DG: np.ndarray, ref_point: Any) -> np.ndarray:
    """Hypervolume of the points themselves (entry 0), then of each bootstrap resample; shape D + 1."""
    every_DG = np.concatenate([np.ones((1, len(own.items))), counts_DG])
    return np.array([fronts.hypervolume(table, ref_point=ref_point) for table in own.resampled(every_DG)])


def by_preference(cells: Iterable[Cell]) -> dict[Preference, list[Cell]]:
    """Cells grouped by preference, preferences sorted."""
    groups: dict[Preference, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(tuple(float(w) for w in cell["preference"]), []).append(cell)
    return dict(sorted(groups.items()))


def surface(cells: Sequence[Cell], *, row: str, shift: str = NO_SHIFT) -> Surface:
    """The cells of one row and shift as a `Surface`.

    UserError when there are none, or when two preferences were not measured on the same prompts.
    """
    groups = by_preference(cell for cell in cells if cell["row"] == row and cell["shift"] == shift)
    if not groups:
        raise UserError(f"cells: row '{row}' has none under shift '{shift}'; evaluate it there or leave the row out")
    asked = {preference: {(c["item"], c["prompt"]) for c in group} for preference, group in groups.items()}
    first = next(iter(asked.values()))
    for preference, pairs in asked.items():
        if pairs != first:
            raise UserError(
                f"cells: row '{row}', shift '{shift}', preference {list(preference)} is measured on other prompts than "
                f"the row's first preference ({len(pairs)} against {len(first)}); evaluate every preference on the same"
            )
    items = tuple(sorted({item for item, _ in first}))
    place = {item: g for g, item in enumerate(items)}
    width = len(next(iter(groups)))
    sums, counts = np.zeros((len(groups), len(items), width)), np.zeros((len(groups), len(items)))
    for m, group in enumerate(groups.values()):
        for cell in group:
            sums[m, place[cell["item"]]] += cell["values"]
            counts[m, place[cell["item"]]] += 1
    return Surface(row, shift, tuple(groups), items, tuple(sorted({prompt for _, prompt in first})), sums, counts)


def row_names(cells: Iterable[Cell], *, shift: str = NO_SHIFT) -> list[str]:
    """Rows with cells under a shift, in order of first appearance."""
    return list(dict.fromkeys(cell["row"] for cell in cells if cell["shift"] == shift))


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


def _mean(cells: Sequence[Cell], name: str) -> float:
    return float(np.mean([cell[name] for cell in cells]))


def exact_points(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """One point per preference from exact cells: means over prompts of values, KL, J, regret and the optimum's."""
    return [
        {
            "preference": list(preference),
            "values": np.mean([cell["values"] for cell in group], axis=0).tolist(),
            "kl": _mean(group, "kl"),
            "J": _mean(group, "J"),
            "regret": _mean(group, "regret"),
            "J_star": _mean(group, "J_star"),
            "values_star": np.mean([cell["values_star"] for cell in group], axis=0).tolist(),
            "kl_star": _mean(group, "kl_star"),
            "malformed": _mean(group, "malformed"),
        }
        for preference, group in by_preference(cells).items()
    ]


def sampled_points(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """One point per preference from sampled cells, each value and the KL with a t interval clustered by base item."""
    points = []
    for preference, group in by_preference(cells).items():
        items = [cell["item"] for cell in group]
        intervals = [
            stats.clustered_mean([cell["values"][k] for cell in group], clusters_N=items, over="prompts")
            for k in range(len(preference))
        ]
        spent = stats.clustered_mean([cell["kl"] for cell in group], clusters_N=items, over="prompts")
        points.append(
            {
                "preference": list(preference),
                "values": [interval.estimate for interval in intervals],
                "values_ci": [interval.pair for interval in intervals],
                "kl": spent.estimate,
                "kl_ci": spent.pair,
                "ci_over": f"{intervals[0].says}, {len(group)} samples",
            }
        )
    return points


def _values(points: Sequence[Mapping[str, Any]], name: str = "values") -> np.ndarray:
    return np.array([point[name] for point in points], dtype=float)


def recovered_hypervolume(points_NK: Any, *, reference_NK: Any, exact_NK: Any, ref_point: Any) -> float | None:
    """`(HV(points) - HV(reference)) / (HV(exact) - HV(reference))`: 0 = the reference model, 1 = the exact front.

    None where the exact front adds no volume over the reference model.
    """
    volume, start, best = (
        fronts.hypervolume(table, ref_point=ref_point) for table in (points_NK, reference_NK, exact_NK)
    )
    return (volume - start) / (best - start) if best - start > 1e-12 else None


def measured_exchange_rate(
    points: Sequence[Mapping[str, Any]], *, reference_K: Any, objectives: Sequence[str]
) -> dict[str, Any] | None:
    """What a unit of the second objective costs in the first, over the points that weigh only these two.

    Points are first brought to the smallest KL among them, along straight lines from the reference: an approximation,
    rough where their KLs differ much. None where fewer than two of them spend KL.
    """
    edge = [point for point in points if not any(point["preference"][2:]) and point["kl"] > 1e-9]
    if len(edge) < 2 or len(objectives) < 2:
        return None
    spent_N = np.array([point["kl"] for point in edge])
    rates = fronts.exchange_rate(fronts.at_common_kl(_values(edge), kl_N=spent_N, reference_K=reference_K), of=0, per=1)
    return {
        "of": objectives[0],
        "per": objectives[1],
        "kl": float(spent_N.min()),
        "overall": rates.overall,
        "slopes": list(rates.slopes),
        "preferences": [edge[i]["preference"] for i in rates.order],
    }


def _common(points: list[dict[str, Any]], *, reference_K: Any, objectives: Sequence[str]) -> dict[str, Any]:
    """The columns that exact and sampled rows share; marks the non-dominated points in place."""
    values, weights = _values(points), _values(points, "preference")
    for point, kept in zip(points, fronts.nondominated(values), strict=True):
        point["nondominated"] = bool(kept)
    return {
        "front": points,
        "expected_utility": fronts.expected_utility(values, weights_MK=weights),
        "conditioned_utility": fronts.conditioned_utility(values, weights_NK=weights),
        "kl": float(np.mean([point["kl"] for point in points])),
        "kl_max": max(point["kl"] for point in points),
        "kendall_tau": dict(zip(objectives, fronts.controllability(values, weights_NK=weights, tie=1e-9), strict=True)),
        "exchange_rate": measured_exchange_rate(points, reference_K=reference_K, objectives=objectives),
    }


def _matched(points: list[dict[str, Any]], *, reference_NK: Any, ref_point: Any, front_at_kl: Front | None) -> Any:
    """(hypervolume recovered at the family's largest KL or None, words)."""
    largest = max(point["kl"] for point in points)
    if front_at_kl is None:
        return None, "not computed: no exact front was given"
    if largest <= 1e-9:
        return None, "not defined: the row spends no KL"
    share = recovered_hypervolume(
        _values(points), reference_NK=reference_NK, exact_NK=front_at_kl(largest), ref_point=ref_point
    )
    words = f"against the exact front at the row's largest mean KL, {largest:.3f}"
    return share, words if share is not None else f"not defined: no gain is possible at KL {largest:.3g}"


def _exact_row(
    points: list[dict[str, Any]], *, reference: Mapping[Preference, Mapping[str, Any]], row: str, ref_point: Any
) -> dict[str, Any]:
    """Regret, its share and the raw recovered hypervolume, against the reference model at the same preferences."""
    missing = [point["preference"] for point in points if tuple(point["preference"]) not in reference]
    if missing:
        raise UserError(f"cells: the reference row has no preference {missing[0]}, which row '{row}' has; evaluate it")
    same = [reference[tuple(point["preference"])] for point in points]
    regrets, reference_regrets = [[point["regret"] for point in side] for side in (points, same)]
    share = None
    if np.mean(reference_regrets) > 0:
        share = fronts.regret_share(regrets, reference_regrets_M=reference_regrets)
    return {
        "regret": float(np.mean(regrets)),
        "regret_share": share,
        "raw_hypervolume": recovered_hypervolume(
            _values(points), reference_NK=_values(same), exact_NK=_values(points, "values_star"), ref_point=ref_point
        ),
        "raw_hypervolume_over": "0 = reference model, 1 = exact optimum at the same beta and preferences",
        "answered": len(points),
        "preferences": len(reference),
    }


def exact_table(
    cells: Sequence[Cell],
    *,
    objectives: Sequence[str],
    reference_point: Sequence[float],
    front_at_kl: Front | None,
    info: Mapping[str, Mapping[str, Any]],
    reference_row: str = "reference",
    seed_shares: Mapping[str, Sequence[float]] | None = None,
    bar: float = GATE_BAR,
) -> dict[str, dict[str, Any]]:
    """`methods` of summary.json from exact (testbed) cells: one JSON-ready dict per row, best regret share first.

    `info[row]` is what the row says about itself (optimises, note, rewards, samples_per_response, bits_per_byte,
    ledger, ...) and is copied in. `seed_shares[row]` are regret shares of training seeds; without at least 3 the
    interval is null and says why. UserError for rows measured on different prompts than the reference row.
    """
    home = [cell for cell in cells if cell["shift"] == NO_SHIFT]
    base = surface(home, row=reference_row)
    points_of = {row: exact_points(c for c in home if c["row"] == row) for row in row_names(home)}
    reference = {tuple(point["preference"]): point for point in points_of[reference_row]}
    table: dict[str, dict[str, Any]] = {}
    for row, points in points_of.items():
        _same_prompts(surface(home, row=row), base)
        entry = _exact_row(points, reference=reference, row=row, ref_point=reference_point)
        entry |= _common(points, reference_K=base.points()[0], objectives=objectives)
        entry["matched_kl_hypervolume"], entry["matched_kl_hypervolume_over"] = _matched(
            points, reference_NK=base.points(), ref_point=reference_point, front_at_kl=front_at_kl
        )
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
            bar=bar,
        )
        table[row] = entry | {"gate_bar": bar, "prompts": len(base.prompts), "items": len(base.items)}
    order = sorted(table, key=lambda row: (table[row]["regret_share"] is None, table[row]["regret_share"] or 0.0))
    return {row: table[row] for row in order}


def sampled_table(
    cells: Sequence[Cell],
    *,
    objectives: Sequence[str],
    reference_point: Sequence[float],
    info: Mapping[str, Mapping[str, Any]],
    reference_row: str = "reference",
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """`methods` of summary.json from sampled cells (judge scores): values with intervals over prompts, no regret.

    `raw_hypervolume` is the volume gained over the reference model, in products of score units, with a bootstrap over
    prompts that all rows share. Largest gain first; the KL that paid for it stands beside it.
    """
    home = [cell for cell in cells if cell["shift"] == NO_SHIFT]
    base = surface(home, row=reference_row)
    counts = stats.cluster_counts(base.items, draws=draws, seed=seed)
    start = volumes(base, counts_DG=counts, ref_point=reference_point)
    why = "null: sampled responses, no exact optimum"
    table: dict[str, dict[str, Any]] = {}
    for row in row_names(home):
        own = surface(home, row=row)
        _same_prompts(own, base)
        gain = volumes(own, counts_DG=counts, ref_point=reference_point) - start
        interval = stats.bootstrap_interval(gain[1:], estimate=float(gain[0]), n=len(own.items), over="prompts")
        points = sampled_points(cell for cell in home if cell["row"] == row)
        entry: dict[str, Any] = {"regret": None, "regret_share": None, "regret_share_ci": None}
        entry |= {"regret_share_ci_over": why, "matched_kl_hypervolume": None, "matched_kl_hypervolume_over": why}
        entry |= {"raw_hypervolume": interval.estimate, "raw_hypervolume_ci": interval.pair}
        entry["raw_hypervolume_over"] = f"gain over the reference model in score units; {interval.says}"
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


def controls_table(table: Mapping[str, Mapping[str, Any]], *, controls: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """`controls` of summary.json: name -> its row's gated numbers, `passes` and `why`. UserError for a missing row."""
    kept = ("regret", "regret_share", "matched_kl_hypervolume", "raw_hypervolume", "kl", "samples_per_response")
    result: dict[str, dict[str, Any]] = {}
    for name, row in controls.items():
        if row not in table:
            raise UserError(f"controls: '{name}' names the row '{row}', which has no cells; evaluate it")
        entry = table[row]
        result[name] = {key: entry[key] for key in kept} | {"row": row, "passes": entry["passes"], "why": entry["gate"]}
    return result
