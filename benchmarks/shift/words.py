"""The shift page's tables and sentences on exact fronts: numbers with an interval, gains retained, ranks."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.pages import Entry, at, excludes_zero, named, ranged, table
from evals.report.words import interval, num, signed


def front_answers(front: Entry) -> list[str]:
    """A line for each shift: both parts of the drop, the gain retained, and whether the ranking is kept."""
    lines = []
    for shift, found in front["shifts"].items():
        rows, methods, tau = found["rows"], front["methods"], found["ranks"]["kendall_tau"]
        lost = [rows[row]["mismatched"]["value"] for row in methods]
        clear = sum(excludes_zero(rows[row]["mismatched"]) for row in methods)
        kept = [v for row in methods if (v := rows[row]["gain_retained"]["value"]) is not None]
        gain = f"; gain retained {num(min(kept), 2)} to {num(max(kept), 2)}" if kept else ""
        order = "" if tau is None else f"; Kendall's tau of the ranking with the plain one {num(tau, 2)}"
        lines.append(
            f"- **{shift}**: the optimum loses {num(rows[methods[0]]['competing']['value'], 3)} (competing), methods "
            f"lose {num(min(lost), 3)} to {num(max(lost), 3)} more (mismatched; above 0 for {clear} of {len(methods)})"
            f"{gain}{order}."
        )
    return lines


def front_sentences(front: Entry) -> list[str]:
    """Per shift: which part of the drop is which, who retains most and least, and who keeps the rank."""
    lines = []
    for shift, found in front["shifts"].items():
        rows, methods = found["rows"], front["methods"]
        competing = rows[methods[0]]["competing"]
        parts = {row: rows[row]["mismatched"]["value"] for row in methods}
        least, most = min(parts, key=parts.get), max(parts, key=parts.get)  # type: ignore[arg-type]
        clear = [row for row in methods if excludes_zero(rows[row]["mismatched"])]
        text = (
            f"- **{shift}**: even the optimum changes by {signed(-competing['value'], 4)} in J (competing part "
            f"{ranged(competing, digits=4)}); the mismatched part is between {num(parts[least], 4)} ({least}) and "
            f"{num(parts[most], 4)} ({most}), and differs from 0 by both intervals (over seeds, over topics) for "
            f"{len(clear)} of {len(methods)} methods{': ' + ', '.join(clear) if 0 < len(clear) < len(methods) else ''}."
        )
        kept = {r: rows[r]["gain_retained"]["value"] for r in methods if rows[r]["gain_retained"]["value"] is not None}
        if kept:
            low, high = min(kept, key=kept.get), max(kept, key=kept.get)  # type: ignore[arg-type]
            text += (
                f" Gain retained: from {ranged(rows[low]['gain_retained'], digits=2)} ({low}) to "
                f"{ranged(rows[high]['gain_retained'], digits=2)} ({high})."
            )
        lines.append(text + " " + rank_sentence(found["ranks"], methods))
    return lines


def rank_sentence(ranks: Entry, methods: Sequence[str]) -> str:
    """Which methods keep their place, and what the paired tests say of the pairs."""
    before, after = ranks["ranks_home"], ranks["ranks_away"]
    same = [row for row in methods if before[row] == after[row]]
    moved = [f"{row} {before[row]} to {after[row]}" for row in methods if before[row] != after[row]]
    counts = {word: sum(p["verdict"] == word for p in ranks["pairs"]) for word in ("kept", "inverted", "lost", "new")}
    tau = "undefined" if ranks["kendall_tau"] is None else num(ranks["kendall_tau"], 2)
    text = f"Rank kept by {', '.join(same) or 'none'}"
    if moved:
        backed = "" if counts["inverted"] else ", and no test backs a move"
        text += f"; moved: {', '.join(moved)}{backed}"
    return (
        f"{text} (Kendall's tau {tau}). Of {len(ranks['pairs'])} pairs of methods, {counts['kept']} keep a tested "
        f"lead, {counts['lost']} differ on plain prompts only, {counts['inverted']} invert and "
        f"{counts['new']} differ under the shift only."
    )


def gain_table(front: Entry) -> list[str]:
    rows = [*front["methods"], *front["controls"]]
    shifts = front["shifts"].values()
    shown = [
        [named(row, front["controls"]), *(ranged(s["rows"][row]["gain_retained"], digits=2) for s in shifts)]
        for row in rows
    ]
    reasons = {
        f"{row}, {shift}: {s['rows'][row]['gain_retained']['over_seeds']}"
        for shift, s in front["shifts"].items()
        for row in rows
        if s["rows"][row]["gain_retained"]["value"] is None and row != "reference"
    }
    why = ["The reference's gain retained is null: it is the baseline."] + [f"{reason}." for reason in sorted(reasons)]
    return [*table(["row", *front["shifts"]], shown), " ".join(why), ""]


def split_table(front: Entry) -> list[str]:
    tables = [found["rows"] for found in front["shifts"].values()]
    some = front["methods"][0]
    first = ["competing part (any row)", *(ranged(rows[some]["competing"], digits=4) for rows in tables)]
    shown = []
    for row in [*front["methods"], *front["controls"]]:
        name = f"{named(row, front['controls'])}: mismatched"
        shown.append([name, *(ranged(rows[row]["mismatched"], digits=4) for rows in tables)])
    return table(["part of the drop in J", *front["shifts"]], [first, *shown])


def regret_table(front: Entry) -> list[str]:
    """Mean regret on each side with the method's rank there (controls are not ranked)."""
    shown = []
    for row in [*front["methods"], *front["controls"]]:
        cells = [named(row, front["controls"])]
        for side in ("none", *front["shifts"]):
            ranks = front["shifts"][side if side != "none" else next(iter(front["shifts"]))]["ranks"]
            place = ranks["ranks_home" if side == "none" else "ranks_away"].get(row)
            cells.append(ranged(front["regret"][row][side], digits=4) + (f"; rank {place}" if place else ""))
        shown.append(cells)
    return table(["row", "none", *front["shifts"]], shown)


def changed_pairs(shifts: Entry) -> list[str]:
    """Every pair whose verdict is not `kept` or `level`, with both sides' differences, intervals and corrected p."""
    shown = []
    for shift, found in shifts.items():
        for pair in found["ranks"]["pairs"]:
            if pair["verdict"] in ("kept", "level"):
                continue
            sides = []
            for side in ("home", "away"):
                test = pair[side]
                one = interval(test.get("ci_seeds") or test["ci"])
                p = "p < 0.0001" if test["p_holm"] < 1e-4 else f"p {num(test['p_holm'], 4)}"
                sides.append(f"{signed(test['difference'])} {one}, {p}")
            shown.append([shift, " − ".join(pair["pair"]), pair["verdict"], *sides])
    if not shown:
        return ["No pair's verdict changes under any shift.", ""]
    return table(["shift", "pair", "verdict", "plain: difference", "under the shift: difference"], shown)


def displacement_table(
    found: Entry, *, names: Sequence[str], rows: Sequence[str], controls: Sequence[str]
) -> list[str]:
    """How far each preference's point moves, objective by objective."""
    preferences = [entry["preference"] for entry in found["rows"][rows[0]]["displacement"]]
    head = ["row", *map(at, preferences)]
    shown = []
    for row in rows:
        moved = found["rows"][row]["displacement"]
        shown.append([named(row, controls), *("; ".join(_moved(e[name]) for name in names) for e in moved)])
    return table(head, shown)


def _moved(entry: Entry) -> str:
    return f"{signed(entry['value'], 2)} {interval(entry['ci_seeds'] or entry['ci_items'], 2)}".rstrip()
