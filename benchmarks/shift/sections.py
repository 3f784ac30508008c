"""The shift page's sections on mitigation (leave-one-family-out) and on real data: tables and sentences."""

from __future__ import annotations

from benchmarks.pages import Entry, at, excludes_zero, named, ranged, table
from benchmarks.shift.words import changed_pairs, displacement_table, rank_sentence
from evals.report.words import interval, num, signed

EXPLAINS = "graft_embeddings"  # an arm that explains the others and is no mitigation


def matrix_table(found: Entry) -> list[str]:
    """Arms x families: the mismatched part on each family, in bold where the arm never saw it."""
    splits = list(found["matrix"]["reference"])
    shown = []
    for row, entries in found["matrix"].items():
        cells = [ranged(entries[s]["mismatched"]) for s in splits]
        bold = [entries[s]["held_out"] and row != "reference" for s in splits]
        marked = [f"**{cell}**" if out else cell for cell, out in zip(cells, bold, strict=True)]
        trained = "" if row == "reference" else ", ".join(map(str, found["arms"][row]))
        shown.append([row, trained, ranged(found["plain"][row]), *marked])
    return table(["arm", "trained on spellings", "regret, plain", *splits], shown)


def reduction_table(found: Entry) -> list[str]:
    """Held-out families: level and reduction of the mismatched part and of the regret, against the arm `plain`."""
    shown = []
    for name, group in found["groups"].items():
        held = group["held_out"]
        if held is None or name == EXPLAINS:
            continue
        cells = [ranged(held["mismatched"]), ranged(held["regret"])]
        for of in ("mismatched_reduction", "regret_reduction"):
            cells.append("baseline" if name == "plain" else ranged(held[of], sign=True))
        shown.append([name, ", ".join(group["arms"]), *cells])
    head = ["training", "arms", "mismatched, held out", "regret, held out"]
    return table([*head, "mismatched: reduction", "regret: reduction"], shown)


def seen_table(found: Entry) -> list[str]:
    """The same on the families that were trained on."""
    shown = [
        [name, ranged(group["seen"]["mismatched"]), ranged(group["seen"]["mismatched_reduction"], sign=True)]
        for name, group in found["groups"].items()
        if group["seen"] is not None
    ]
    return table(["training", "mismatched, trained families", "reduction"], shown)


def cost_table(found: Entry) -> list[str]:
    """What each kind of training costs on plain prompts, against plain alone."""
    some = next(iter(found["groups"].values()))["cost"]
    asked = [at(e["preference"]) for e in some["helpful"]]
    head = ["training", "J", *(f"helpful at {w}" for w in asked), *(f"harmless at {w}" for w in asked), "KL", "core-s"]
    shown = []
    for name, group in found["groups"].items():
        if name in ("plain", EXPLAINS):
            continue
        cost = group["cost"]
        cells = [ranged(cost["J"], sign=True)]
        cells += [ranged(entry, sign=True) for of in ("helpful", "harmless") for entry in cost[of]]
        seconds = sum(found["ledger"][arm]["cpu_seconds"] for arm in group["arms"]) / len(group["arms"])
        shown.append([name, *cells, ranged(cost["kl"], digits=2, sign=True), num(seconds, 0)])
    return table(head, shown)


def mitigation_answer(found: Entry) -> str:
    """The arm that lowers the regret on held-out families most, and what it costs on plain prompts."""
    arms = {
        name: group
        for name, group in found["groups"].items()
        if name not in ("plain", EXPLAINS) and group["held_out"] is not None
    }
    name = max(arms, key=lambda arm: arms[arm]["held_out"]["regret_reduction"]["value"])
    held, cost = arms[name]["held_out"], arms[name]["cost"]["J"]
    return (
        f"- **What helps on a family of shifts that was held out**: most of all `{name}`, regret there "
        f"{signed(-held['regret_reduction']['value'], 3)}, J on plain prompts {signed(cost['value'], 3)} (against "
        "training on plain prompts alone)."
    )


def hh_answer(found: Entry) -> str:
    """How many pairs of methods can be distinguished on plain prompts at all, and keep their order."""
    pairs = [pair["verdict"] for shift in found["shifts"].values() for pair in shift["ranks"]["pairs"]]
    led = sum(verdict in ("kept", "lost", "inverted") for verdict in pairs)
    return (
        f"- **On HH** ({found['prompts']} prompts, one training seed): of {len(pairs)} pairs of methods x shifts, "
        f"{led} have a tested difference on plain prompts and {pairs.count('kept')} keep it."
    )


def mitigation_sentences(found: Entry) -> list[str]:
    """Whether training on families helps those held out, by how much, at what cost; and what the other arms do."""
    groups, lines = found["groups"], []
    base = groups["plain"]["held_out"]["mismatched"]
    lines.append(f"- Trained on plain prompts alone, the mismatched part on the four families is {ranged(base)}.")
    for name, group in groups.items():
        held = group["held_out"]
        if name in ("plain", EXPLAINS) or held is None:
            continue
        cut, regret, cost = held["mismatched_reduction"], held["regret_reduction"], group["cost"]
        share = cut["value"] / base["value"]
        sure = "both intervals exclude 0" if excludes_zero(cut) else "one of both intervals includes 0"
        (helpful,) = [e for e in cost["helpful"] if e["preference"] == [0.5, 0.5]]
        lines.append(
            f"- `{name}` reduces it on held-out families by {ranged(cut, sign=True)}, {num(100 * share, 0)} % "
            f"({sure}); the regret there is reduced by {ranged(regret, sign=True)}. On plain prompts J changes by "
            f"{ranged(cost['J'], sign=True)}, helpfulness at (0.5, 0.5) by {ranged(helpful, sign=True)}."
        )
    return [*lines, *graft_sentences(found)]


def graft_sentences(found: Entry) -> list[str]:
    """Where the learning of the arm `plain` sits: regret of the reference with its layers, or its embeddings, alone."""
    words = {"graft_layers": "the trained layers alone", "graft_embeddings": "the trained embeddings alone"}
    done = [row for row in words if row in found["groups"]]
    if not done:
        return []
    families = {row: found["groups"][row]["held_out"]["regret"] for row in (*done, "plain")}
    parts = [f"with {words[r]} {ranged(found['plain'][r])} plain, {ranged(families[r])} on the families" for r in done]
    whole = f"with both {ranged(found['plain']['plain'])} plain, {ranged(families['plain'])} on the families"
    start = ranged(found["plain"]["reference"])
    return [f"- Where the learning sits: mean regret is {start} for the reference, {'; '.join([*parts, whole])}."]


def hh_gain_table(found: Entry) -> list[str]:
    rows = [*found["methods"], *found["controls"]]
    shown = []
    for row in rows:
        cells = [named(row, found["controls"])]
        for shift in found["shifts"].values():
            gain, kl = shift["rows"][row]["gain_retained"], shift["rows"][row]["kl"]
            words = "null" if gain["value"] is None else f"{num(gain['value'], 2)} {interval(gain['ci_items'], 2)}"
            cells.append(f"{words}; KL {num(kl['value'], 1)} {interval(kl['ci'], 1)}")
        shown.append(cells)
    reasons = sorted(
        {
            f"{row}: {shift['rows'][row]['gain_retained']['over_seeds']}"
            for shift in found["shifts"].values()
            for row in rows
            if shift["rows"][row]["gain_retained"]["value"] is None
        }
    )
    return [*table(["row", *found["shifts"]], shown), "; ".join(reasons) + ".", ""]


def hh_utility_table(found: Entry) -> list[str]:
    """Change of mean utility under each shift, with the rank on each side."""
    shown = []
    for row in [*found["methods"], *found["controls"]]:
        cells = [named(row, found["controls"])]
        for shift in found["shifts"].values():
            moved, ranks = shift["rows"][row]["utility"], shift["ranks"]
            place = ranks["ranks_home"].get(row)
            words = f"{signed(moved['value'], 2)} {interval(moved['ci_items'], 2)}"
            cells.append(words + (f"; rank {place} to {ranks['ranks_away'][row]}" if place else ""))
        shown.append(cells)
    return table(["row", *found["shifts"]], shown)


def hh_section(found: Entry) -> list[str]:
    """Real data: sampled responses under reward models that no method was trained on."""
    methods, judged = found["methods"], []
    for shift, entry in found["shifts"].items():
        falls = ", ".join(
            f"{name} {signed(e['value'], 2)} {interval(e['ci'], 2)}" for name, e in entry["judge"].items()
        )
        judged.append(f"- {shift}: {falls}.")
    lines = [
        *(f"- **{shift}**: {rank_sentence(entry['ranks'], methods)}" for shift, entry in found["shifts"].items()),
        "",
        "Hypervolume gain retained and mean KL:",
        "",
        *hh_gain_table(found),
        "Change of mean utility (the preference's weighted sum, in units of the reference's spread on plain prompts):",
        "",
        *hh_utility_table(found),
        "Pairs of methods whose verdict changes:",
        "",
        *changed_pairs(found["shifts"]),
        "Change of the held-out reward models' scores of the same responses when they read the shifted prompt:",
        "",
        *judged,
        "",
        "Displacement of each preference's point (helpful; harmless, in units of the held-out reward models):",
        "",
    ]
    for shift, entry in found["shifts"].items():
        rows = [*methods, *found["controls"]]
        lines += [f"### {shift}, HH", ""]
        names = ("helpful", "harmless")
        asked = {row: len(entry["rows"][row]["displacement"]) for row in rows}
        whole = [row for row in rows if asked[row] == asked[methods[0]]]
        lines += displacement_table(entry, names=names, rows=whole, controls=found["controls"])
    return lines
