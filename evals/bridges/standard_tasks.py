"""Standard tasks before and after fine-tuning, in distribution and under natural shifts, with paired intervals.

python -m evals.bridges.standard_tasks MODEL_BEFORE MODEL_AFTER --data DIR --limit N --out table.json
python -m evals.bridges.standard_tasks runs/hh/sft runs/hh/methods/dpo/0.5,0.5 --weights 0.5,0.5 --data DIR

A change is "after minus before" on the same items. A gap is "in distribution minus shift" of one model: paired where
both suites hold the same base items, else the two are other items. Every score lies in [0, 1]; intervals are 95 % over
base items and never zero wide (`evals.stats.shares`: no model is sure to keep the accuracy that 100 items did not
move), not corrected for how many there are; the table states how many.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from align.errors import UserError, guarded
from evals.backends.base import Backend
from evals.bridges.lm_eval_bridge import Score, TaskScores, run_suites
from evals.items import Item, Json, Missing
from evals.stats.intervals import Interval
from evals.stats.paired_shares import paired_change
from evals.stats.shares import share
from evals.suites import SUITES, load_suite
from evals.suites.base import chance, majority

# Task -> the suite that is in distribution; its shift partners are those that the suite names.
TASKS = {"sentiment": "sst2", "topic": "ag_news", "NLI": "snli", "QA": "xquad", "translation": "multi30k"}
TOO_MANY_MISSING = 0.2  # share of items without a score above which no number is printed


@dataclass(frozen=True)
class Row:
    """One suite of one task. `role` is "ID", "shift" or "paired shift"; intervals are null with their reason.

    `missing` counts items by reason, for the model before and after; they are in no number of the row.
    """

    task: str
    role: str
    suite: str
    metric: str
    items: int
    clusters: int
    chance: float | None
    majority: float | None
    before: Interval
    after: Interval
    change: Interval
    gap_before: Interval | None
    gap_after: Interval | None
    gap_change: Interval | None
    missing: Mapping[str, Mapping[str, int]]

    def jsonable(self) -> Json:
        return asdict(self)


# --- one model, two models, two suites -------------------------------------------------------------------------------


def _numbers(scores: Mapping[str, Score]) -> dict[str, float]:
    return {item: score for item, score in scores.items() if not isinstance(score, Missing)}


def _reasons(scores: Mapping[str, Score]) -> dict[str, int]:
    return dict(Counter(score.reason for score in scores.values() if isinstance(score, Missing)))


def _refused(scores: Mapping[str, Score]) -> str | None:
    """Why no number stands for these scores, or None: too many of them are Missing."""
    lost = _reasons(scores)
    count = sum(lost.values())
    if scores and count <= TOO_MANY_MISSING * len(scores):
        return None
    words = ", ".join(f"{reason}: {n}" for reason, n in sorted(lost.items()))
    return f"{count} of {len(scores)} items are Missing ({words})" if scores else "no items"


def _nothing(reason: str) -> Interval:
    return Interval(float("nan"), None, None, "base items", 0, reason=f"refused: {reason}")


def level(scores: Mapping[str, Score], *, clusters: Mapping[str, str]) -> Interval:
    """Mean score with Wilson's interval, clustered by base item; refused where too many are Missing."""
    reason = _refused(scores)
    return _nothing(reason) if reason else _mean(_numbers(scores), clusters)


def _mean(values: Mapping[str, float], clusters: Mapping[str, str]) -> Interval:
    """The mean of values in [0, 1]; a cluster counts as often as it has items."""
    members = _members(values, clusters)
    return share([sum(found) for found in members.values()], cells_G=[len(found) for found in members.values()])


def differences(before: Mapping[str, Score], after: Mapping[str, Score]) -> tuple[dict[str, float], dict[str, float]]:
    """(Scores before, scores after) of the items that both models have a score for."""
    first, second = _numbers(before), _numbers(after)
    both = [item for item in first if item in second]
    return {item: first[item] for item in both}, {item: second[item] for item in both}


def change(before: Mapping[str, Score], after: Mapping[str, Score], *, clusters: Mapping[str, str]) -> Interval:
    """After minus before on the same items, clustered by base item."""
    reason = _refused(before) or _refused(after)
    first, second = differences(before, after)
    change = None if reason else paired_change(second, before=first, clusters=clusters)
    return _nothing(reason or "no item has a score of both models") if change is None else change


def gap(
    values: Mapping[str, float], shifted: Mapping[str, float], *, clusters: Mapping[str, str],
    shifted_clusters: Mapping[str, str], paired: bool, span: float = 1.0,
) -> Interval:  # fmt: skip
    """Mean of `values` minus mean of `shifted`: over the base items that both have (paired), else as other items.

    `span` is the largest difference that an item can have.
    """
    if not paired:
        return apart(_mean(values, clusters), _mean(shifted, shifted_clusters))
    means, shifted_means = _by_cluster(values, clusters), _by_cluster(shifted, shifted_clusters)
    found = paired_change(means, before=shifted_means, span=span)
    return _nothing("no base item has a score in both suites") if found is None else found


def moved(
    changes: Mapping[str, float], shifted: Mapping[str, float], *, clusters: Mapping[str, str],
    shifted_clusters: Mapping[str, str], paired: bool,
) -> Interval:  # fmt: skip
    """`gap` of changes (after minus before, in [-1, 1]) of the items of two suites: how a gap changes."""
    if paired:
        where = {"clusters": clusters, "shifted_clusters": shifted_clusters}
        return gap(changes, shifted, **where, paired=True, span=2)  # type: ignore[arg-type]
    sides = [
        paired_change(values, before=dict.fromkeys(values, 0.0), clusters=names)
        for values, names in ((changes, clusters), (shifted, shifted_clusters))
    ]
    if sides[0] is None or sides[1] is None:
        return _nothing("no item has a score of both models")
    return apart(sides[0], sides[1])


def apart(first: Interval, second: Interval) -> Interval:
    """First minus second for independent estimates, from the limits of each (Newcombe 1998, method 10; Zou & Donner).

    Each side's own distance to its limit is added in squares, so that a side at 0 or 1 still brings its uncertainty.
    """
    n = first.n + second.n
    words = f"base items ({first.n} against {second.n} others, unpaired)"
    difference = first.estimate - second.estimate
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Interval(difference, None, None, words, n, reason=first.reason or second.reason)
    low = difference - math.hypot(first.estimate - first.low, second.high - second.estimate)
    high = difference + math.hypot(first.high - first.estimate, second.estimate - second.low)
    se = None if first.se is None or second.se is None else math.hypot(first.se, second.se)
    return Interval(difference, low, high, words, n, se=se)


def _members(values: Mapping[str, float], clusters: Mapping[str, str]) -> dict[str, list[float]]:
    members: dict[str, list[float]] = defaultdict(list)
    for item, value in values.items():
        members[clusters[item]].append(value)
    return members


def _by_cluster(values: Mapping[str, float], clusters: Mapping[str, str]) -> dict[str, float]:
    return {cluster: sum(found) / len(found) for cluster, found in _members(values, clusters).items()}


def are_paired(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether most base items of the smaller suite are in the other one, too."""
    ours, theirs = set(first), set(second)
    return 2 * len(ours & theirs) > min(len(ours), len(theirs))


# --- the table -------------------------------------------------------------------------------------------------------


def standard_table(
    before: Backend, after: Backend, *, data: str | Path, limit: int | None = None, tasks: Sequence[str] = tuple(TASKS)
) -> list[Row]:
    """Rows of every task: its suite in distribution, then each shift partner. UserError for an unknown task."""
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"no standard task {task!r}; choose from {', '.join(TASKS)}")
    names = list(dict.fromkeys(name for task in tasks for name in (TASKS[task], *SUITES[TASKS[task]].partners)))
    suites = [load_suite(name, data=data, limit=limit) for name in names]
    items = {suite.name: made for suite, made in suites}
    found_before, found_after = (run_suites(backend, suites=suites) for backend in (before, after))
    rows = []
    for task in tasks:
        base = TASKS[task]
        for metric in SUITES[base].metrics:
            for name in (base, *SUITES[base].partners):
                sides = [(found_before[n], found_after[n]) for n in (base, name)]
                rows.append(table_row(task, metric=metric, base=sides[0], here=sides[1], items=items[name]))
    return rows


Sides = tuple[TaskScores, TaskScores]  # before, after


def table_row(task: str, *, metric: str, base: Sides, here: Sides, items: Sequence[Item]) -> Row:
    """One row from the scores of the suite in distribution and of the suite of the row (the same for an ID row)."""
    first, second = (side.scores[metric] for side in here)
    clusters = here[0].clusters
    own = here[0].task == base[0].task
    paired = not own and are_paired(list(base[0].clusters.values()), list(clusters.values()))
    gaps = (None, None, None) if own else _gaps(metric, base=base, here=here, paired=paired)
    return Row(
        task=task, role="ID" if own else "paired shift" if paired else "shift", suite=here[0].task, metric=metric,
        items=len(first), clusters=len(set(clusters.values())), chance=chance(items), majority=majority(items),
        before=level(first, clusters=clusters), after=level(second, clusters=clusters),
        change=change(first, second, clusters=clusters), gap_before=gaps[0], gap_after=gaps[1], gap_change=gaps[2],
        missing={"before": _reasons(first), "after": _reasons(second)},
    )  # fmt: skip


def _gaps(metric: str, *, base: Sides, here: Sides, paired: bool) -> tuple[Interval, Interval, Interval]:
    """(Gap before, gap after, gap after minus gap before)."""
    both = [side.scores[metric] for side in (*base, *here)]
    reason = next((why for why in map(_refused, both) if why), None)
    if reason:
        return _nothing(reason), _nothing(reason), _nothing(reason)
    where = {"clusters": base[0].clusters, "shifted_clusters": here[0].clusters, "paired": paired}
    before = gap(_numbers(both[0]), _numbers(both[2]), **where)  # type: ignore[arg-type]
    after = gap(_numbers(both[1]), _numbers(both[3]), **where)  # type: ignore[arg-type]
    changes = []
    for a, b in (both[:2], both[2:]):
        first, second = differences(a, b)
        changes.append({item: second[item] - first[item] for item in first})
    return before, after, moved(changes[0], changes[1], **where)  # type: ignore[arg-type]


def _cell(value: Interval | None) -> str:
    if value is None:
        return ""
    if value.reason and value.reason.startswith("refused"):
        return "refused"
    if value.low is None or value.high is None:
        return f"{value.estimate:.3f} (no interval)"
    return f"{value.estimate:.3f} [{value.low:.3f}, {value.high:.3f}]"


COLUMNS = (
    "task", "role", "suite", "metric", "n", "chance, majority", "before", "after", "after - before", "gap before",
    "gap after", "gap change",
)  # fmt: skip


def as_text(rows: Sequence[Row]) -> str:
    """The table in columns, then the reasons of every refused cell and how many intervals there are."""
    lines: list[tuple[str, ...]] = [COLUMNS]
    for row in rows:
        level_of_chance = "" if row.chance is None else f"{row.chance:.2f}"
        if row.majority is not None and row.metric == "accuracy":
            level_of_chance += f", {row.majority:.2f}"
        cells = (row.before, row.after, row.change, row.gap_before, row.gap_after, row.gap_change)
        place = (row.task, row.role, row.suite, row.metric, f"{row.items}/{row.clusters}", level_of_chance)
        lines.append((*place, *map(_cell, cells)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    notes = [note for row in rows for note in _notes(row)]
    counted = sum(row.change.low is not None for row in rows)
    notes.append(f"{counted} changes with 95 % intervals over base items, each by itself; n is items/base items.")
    return "\n".join([*text, "", *dict.fromkeys(notes)])


def _notes(row: Row) -> list[str]:
    """Why the row's change is refused, else how many items it does without."""
    if _cell(row.change) == "refused":
        return [f"{row.suite}: {row.change.reason}"]
    return [
        f"{row.suite}: {sum(lost.values())} of {row.items} items Missing {side} ({', '.join(sorted(lost))})"
        for side, lost in row.missing.items()
        if lost
    ]


def _jsonable(rows: Sequence[Row], *, before: Backend, after: Backend, limit: int | None) -> str:
    sides = {"before": before, "after": after}
    models = {side: {"name": backend.name, "fingerprint": backend.fingerprint} for side, backend in sides.items()}
    whole = {"models": models, "limit": limit, "rows": [row.jsonable() for row in rows]}
    return json.dumps(_without_nan(whole), indent=1, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    return [_without_nan(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 2 with one line for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m evals.bridges.standard_tasks", description=__doc__.split("\n")[0])
    parser.add_argument("before", help="a run, a model directory or a hub id")
    parser.add_argument("after", help="the same model after fine-tuning: as before, or a family's run")
    parser.add_argument("--weights", help="the preference that a family is asked for")
    parser.add_argument("--data", required=True, help="the folder of the data files")
    parser.add_argument("--limit", type=int, help="items per suite (default: all)")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--template", default="auto", help="how prompts are written: auto, chat, hh or plain")
    parser.add_argument("--out", type=Path, help="where the table goes as JSON")
    options = parser.parse_args(arguments)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    from evals.backends.policies import backend_of

    before = backend_of(options.before, weights=None, template=options.template)
    after = backend_of(options.after, weights=options.weights, template=options.template)
    rows = standard_table(before, after, data=options.data, limit=options.limit, tasks=options.tasks)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(_jsonable(rows, before=before, after=after, limit=options.limit), encoding="utf-8")
    print(as_text(rows))


if __name__ == "__main__":
    raise SystemExit(main())
