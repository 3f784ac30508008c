"""A reward model's scored comparisons to one table: accuracy, ties, calibration, subsets and styles, by shift; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from evals.items import NO_SHIFT, Missing
from evals.measure.engine import Asked
from evals.measure.store import Measured
from evals.stats.calibration import Calibration
from evals.stats.paired_tests import PairedTest
from evals.stats.shares import paired_change
from evals.tables.outcomes import check_missing
from evals.tables.reward_tables import pair_table, reward_shifts, rm_bench, wins

Values = Mapping[str, Mapping[str, Any]]  # item -> what was measured


def reward_table(
    asked: Sequence[Asked], cells: Sequence[Measured], *, max_missing: float = 0.05, bins: int = 10
) -> dict[str, Any]:
    """`shifts`: shift -> accuracy, log loss, Brier, ECE, ties, subsets, styles and the changes against plain prompts.

    Every pair of a chosen and a rejected response is a comparison (three styles make nine), clustered by base item.
    UserError where a shift lacks more than `max_missing` of its scores. Holm over all shifts and three numbers.
    """
    values: dict[str, dict[str, Mapping[str, Any]]] = {}
    gone: dict[str, list[Missing]] = {}
    for one, cell in zip(asked, cells, strict=True):
        if isinstance(cell.value, Missing):
            gone.setdefault(one.shift.name, []).append(cell.value)
        elif one.sample == 0:
            values.setdefault(one.shift.name, {})[one.item.id] = cell.value
    for shift in dict.fromkeys(one.shift.name for one in asked):
        found = [*values.get(shift, {}).values(), *gone.get(shift, ())]
        check_missing(found, what=f"shift {shift}", max_missing=max_missing, of="scores")
    items = {one.item.id: one.item for one in asked}
    groups, clusters = ({i: str(getattr(item, name)) for i, item in items.items()} for name in ("group", "cluster"))
    table = {shift: _entry(found, groups=groups, clusters=clusters, bins=bins) for shift, found in values.items()}
    for shift, lost in gone.items():
        table.setdefault(shift, {})["missing"] = dict(sorted(Counter(m.reason for m in lost).items()))
    for shift, change in _changes(values, clusters=clusters, bins=bins).items():
        table[shift]["change"] = change
    return {"shifts": table, "comparisons": 3 * max(0, len(values) - 1) if NO_SHIFT in values else 0}


def _margins(found: Values) -> dict[str, float]:
    """Comparison -> margin; an item's styles are told apart by their places."""
    return {
        f"{item} {i} {j}": a - b
        for item, value in found.items()
        for i, a in enumerate(value["chosen"])
        for j, b in enumerate(value["rejected"])
    }


def _of_pairs(margins: Mapping[str, float], of_items: Mapping[str, str]) -> dict[str, str]:
    return {key: of_items[key.rsplit(" ", 2)[0]] for key in margins}


def _entry(
    found: Values, *, groups: Mapping[str, str], clusters: Mapping[str, str], bins: int
) -> dict[str, Any]:
    margins = _margins(found)
    subsets, labels = _of_pairs(margins, groups), _of_pairs(margins, clusters)
    table = pair_table(margins, subsets=subsets, clusters=labels, bins=bins)
    entry: dict[str, Any] = {
        "accuracy": table.accuracy.stated, "macro": table.macro, "log_loss": table.log_loss.stated,
        "brier": table.brier.stated, "calibration": _calibration(table.calibration), "items": len(found),
        "pairs": len(margins), "tied": sum(m == 0 for m in margins.values()) / len(margins),
        "cut": sum(bool(value["cut"]) for value in found.values()),
        "subsets": {name: interval.stated for name, interval in table.subsets.items()},
    }  # fmt: skip
    widths = {(len(value["chosen"]), len(value["rejected"])) for value in found.values()}
    if len(widths) == 1 and min(min(widths)) > 1 and len(set(min(widths))) == 1:
        entry["styles"] = _styles(found, groups)
    return entry


def _calibration(found: Calibration) -> dict[str, Any]:
    return {"ece": found.ece, "mce": found.mce, "bins": [vars(one) for one in found.bins]}


def _styles(found: Values, groups: Mapping[str, str]) -> dict[str, Any]:
    """RM-Bench's overall hard, normal, easy and average, where a tie is wrong, and the matrix of each domain."""
    bench = rm_bench(
        {item: value["chosen"] for item, value in found.items()},
        rejected={item: value["rejected"] for item, value in found.items()}, domains=groups,
    )  # fmt: skip
    matrices = {name: matrix.accuracy_SS.tolist() for name, matrix in bench.domains.items()}
    return {"overall": bench.overall, "domains": matrices}


def _changes(
    values: Mapping[str, Values], *, clusters: Mapping[str, str], bins: int
) -> dict[str, dict[str, Any]]:
    """shift -> paired changes against the plain prompts; a shift that shares no item with them has none."""
    if NO_SHIFT not in values:
        return {}
    plain = _margins(values[NO_SHIFT])
    shifted = {shift: _margins(found) for shift, found in values.items() if shift != NO_SHIFT}
    shifted = {shift: found for shift, found in shifted.items() if set(found) & set(plain)}
    if not shifted:
        return {}
    labels = _of_pairs(plain, clusters)
    return {
        shift: {
            "accuracy": _accuracy(plain, shifted[shift], labels, change.accuracy),
            "log_loss": _tested(change.log_loss), "brier": _tested(change.brier), "ece": list(change.ece),
            "margin_ratio": change.margin_ratio,
        }
        for shift, change in reward_shifts(plain, shifted=shifted, clusters=labels, bins=bins).items()
    }  # fmt: skip


def _accuracy(
    plain: Mapping[str, float], shifted: Mapping[str, float], labels: Mapping[str, str], test: PairedTest
) -> dict[str, Any]:
    """The paired change of accuracy, in an interval that has a width even where no comparison changed its order."""
    right = [dict(zip(side, wins(list(side.values())).tolist(), strict=True)) for side in (plain, shifted)]
    interval = paired_change(right[1], before=right[0], clusters=labels)
    if interval is None:
        raise ValueError("the two sides share no comparison")
    return {**_tested(test), **interval.stated}


def _tested(test: PairedTest) -> dict[str, Any]:
    return test.interval.stated | {"p": test.p, "p_holm": test.p_adjusted, "test": test.method}
