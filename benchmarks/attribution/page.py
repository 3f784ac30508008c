"""The attribution benchmark's page: finished runs -> attribution.json, attribution.md and the map; all is generated."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError
from benchmarks.attribution.map import draw
from benchmarks.attribution.stages import read_parts
from benchmarks.command import read_table, write_table
from benchmarks.pages import Entry, render, write
from evals.attribution.regions import REGIONS, VERDICTS
from evals.attribution.validation import (
    ABLATIONS,
    OTHERS,
    RIVALS,
    Case,
    agreement,
    balanced_accuracy,
    confusion,
    gain,
    verdict_by,
)
from evals.items import Json
from evals.report.words import num

if TYPE_CHECKING:
    from evals.attribution.regions import Signals, Thresholds
    from recipes.testbed.planted import Config, Plant, Reference

BAR = 0.95  # of the balanced accuracy
SIGNALS = ("comprehension", "recognition", "pull", "distance")
PARTS = ("surface", "competing", "carried_over", "mismatched")
MEANT = {"comprehension": "surface", "pull": "competing", "recognition": "mismatched", "distance": "mismatched"}


@dataclass(frozen=True)
class Planting:
    """One plant on one reference of a seed: where its probes lie, and its parts by enumeration and from samples."""

    plant: Plant
    about: Reference
    reference: str  # with the seed: what the models share that start from it
    seed: int
    probes: Path
    parts: tuple[Path, Path]

    @property
    def model(self) -> str:
        return f"{self.plant.name}, {self.reference}"


def protocol(config: Config) -> str:
    """Fingerprint of all that may be chosen on development seeds: models, plants, least bounds, signals that decide."""
    from align.runs import fingerprint
    from evals.attribution.regions import DECIDES, LEAST

    chosen = [getattr(config, name) for name in ("world", "model", "pretrain", "sft", "comparisons", "samples")]
    return fingerprint([*chosen, config.references, config.plants, config.development, LEAST.jsonable(), DECIDES])


def check_fresh(config: Config, *, published: Path | None) -> None:
    """UserError where a fresh seed is none: developed on, or its results were shown on a page of another protocol."""
    shared = set(config.development) & set(config.fresh)
    if shared:
        raise UserError(f"seed {min(shared)} is in development and fresh; nothing may be chosen on a fresh seed")
    if published is None or not published.is_file():
        return
    before = read_table(published, hint="")
    seen = set(config.fresh) & {*before["seeds"]["development"], *before["seeds"]["fresh"]}
    if seen and before.get("protocol") != protocol(config):
        raise UserError(f"{published}: seed {min(seen)} was looked at there; take fresh seeds that no page has shown")


def collect(config: Config, *, plants: Sequence[Planting], count: int) -> Json:
    """Everything on the page from what is finished; references that lack a plant are left out and named."""
    from align.runs import environment
    from align.testbed.world import load_world
    from evals.attribution.regions import calibrate
    from recipes.testbed.planted_stages import CONTROLS, read_signals

    done = {p.model: (p.probes / "signals.json").is_file() for p in plants}
    names = list(dict.fromkeys(p.reference for p in plants))
    whole = [name for name in names if all(done[p.model] for p in plants if p.reference == name)]
    kept = [p for p in plants if p.reference in whole]
    signals = {p.model: read_signals(p.probes) for p in kept}
    quiet = [one for p in kept if p.seed in config.development for c in CONTROLS for one in signals[p.model][c]]
    if not quiet:
        raise UserError("no reference of a development seed is finished: there are no controls to take bounds from")
    bounds = calibrate(quiet, what=f"{', '.join(CONTROLS)} on seeds {', '.join(map(str, config.development))}")
    rows = [row for p in kept for row in _rows(p, signals[p.model], bounds)]
    asked = {"development": config.development, "fresh": config.fresh}
    sides = {side: [s for s in seeds if any(p.seed == s for p in kept)] for side, seeds in asked.items()}
    taught = _cases(rows, sides["development"])
    return {
        "world": load_world(config.world).hash, "environment": environment(), "seeds": sides, "count": count,
        "missing": [name for name in names if name not in whole], "cases": rows, "protocol": protocol(config),
        "thresholds": bounds.jsonable(), "samples": config.samples,
        "results": {side: _result(rows, taught, mine) for side, mine in sides.items() if mine}, "parts": _parts(rows),
    }  # fmt: skip


def _rows(one: Planting, signals: Mapping[str, Sequence[Signals]], bounds: Thresholds) -> list[Json]:
    """One row per shift under which something, or nothing, was planted."""
    from evals.attribution.regions import attribute
    from recipes.testbed.planted import causes

    rows = []
    exact, sampled = (read_parts(folder).get(one.plant.name, {}) for folder in one.parts)
    for shift, truth in causes(one.about, one.plant).items():
        (found,) = attribute(signals[shift], thresholds=bounds)
        rules = {n: verdict_by(signals[shift], d, thresholds=bounds) for n, d in (ABLATIONS | OTHERS).items()}
        rows.append({
            "model": one.model, "plant": one.plant.name, "reference": one.reference, "seed": one.seed, "truth": truth,
            "weights": one.plant.weights, "pulled": one.about.pulled, "coded": one.about.coded,
            "covers": one.plant.covers, "rules": rules, "exact": exact.get(shift), "sampled": sampled.get(shift),
            **found.jsonable(),
        })  # fmt: skip
    return rows


def _cases(rows: Sequence[Entry], seeds: Sequence[int]) -> list[Case]:
    return [
        Case(r["model"], r["reference"], r["shift"], r["truth"], r["region"], r["fails"]["value"])
        for r in rows
        if r["seed"] in seeds
    ]


def _result(rows: Sequence[Entry], taught: Sequence[Case], seeds: Sequence[int]) -> Json:
    """Accuracy of the verdicts on these seeds, without each signal, by other rules, of rivals taught by development."""
    asked, mine = _cases(rows, seeds), [r for r in rows if r["seed"] in seeds]
    result: Json = {"confusion": confusion(asked), "balanced_accuracy": balanced_accuracy(asked).stated}
    nearest = _told(asked, [r["nearest"] for r in mine])
    result |= {
        "models": len({c.model for c in asked}), "references": len({c.reference for c in asked}), "cases": len(asked),
        "nearest": balanced_accuracy(nearest).stated, "ablations": {}, "other_rules": {},
    }  # fmt: skip
    for name in (*ABLATIONS, *OTHERS):
        other = _told(asked, [r["rules"][name] for r in mine])
        kind = "ablations" if name in ABLATIONS else "other_rules"
        result[kind][name] = {**balanced_accuracy(other).stated, "gain": gain(asked, other).stated}
    for name, rival in RIVALS.items():
        other = _told(asked, rival(taught, asked))
        result[name] = {**balanced_accuracy(other).stated, "gain": gain(asked, other).stated}
    return result


def _told(cases: Sequence[Case], said: Sequence[str]) -> list[Case]:
    """The same cases with other verdicts."""
    return [replace(case, found=word) for case, word in zip(cases, said, strict=True)]


def _parts(rows: Sequence[Entry]) -> Json | None:
    """The exact parts beside what the signals and the samples say of them; None before any is enumerated."""
    known = [r for r in rows if r["exact"]]
    if len({r["reference"] for r in known}) < 2:
        return None
    result: Json = {"cases": len(known), "signals": {}, "sampled": {}, "by_verdict": {}}
    for name, part in MEANT.items():
        here = [r for r in known if r["signals"][name]]
        pairs = [[r["signals"][name]["value"] for r in here], [r["exact"][part]["value"] for r in here]]
        if len({r["reference"] for r in here}) > 1:
            result["signals"][name] = _agreement(pairs, here) | {"part": part}
    for part in PARTS:
        drawn = [r for r in known if r["sampled"]]
        here = [r for r in drawn if r["sampled"][part]["value"] is not None]
        if len({r["reference"] for r in here}) > 1:
            pairs = [[r[side][part]["value"] for r in here] for side in ("sampled", "exact")]
            most = max(abs(a - b) for a, b in zip(*pairs, strict=True))
            result["sampled"][part] = _agreement(pairs, here) | {"difference": most, "refused": len(drawn) - len(here)}
    for verdict in VERDICTS:
        here = [r for r in known if r["region"] == verdict]
        if here:
            means = {part: sum(r["exact"][part]["value"] for r in here) / len(here) for part in PARTS}
            result["by_verdict"][verdict] = means | {"cases": len(here)}
    return result


def _agreement(pairs: Sequence[Sequence[float]], rows: Sequence[Entry]) -> Json:
    found = agreement(*pairs, references=[r["reference"] for r in rows])
    return {"spearman": found.stated, "cases": len(rows)}


# --- the page --------------------------------------------------------------------------------------------------------


def write_page(table: Entry, *, folder: Path, command: str) -> None:
    """Write attribution.json, attribution_thresholds.json, attribution.md and attribution-map.svg."""
    write_table(folder / "attribution.json", table)
    text = render(
        Path(__file__).with_name("page.md.j2"), table=table, command=command, bar=BAR, parts=PARTS, verdicts=VERDICTS,
        classes=REGIONS, rivals=list(RIVALS), rules=[*ABLATIONS, *OTHERS], signals=SIGNALS, verdict=verdict,
        by_truth=by_truth, earning=earning, in_order=in_order, above_zero=above_zero,
    )  # fmt: skip
    files = {
        "attribution_thresholds.json": json.dumps(table["thresholds"], indent=1) + "\n",
        "attribution-map.svg": draw(table),
        "attribution.md": text,
    }
    write(folder, files)


def verdict(found: Sequence[Entry], *, bar: float) -> str:
    """Whether all values reach a bar, and whether their intervals do: an estimate alone does not carry the claim."""
    words = f"at least {bar}: "
    if any(one["value"] < bar for one in found):
        return words + "**not met**"
    low = min(one["ci"][0] if one["ci"] else float("-inf") for one in found)
    if low >= bar:
        return words + "**met**, and by the lower end of the interval too"
    end = "there is no interval" if low == float("-inf") else f"the interval begins at {num(low)}"
    return words + f"**met** by the estimate alone; {end}"


def above_zero(lead: Entry) -> bool:
    """Whether a lead is established: its interval begins above 0."""
    return lead["ci"] is not None and lead["ci"][0] > 0


def earning(result: Entry) -> list[str]:
    """The signals that earn their place: the full set beats the verdict without them, and not by chance."""
    gains = {name: entry["gain"] for name, entry in in_order(result["ablations"], list(ABLATIONS))}
    return [name.removeprefix("without ") for name, lead in gains.items() if above_zero(lead)]


def in_order(entries: Entry, names: Sequence[str]) -> list[tuple[str, Entry]]:
    """The entries of these names, in their order: a table that was read back has its keys in another one."""
    return [(name, entries[name]) for name in names if name in entries]


def by_truth(rows: Sequence[Entry]) -> dict[str, list[Entry]]:
    """What was planted -> its cases by failure rate; what has none is left out."""
    ordered = sorted(rows, key=lambda row: row["fails"]["value"])
    found = {truth: [row for row in ordered if row["truth"] == truth] for truth in REGIONS}
    return {truth: cases for truth, cases in found.items() if cases}
