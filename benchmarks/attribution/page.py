"""The attribution benchmark's page: finished runs -> attribution.json, attribution.md and the map; all is generated."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.attribution.map import draw
from benchmarks.attribution.stages import read_split
from benchmarks.command import write_table
from benchmarks.pages import Entry, render, write
from evals.attribution.regions import CLASSES, REGIONS
from evals.attribution.validation import RIVALS, Agreement, Case, agreement, balanced_accuracy, confusion
from evals.items import Json
from evals.report.words import num

if TYPE_CHECKING:
    from evals.attribution.regions import Signals, Thresholds
    from recipes.testbed.planted import Config, Plant

BARS = {"balanced accuracy": 0.95, "rank correlation": 0.9}
PARTS = ("optimum", "regret_rise")


@dataclass(frozen=True)
class Planting:
    """One plant of a seed, and where its probes lie."""

    plant: Plant
    seed: int
    probes: Path

    @property
    def model(self) -> str:
        return f"{self.plant.name} {self.seed}"


def collect(
    config: Config, *, plants: Sequence[Planting], folders: Mapping[int, tuple[Path, Path]], count: int
) -> Json:
    """Everything on the page from what is finished; seeds that lack a plant are left out and named."""
    from align.runs import environment
    from align.testbed.world import load_world
    from evals.attribution.regions import calibrate
    from recipes.testbed.planted_stages import CONTROLS, read_signals

    seeds = list(dict.fromkeys(p.seed for p in plants))
    whole = [s for s in seeds if all((p.probes / "signals.json").is_file() for p in plants if p.seed == s)]
    signals = {(p.seed, p.plant.name): read_signals(p.probes) for p in plants if p.seed in whole}
    development = [s for s in whole if s in config.development]
    fresh = [s for s in whole if s in config.fresh]
    quiet = [one for (s, _), by in signals.items() if s in development for c in CONTROLS for one in by[c]]
    bounds = calibrate(quiet, what=f"{', '.join(CONTROLS)} on seeds {', '.join(map(str, development))}")
    rows = [row for p in plants if p.seed in whole for row in _rows(p, signals[p.seed, p.plant.name], bounds)]
    sides = {"development": development, "fresh": fresh}
    return {
        "world": load_world(config.world).hash, "environment": environment(), "seeds": sides, "count": count,
        "missing_seeds": [s for s in seeds if s not in whole], "thresholds": bounds.jsonable(), "cases": rows,
        "results": {side: _result(rows, development, mine) for side, mine in sides.items() if mine},
        "splits": _splits(folders, signals), "samples": config.samples,
    }  # fmt: skip


def _rows(one: Planting, signals: Mapping[str, Sequence[Signals]], bounds: Thresholds) -> list[Json]:
    """One row per shift with a planted mechanism."""
    from evals.attribution.regions import attribute

    rows = []
    for shift, truth in one.plant.truth.items():
        (found,) = attribute(signals[shift], thresholds=bounds)
        row = {"model": one.model, "plant": one.plant.name, "seed": one.seed, "truth": truth}
        rows.append({**row, "weights": one.plant.weights, **found.jsonable()})
    return rows


def _cases(rows: Sequence[Entry], seeds: Sequence[int]) -> list[Case]:
    return [
        Case(r["model"], r["shift"], r["truth"], r["region"], r["fails"]["value"]) for r in rows if r["seed"] in seeds
    ]


def _result(rows: Sequence[Entry], development: Sequence[int], seeds: Sequence[int]) -> Json:
    """Confusion and balanced accuracy of the attribution on these seeds, and of its rivals taught by development."""
    taught, asked = _cases(rows, development), _cases(rows, seeds)
    result: Json = {"confusion": confusion(asked), "balanced_accuracy": balanced_accuracy(asked).stated}
    result["rivals"] = {}
    for name, rival in RIVALS.items():
        said = rival(taught, asked)
        cases = [Case(c.model, c.shift, c.truth, s, c.fails) for c, s in zip(asked, said, strict=True)]
        result["rivals"][name] = balanced_accuracy(cases).stated
    right = [r["shares"][r["truth"]]["value"] for r in rows if r["seed"] in seeds and r["shares"]]
    result["failures_in_their_region"] = sum(right) / len(right) if right else None
    return result


def _splits(
    folders: Mapping[int, tuple[Path, Path]], signals: Mapping[tuple[int, str], Mapping[str, Sequence[Signals]]]
) -> Json | None:
    """The exact and the sampled parts and their agreement, over the seeds where both are finished."""
    points: list[Json] = []
    for seed, (exact, sampled) in folders.items():
        if not all((folder / "split.json").is_file() for folder in (exact, sampled)):
            continue
        truth, seen = read_split(exact), read_split(sampled)
        for name, shifts in truth.items():
            for shift, parts in shifts.items():
                row = {"model": f"{name} {seed}", "plant": name, "seed": seed, "shift": shift}
                points.append({**row, "exact": parts, "sampled": seen[name][shift]})
                read = signals.get((seed, name), {}).get(shift, [])
                if read and all(s.pull is not None and s.recognition is not None for s in read):
                    points[-1]["signals"] = _means(read)
    if len({p["model"] for p in points}) < 2:
        return None
    known = [p for p in points if "signals" in p]
    several = len({p["model"] for p in known}) > 1
    by_part: Json = {}
    for part in PARTS:
        both = _compared(points, "sampled", part)
        worst = max(abs(p["sampled"][part] - p["exact"][part]) for p in points)
        stated = {"spearman": both.spearman.stated, "kendall": both.kendall.stated}
        by_part[part] = {**stated, "points": both.points, "largest_difference": worst}
        if several:
            signal = _compared(known, "signals", part)
            by_part[part]["signal"] = {"spearman": signal.spearman.stated, "points": signal.points}
    return {"points": points, "agreement": by_part}


def _compared(points: Sequence[Entry], side: str, part: str) -> Agreement:
    """A side's part against the exact one."""
    sides = ([p[name][part] for p in points] for name in (side, "exact"))
    return agreement(*sides, models=[p["model"] for p in points])


def _means(signals: Sequence[Signals]) -> dict[str, float]:
    """The signals that stand for the two parts: mean pull in nats, and mean share of recognition that is lost."""
    pulls, left = [s.pull or 0.0 for s in signals], [s.recognition or 0.0 for s in signals]
    return {"optimum": sum(pulls) / len(pulls), "regret_rise": 1 - sum(left) / len(left)}


# --- the page --------------------------------------------------------------------------------------------------------


def write_page(table: Entry, *, folder: Path, command: str) -> None:
    """Write attribution.json, attribution_thresholds.json, attribution.md and attribution-map.svg."""
    write_table(folder / "attribution.json", table)
    functions = {f.__name__: f for f in (among, by_truth, mean_part, rank_inside, verdict)}
    text = render(
        Path(__file__).with_name("page.md.j2"), table=table, command=command, bars=BARS, parts=PARTS, regions=REGIONS,
        classes=CLASSES, rivals=list(RIVALS), **functions,
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


def by_truth(rows: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Planted mechanism -> its cases by failure rate."""
    ordered = sorted(rows, key=lambda row: row["fails"]["value"])
    return {truth: [row for row in ordered if row["truth"] == truth] for truth in CLASSES}


def among(points: Sequence[Entry], **given: str) -> list[Entry]:
    """The points with these values."""
    return [point for point in points if all(point[name] == value for name, value in given.items())]


def rank_inside(points: Sequence[Entry], *, side: str, part: str) -> str:
    """Spearman of a side's part with the exact one inside each shift: what is left without differences of shifts."""
    from evals.attribution.sampled_split import rank_correlation

    each = []
    for shift in dict.fromkeys(p["shift"] for p in points):
        here = among(points, shift=shift)
        if len(here) > 2:
            pair = ([p[side][part] for p in here], [p["exact"][part] for p in here])
            each.append(f"{shift} {num(rank_correlation(*pair)[0], 2)}")
    return ", ".join(each) or "too few points"


def mean_part(points: Sequence[Entry], *, side: str, part: str) -> float:
    """Mean of the exact or the sampled part."""
    return float(sum(p[side][part] for p in points) / len(points))
