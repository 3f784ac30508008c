"""Which families of shifts a safety training reaches: failures by families trained on (rows) and measured (columns).

    python -m recipes.commands.held_out_families none=runs/suites/sft encoding=runs/suites/a
        encoding,persona=runs/suites/b

Each folder is an evaluation (`align evaluate MODEL --suite ... --shift ...`) with the families that its model was
trained on before the equals sign. All were asked the same items under the same shifts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.errors import UserError
from evals.command import told
from evals.items import NO_SHIFT
from evals.stats.robustness import leave_families_out
from evals.stats.shares import paired_change
from evals.tables.outcomes import Outcome, check_missing, mean_share, shares, stated
from evals.tables.suite_outcomes import read_outcomes

Trained = frozenset[str]


def transfer_matrix(
    evaluations: Mapping[Trained, Sequence[Outcome]], *, families: Mapping[str, str], harmful: bool = True,
    max_missing: float = 0.05,
) -> dict[str, Any]:  # fmt: skip
    """`rows`: trained families, and per measured family the failure rate with its interval and whether it was held out.

    `families`: shift -> family, for the shifts that count (no controls); the plain prompts are a column of their own.
    `transfer`: family -> mean rate of the rows that trained on it (seen) and that did not (held out), and held out
    minus seen, paired by base item: above 0 where training on the family itself is what helps. `curve`: number of
    families trained on -> mean held-out rate. An item's shifts are averaged first. UserError where evaluations were
    asked different items, a trained family was not measured, or too many verdicts are missing.
    """
    sides = {key: [o for o in found if o.harmful is harmful] for key, found in evaluations.items()}
    names = list(dict.fromkeys(families.values()))
    _check(sides, names)
    clusters = {o.item: o.cluster for found in sides.values() for o in found}
    columns = [*([NO_SHIFT] if any(o.shift == NO_SHIFT for o in next(iter(sides.values()))) else []), *names]
    places = {**families, NO_SHIFT: NO_SHIFT}
    by_item: dict[Trained, dict[str, dict[str, float]]] = {}
    rows = []
    for trained, found in sides.items():
        by_item[trained], cells = {}, {}
        for column in columns:
            mine = [o for o in found if places.get(o.shift) == column]
            what = f"trained on {_label(trained)}, {column}"
            check_missing([o.verdict for o in mine], what=what, max_missing=max_missing)
            by_item[trained][column] = shares(mine, verdict="BAD")
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
) -> dict[str, Any] | None:
    """Held out minus seen over the items that every row has; None where every row, or none, trained on the family."""
    sides = []
    for seen in (False, True):
        rows = [tables[family] for trained, tables in by_item.items() if (family in trained) is seen]
        items = set.intersection(*(set(row) for row in rows)) if rows else set()
        sides.append({item: sum(row[item] for row in rows) / len(rows) for item in sorted(items)})
    found = paired_change(sides[0], before=sides[1], clusters=clusters) if all(sides) else None
    return None if found is None else stated(found)


def _label(trained: Trained) -> str:
    return ",".join(sorted(trained)) or "none"


def _check(sides: Mapping[Trained, Sequence[Outcome]], families: Sequence[str]) -> None:
    if len(sides) < 2 or not families:
        raise UserError("a transfer matrix needs two evaluations or more, under at least one family of shifts")
    first, *others = ({(o.shift, o.item, o.sample) for o in found} for found in sides.values())
    for trained, asked in zip(list(sides)[1:], others, strict=True):
        if asked != first:
            shift, item, _ = min(asked ^ first, key=str)
            who = f"the evaluation trained on {_label(trained)}"
            raise UserError(f"{who} differs in item {item} under shift {shift}; evaluate both alike")
    for trained in sides:
        unknown = sorted(trained - set(families))
        if unknown:
            raise UserError(f"family {unknown[0]!r} was trained on but not measured (measured: {', '.join(families)})")


def lines_of(matrix: Mapping[str, Any]) -> list[str]:
    """What the terminal shows: percent, held-out cells marked."""
    width = max(10, *(len(column) + 2 for column in matrix["columns"]))
    labels = [",".join(row["trained"]) or "none" for row in matrix["rows"]]
    left = max(len("trained on"), *map(len, labels))
    lines = [f"{'trained on':{left}}" + "".join(f"{column:>{width}}" for column in matrix["columns"])]
    for label, row in zip(labels, matrix["rows"], strict=True):
        cells = [row["cells"][column] for column in matrix["columns"]]
        shown = [f"{100 * cell['value']:.1f}{'*' if cell['held_out'] else ' '}" for cell in cells]
        lines.append(f"{label:{left}}" + "".join(f"{text:>{width}}" for text in shown))
    lines.append("% of items that fail; * the family was held out from training")
    for family, entry in matrix["transfer"].items():
        change = entry["change"]
        if change is not None:
            low, high = (100 * end for end in change["ci"] or (float("nan"), float("nan")))
            interval = f"[{low:+.1f}, {high:+.1f}]"
            lines.append(f"{family}: held out minus trained on {100 * change['value']:+.1f} points {interval}")
    return lines


def read_evaluation(folder: str, *, suite: str | None) -> tuple[list[Outcome], dict[str, str]]:
    """(outcomes of one suite, shift -> family without controls) of an evaluation's folder."""
    file = Path(folder) / "summary.json"
    if not file.is_file():
        raise UserError(f"{file}: no such file; run align evaluate MODEL --suite ... --out {folder} first")
    suites = read_outcomes(folder)
    if suite is None and len(suites) > 1:
        raise UserError(f"{folder} holds the suites {', '.join(suites)}; choose one with --suite")
    chosen = suite or next(iter(suites))
    if chosen not in suites:
        raise UserError(f"{folder} holds no suite {chosen!r} (it has: {', '.join(suites)})")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))["shifts"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a suite's summary ({error!r}); run align evaluate again") from error
    return suites[chosen], {s: f["family"] for s, f in facts.items() if f["mode"] not in ("none", "control")}


def run(argv: Sequence[str] | None = None) -> int:
    """The command; UserError for what the user can mend."""
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m recipes.commands.held_out_families", description=about)
    parser.add_argument("evaluations", nargs="+", help="FAMILY[,FAMILY...]=FOLDER, or none=FOLDER")
    parser.add_argument("--suite", help="which suite, where an evaluation has several")
    parser.add_argument("--benign", action="store_true", help="over-refusal of benign items instead of failures")
    parser.add_argument("--max-missing", type=float, default=0.05, help="largest share of missing verdicts")
    parser.add_argument("--out", type=Path, help="file for the numbers as JSON")
    options = parser.parse_args(argv)
    found: dict[Trained, list[Outcome]] = {}
    families: dict[str, str] = {}
    for entry in options.evaluations:
        label, equals, folder = entry.partition("=")
        if not equals or not label or not folder:
            raise UserError(f"{entry!r} is not FAMILY=FOLDER; write none=FOLDER for a model trained on no shift")
        trained = frozenset() if label == "none" else frozenset(label.split(","))
        if trained in found:
            raise UserError(f"two evaluations are labelled {label}; give one")
        found[trained], mine = read_evaluation(folder, suite=options.suite)
        families |= mine
    matrix = transfer_matrix(found, families=families, harmful=not options.benign, max_missing=options.max_missing)
    print("\n".join(lines_of(matrix)))
    if options.out:
        options.out.write_text(json.dumps(matrix, indent=1) + "\n", encoding="utf-8")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; a user's mistake is one line on stderr and exit code 2."""
    return told(run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
