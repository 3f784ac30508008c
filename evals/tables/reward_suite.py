"""A reward model's scored comparisons to one table: accuracy, ties, calibration, subsets and styles, by shift; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from evals.items import NO_SHIFT, Fields, Json, Missing
from evals.measure.cells import Cell
from evals.stats.calibration import Calibration
from evals.stats.paired_tests import PairedTest
from evals.tables.outcomes import check_missing
from evals.tables.reward_tables import pair_table, reward_shifts, rm_bench

Values = Mapping[str, Fields]  # item -> what was measured


def reward_table(cells: Sequence[Cell], *, max_missing: float = 0.05, bins: int = 10) -> Json:
    """`shifts`: shift -> accuracy, log loss, Brier, ECE, ties, subsets, styles and the changes against plain prompts.

    Every pair of a chosen and a rejected response is a comparison (three styles make nine), clustered by base item.
    UserError where a shift lacks more than `max_missing` of its scores. Holm over all shifts and three numbers.
    """
    values: dict[str, dict[str, Fields]] = {}
    gone: dict[str, list[Missing]] = {}
    for cell in cells:
        value = cell.value("pairs")
        if isinstance(value, Missing):
            gone.setdefault(cell.shift.name, []).append(value)
        elif cell.sample == 0:
            values.setdefault(cell.shift.name, {})[cell.item.id] = value
    for shift in dict.fromkeys(cell.shift.name for cell in cells):
        scores = [*values.get(shift, {}).values(), *gone.get(shift, ())]
        check_missing(scores, what=f"shift {shift}", max_missing=max_missing, of="scores")
    items = {cell.item.id: cell.item for cell in cells}
    groups, clusters = ({i: str(getattr(item, name)) for i, item in items.items()} for name in ("group", "cluster"))
    table = {shift: _entry(own, groups=groups, clusters=clusters, bins=bins) for shift, own in values.items()}
    for shift, lost in gone.items():
        table.setdefault(shift, {})["missing"] = dict(sorted(Counter(m.reason for m in lost).items()))
    for shift, change in _changes(values, clusters=clusters, bins=bins).items():
        table[shift]["change"] = change
    return {"shifts": table, "comparisons": 3 * max(0, len(values) - 1) if NO_SHIFT in values else 0}


def _margins(values: Values) -> dict[str, float]:
    """Comparison -> margin; an item's styles differ in their numbers."""
    return {
        f"{item} {i} {j}": a - b
        for item, value in values.items()
        for i, a in enumerate(value["chosen"])
        for j, b in enumerate(value["rejected"])
    }


def _of_pairs(margins: Mapping[str, float], of_items: Mapping[str, str]) -> dict[str, str]:
    return {key: of_items[key.rsplit(" ", 2)[0]] for key in margins}


def _entry(values: Values, *, groups: Mapping[str, str], clusters: Mapping[str, str], bins: int) -> Json:
    margins = _margins(values)
    subsets, labels = _of_pairs(margins, groups), _of_pairs(margins, clusters)
    table = pair_table(margins, subsets=subsets, clusters=labels, bins=bins)
    entry: Json = {
        "accuracy": table.accuracy.stated, "macro": table.macro, "log_loss": table.log_loss.stated,
        "brier": table.brier.stated, "calibration": _calibration(table.calibration), "items": len(values),
        "pairs": len(margins), "tied": sum(m == 0 for m in margins.values()) / len(margins),
        "cut": sum(bool(value["cut"]) for value in values.values()),
        "subsets": {name: interval.stated for name, interval in table.subsets.items()},
    }  # fmt: skip
    widths = {(len(value["chosen"]), len(value["rejected"])) for value in values.values()}
    if len(widths) == 1 and min(min(widths)) > 1 and len(set(min(widths))) == 1:
        entry["styles"] = _styles(values, groups)
    return entry


def _calibration(measured: Calibration) -> Json:
    return {"ece": measured.ece, "mce": measured.mce, "bins": [vars(one) for one in measured.bins]}


def _styles(values: Values, groups: Mapping[str, str]) -> Json:
    """RM-Bench's overall hard, normal, easy and average, where a tie is wrong, and the matrix of each domain."""
    bench = rm_bench(
        {item: value["chosen"] for item, value in values.items()},
        rejected={item: value["rejected"] for item, value in values.items()}, domains=groups,
    )  # fmt: skip
    matrices = {name: matrix.accuracy_SS.tolist() for name, matrix in bench.domains.items()}
    return {"overall": bench.overall, "domains": matrices}


def _changes(values: Mapping[str, Values], *, clusters: Mapping[str, str], bins: int) -> dict[str, Json]:
    """shift -> paired changes against the plain prompts; a shift that shares no item with them has none."""
    if NO_SHIFT not in values:
        return {}
    plain = _margins(values[NO_SHIFT])
    shifted = {shift: _margins(own) for shift, own in values.items() if shift != NO_SHIFT}
    shifted = {shift: margins for shift, margins in shifted.items() if set(margins) & set(plain)}
    if not shifted:
        return {}
    labels = _of_pairs(plain, clusters)
    return {
        shift: {
            "accuracy": _tested(change.accuracy),
            "log_loss": _tested(change.log_loss), "brier": _tested(change.brier), "ece": list(change.ece),
            "margin_ratio": change.margin_ratio,
        }
        for shift, change in reward_shifts(plain, shifted=shifted, clusters=labels, bins=bins).items()
    }  # fmt: skip


def _tested(test: PairedTest) -> Json:
    return test.interval.stated | {"p": test.p, "p_holm": test.p_adjusted, "test": test.method}
