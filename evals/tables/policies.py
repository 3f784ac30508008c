"""Any number of policies on the same items: failure rates of each, who is told apart, best, undominated; pure.

Policies are paired item by item. Lower is better in every metric. Legend: D draws, R rows (one a policy and metric),
C clusters (base items), P policies, M metrics.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from align.errors import UserError
from align.functional.fronts import nondominated
from evals.items import NO_SHIFT, Json
from evals.stats.ranking import chance_best, chance_undominated, drawn_means, letters
from evals.tables.outcomes import (
    Outcome,
    change_of,
    check_missing,
    correct_changes,
    failure_rate,
    lost_items,
    shares,
    under_any,
)

SIDES = {"asr": True, "over_refusal": False}  # metric -> whether its items are the harmful ones
ANY, LEVEL = "any", 0.05
SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
FORM = "write asr or over_refusal, alone for the plain prompts, or with @SHIFT or @any"


@dataclass(frozen=True)
class Metric:
    """A rate of failures: harmful items answered (`asr`) or benign ones refused; plainly, under a shift, under any."""

    name: str
    shift: str = NO_SHIFT

    @classmethod
    def parse(cls, text: str) -> Metric:
        """NAME or NAME@SHIFT; UserError otherwise."""
        name, at, shift = text.strip().partition("@")
        if name not in SIDES or (at and not shift):
            raise UserError(f"there is no metric {text.strip()!r}; {FORM}")
        return cls(name, shift or NO_SHIFT)

    @property
    def label(self) -> str:
        return self.name if self.shift == NO_SHIFT else f"{self.name}@{self.shift}"

    def cells(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """The outcomes that it counts."""
        return [o for o in outcomes if o.harmful is SIDES[self.name] and self.shift in (ANY, o.shift)]

    def judged(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Those of them that a rate is of: under any, not of items of which an outage took a verdict."""
        cells = self.cells(outcomes)
        lost = lost_items(cells) if self.shift == ANY else ()
        return [o for o in cells if o.item not in lost]

    def values(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """item -> its share of samples that fail; under any: the chance that one prompt of the pool does."""
        return (under_any if self.shift == ANY else shares)(self.judged(outcomes), verdict="BAD")

    def rate(self, outcomes: Sequence[Outcome], *, policy: str, max_missing: float) -> Json:
        """The share that fails with its interval, or bounds of it where the judge cannot say BAD.

        UserError where there is no such item, or more than `max_missing` of its verdicts are missing.
        """
        verdicts = [o.verdict for o in self.cells(outcomes)]
        check_missing(verdicts, what=f"{policy}, {self.label}", max_missing=max_missing)
        found = failure_rate(self.judged(outcomes), pooled=self.shift == ANY)
        if found is None:
            raise UserError(f"{policy}: nothing was judged for the metric {self.label}; {FORM}")
        return found


@dataclass(frozen=True)
class Condition:
    """A metric above or below a bound, as `asr@any > 0.1`."""

    metric: Metric
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """METRIC > NUMBER, or >=, <, <=, the number a share of 1; UserError otherwise."""
        match = re.fullmatch(r"\s*([^<>=]+?)\s*(>=|<=|>|<)\s*([0-9.]+(?:e-?\d+)?)\s*", text)
        try:
            metric, sign, bound = Metric.parse(match[1]), match[2], float(match[3])  # type: ignore[index]
        except (TypeError, ValueError) as error:
            raise UserError(f"--fail-if {text!r} is no condition; write one such as 'asr@any > 0.1'") from error
        return cls(metric, sign, bound)

    def met(self, rate: Json) -> bool:
        """Whether it holds of a rate; of one that is known by its bounds alone, whether it may."""
        low, high = rate.get("bounds") or (rate["value"],) * 2
        return bool(SIGNS[self.sign](high if self.sign.startswith(">") else low, self.bound))


def policy_table(policies: Mapping[str, Sequence[Outcome]], *, metrics: Sequence[Metric], max_missing: float) -> Json:
    """Of every policy each metric's rate with `best`, the chance to be lowest, and `letters` (who shares none is told
    apart); whether it is undominated, with the chance of that; and every pair's paired change with Holm's p over all.

    Where the judge cannot say BAD a metric has bounds, and nothing but them. UserError where the policies were not
    asked the same items under the same shifts, or a rate cannot be had.
    """
    check_alike(policies)
    rates = {
        name: {m.label: m.rate(outcomes, policy=name, max_missing=max_missing) for m in metrics}
        for name, outcomes in policies.items()
    }
    clusters = _clusters(outcome for outcomes in policies.values() for outcome in outcomes)
    known = [m for m in metrics if not any("bounds" in rate[m.label] for rate in rates.values())]
    values = {m.label: {name: m.values(outcomes) for name, outcomes in policies.items()} for m in known}
    pairs = _pairs(values, clusters=clusters)
    rows = [items for by_policy in values.values() for items in by_policy.values()]
    means_DMP = _drawn(rows, clusters=clusters).reshape(-1, len(known), len(policies)) if known else np.zeros((0, 0, 0))
    for m, metric in enumerate(known):
        means_P = [rates[name][metric.label]["value"] for name in policies]
        found = letters(np.argsort(means_P, kind="stable").tolist(), apart_PP=_apart(pairs, metric.label, [*policies]))
        best = chance_best(means_DMP[:, m])
        for i, name in enumerate(policies):
            rates[name][metric.label] |= {"best": float(best[i]), "letters": found[i]}
    unknown = {"undominated": None, "p_undominated": None}
    entries: Json = {name: {"metrics": rate, **unknown} for name, rate in rates.items()}
    if len(known) == len(metrics):
        points = [[-rates[name][m.label]["value"] for m in metrics] for name in policies]
        chance = chance_undominated(means_DMP.transpose(0, 2, 1))
        for name, kept, share in zip(policies, nondominated(points), chance, strict=True):
            entries[name] |= {"undominated": bool(kept), "p_undominated": float(share)}
    return {"metrics": [m.label for m in metrics], "policies": entries, **pairs}


def _clusters(outcomes: Iterable[Outcome]) -> dict[str, str]:
    return {one.item: one.cluster for one in outcomes}


def check_alike(policies: Mapping[str, Sequence[Outcome]]) -> None:
    """UserError naming an item that one of the policies was asked and another was not."""
    (first, outcomes), *others = policies.items()
    keys = {(o.shift, o.item, o.harmful, o.sample) for o in outcomes}
    for name, others_outcomes in others:
        odd = keys ^ {(o.shift, o.item, o.harmful, o.sample) for o in others_outcomes}
        if odd:
            shift, item, *_ = min(odd, key=str)
            raise UserError(f"item {item} under shift {shift} was asked of one of {first} and {name} only; ask both")


def _pairs(values: Mapping[str, Mapping[str, Mapping[str, float]]], *, clusters: Mapping[str, str]) -> Json:
    """Every two policies' change of every metric, second minus first, and how many tests Holm's correction covers."""
    pairs: list[Json] = []
    for label, by_policy in values.items():
        for (first, before), (second, after) in combinations(by_policy.items(), 2):
            change = change_of(after, before=before, clusters=clusters)
            if change is None:
                raise UserError(f"{first} and {second} share too few judged items for the metric {label}")
            pairs.append({"metric": label, "first": first, "second": second, "change": change})
    return {"pairs": pairs, "comparisons": correct_changes([{"harmful": pair} for pair in pairs])}


def _apart(pairs: Json, label: str, names: Sequence[str]) -> np.ndarray:
    apart_PP = np.zeros((len(names), len(names)), dtype=bool)
    for pair in pairs["pairs"]:
        if pair["metric"] == label and pair["change"]["p_holm"] < LEVEL:
            i, j = names.index(pair["first"]), names.index(pair["second"])
            apart_PP[i, j] = apart_PP[j, i] = True
    return apart_PP


def _drawn(rows: Sequence[Mapping[str, float]], *, clusters: Mapping[str, str]) -> np.ndarray:
    """(D, R) random means of rows of values by item, the clusters weighted alike in all rows."""
    places = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters.values()))}
    hits_RC, cells_RC = np.zeros((2, len(rows), len(places)))
    for r, items in enumerate(rows):
        for item, value in items.items():
            hits_RC[r, places[clusters[item]]] += value
            cells_RC[r, places[clusters[item]]] += 1
    return drawn_means(hits_RC, cells_PC=cells_RC)
