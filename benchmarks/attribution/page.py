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
from benchmarks.pages import Entry, stack, stated, table, write
from evals.attribution.regions import CLASSES, REGIONS
from evals.attribution.validation import RIVALS, Case, agreement, balanced_accuracy, confusion
from evals.items import Json
from evals.report.words import num

if TYPE_CHECKING:
    from evals.attribution.regions import Signals, Thresholds
    from recipes.testbed.planted import Config, Plant

BARS = {"balanced accuracy": 0.95, "rank correlation": 0.9}
PARTS = ("competing", "mismatched")
RIVAL_WORDS = """The rivals learn from the development cases, where their own figures are therefore too good: the most
frequent mechanism; the majority of the three cases of nearest failure rate; the most frequent mechanism under the same
shift. Failure rates, all seeds: {rates}.
Intervals: Jeffreys' posterior of each class's recall with trained models as trials, so that they have a width where
every case is right. They are too narrow for a claim on other references: models of a seed share theirs, pull is read
from the reference alone, and one model has cases in several classes, so independent trials are fewer than models.

How it came about: a first protocol, calibrated on seed 0, had .938 on seeds 1 and 2: the quiz asked six topics, and two
of eight models that cannot read seemed to. The quiz now asks all twelve benign topics and discounts what is likely
everywhere; as seeds 1 and 2 had been looked at by then, they joined development, and the fresh seeds are new ones. The
least bounds (half, half, twice, twice) were set on seed 0; where the controls stay inside them, they are the bounds.
"""
SPLIT_WORDS = """## Against the exact parts of the drop

`J_id - J_s = [J*_id - J*_s] + [regret_s - regret_id]`, by enumeration, and estimated from {count} judged samples of
policy and of reference per prompt (`evals/attribution/sampled_split.py`): {points} points, trained models x shifts.
"""


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


def _result(
    rows: Sequence[Entry], development: Sequence[int], seeds: Sequence[int]
) -> Json:
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
    found: Json = {"points": points, "agreement": {}}
    for part in PARTS:
        pairs = [(p["sampled"][part], p["exact"][part]) for p in points]
        both = agreement([a for a, _ in pairs], [b for _, b in pairs], models=[p["model"] for p in points])
        worst = max(abs(a - b) for a, b in pairs)
        stated = {"spearman": both.spearman.stated, "kendall": both.kendall.stated}
        found["agreement"][part] = {**stated, "points": both.points, "largest_difference": worst}
        known = [p for p in points if "signals" in p]
        if len({p["model"] for p in known}) > 1:
            one = agreement(
                [p["signals"][part] for p in known], [p["exact"][part] for p in known],
                models=[p["model"] for p in known],
            )  # fmt: skip
            found["agreement"][part]["signal"] = {"spearman": one.spearman.stated, "points": one.points}
    return found


def _means(signals: Sequence[Signals]) -> dict[str, float]:
    """The signals that stand for the two parts: mean pull in nats, and mean share of recognition that is lost."""
    pulls, left = [s.pull or 0.0 for s in signals], [s.recognition or 0.0 for s in signals]
    return {"competing": sum(pulls) / len(pulls), "mismatched": 1 - sum(left) / len(left)}


# --- the page --------------------------------------------------------------------------------------------------------


def write_page(table: Entry, *, folder: Path, command: str) -> None:
    """Write attribution.json, attribution_thresholds.json, attribution.md and attribution-map.svg."""
    write_table(folder / "attribution.json", table)
    parts = [_opening(table), _verdicts(table), _map_words(), _split_words(table), _all_cases(table)]
    parts.append(_made(table, command))
    files = {
        "attribution_thresholds.json": json.dumps(table["thresholds"], indent=1) + "\n",
        "attribution-map.svg": draw(table),
        "attribution.md": "\n".join(part for part in parts if part),
    }
    write(folder, files)


def _opening(table: Entry) -> str:
    bounds = table["thresholds"]
    missing = table["missing_seeds"]
    left = f" Not finished, and left out: seeds {', '.join(map(str, missing))}." if missing else ""
    return f"""# Attribution of failures, validated on planted models

Is the cause of a failure found, where we planted it? Intervals are 95 %.

{_answers(table)}

## How it was measured

What the signals and regions are: [attribution.md](../attribution.md).

Tiny models are trained with a mechanism of failure planted in each (`recipes/configs/planted.yaml`): weights in
conflict behind a compliance prefix that fine-tuning covers (competing), a spelling left out of fine-tuning
(mismatched), the prefix in that spelling (both), a spelling that pretraining never taught (capability). One shift may
belong to different mechanisms: `cipher_compliance` is *both*, but *competing* for models whose fine-tuning covered the
spelling, and *capability* for models that cannot read it. The probes see next-token probabilities, hidden states and
{table["samples"]} judged samples per prompt; neither the optimum nor the enumeration of responses.

Bounds were calibrated on development seeds {_list(table["seeds"]["development"])} (matched controls only) and then
frozen: reading below {num(bounds["comprehension"])}, recognition below {num(bounds["recognition"])}, pull above
{num(bounds["pull"])} nats, distance above {num(bounds["distance"])} ([file](attribution_thresholds.json):
{bounds["source"]}).
Fresh seeds: {_list(table["seeds"]["fresh"])}. A case is one trained model under one shift.{left}
"""


def _answers(table: Entry) -> str:
    """The result in a few lines: the last side is that of the fresh seeds, where they are finished."""
    lines = []
    for side, result in list(table["results"].items())[-1:]:
        accuracy, rivals = result["balanced_accuracy"], result["rivals"]
        others = ", ".join(f"{rival} {num(entry['value'])}" for rival, entry in rivals.items())
        lines += [
            f"- Balanced accuracy over four causes on {side} seeds: {stated(accuracy)}. Bar, "
            f"{verdict([accuracy], bar=BARS['balanced accuracy'])}.",
            f"- What can be guessed without any signal: {others}.",
            f"- Mean share of single failures in the planted region: {num(result['failures_in_their_region'])}.",
        ]
    for part, entry in (table["splits"] or {}).get("agreement", {}).items():
        lines.append(
            f"- The {part} part of the drop, from samples against exact: Spearman {stated(entry['spearman'])}, largest "
            f"difference {num(entry['largest_difference'])}, {entry['points']} points."
        )
    return "\n".join(lines)


def _made(table: Entry, command: str) -> str:
    e = table["environment"]
    made_with = stack(e, packages=("torch", "transformers", "trl"))
    return f"""## How it was made

Generated by `{command}` (world `{table["world"]}`, commit {e["commit"]}, {made_with}, {e["platform"]},
{e["cores"]} cores); all numbers are in `attribution.json`.
"""


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "none"


def _verdicts(found: Entry) -> str:
    """The headline table, rivals, and the confusion matrix of each side."""
    sides = found["results"]
    rows = [["attribution", *(stated(r["balanced_accuracy"]) for r in sides.values())]]
    rows += [[rival, *(stated(r["rivals"][rival]) for r in sides.values())] for rival in RIVALS]
    inside = [num(r["failures_in_their_region"]) for r in sides.values()]
    rows.append(["mean share of single failures in the planted region", *inside])
    head = table(["", *(f"{side} seeds" for side in sides)], rows, numbers=1)
    lines = ["## Balanced accuracy over the four mechanisms", "", head[0].replace("|  |", "| |"), *head[1:]]
    for side, result in sides.items():
        lines += [f"{side.capitalize()}: {result['balanced_accuracy']['over']}.", ""]
    if "fresh" in sides:
        words = verdict([sides["fresh"]["balanced_accuracy"]], bar=BARS["balanced accuracy"])
        lines += [f"Bar on fresh seeds, {words}.", ""]
    lines += [RIVAL_WORDS.format(rates="; ".join(_range(found["cases"], truth) for truth in CLASSES))]
    for side, result in sides.items():
        counts = [[t, *(str(result["confusion"][t][f]) for f in REGIONS)] for t in CLASSES]
        lines += [f"### Confusion, {side} seeds", "", *table(["planted", *REGIONS], counts, numbers=1)]
    return "\n".join(lines)


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


def _range(rows: Sequence[Entry], truth: str) -> str:
    rates = [r["fails"]["value"] for r in rows if r["truth"] == truth]
    return f"{truth} {num(min(rates), 2)} to {num(max(rates), 2)}"


def _map_words() -> str:
    return """## The map

![Recognition left against pull, one mark per case](attribution-map.svg)

Each mark is a case: its mean pull and the recognition that is left over its failures. Lines are the frozen bounds;
hollow marks are fresh seeds. Cases that cannot be read (grey) are decided before the map is looked at; distance decides
which of the cases below the line count as lost.
"""


def _split_words(whole: Entry) -> str:
    found = whole["splits"]
    if found is None:
        return "## Against the exact parts of the drop\n\nNot finished.\n"
    lines = [SPLIT_WORDS.format(count=whole["count"], points=len(found["points"]))]
    rows = [
        [part, stated(entry["spearman"]), stated(entry["kendall"]), num(entry["largest_difference"])]
        for part, entry in found["agreement"].items()
    ]
    lines += table(["part", "Spearman", "Kendall", "largest difference"], rows, numbers=1)
    both = [entry["spearman"] for entry in found["agreement"].values()]
    lines += [f"Intervals: bootstrap, {both[0]['over']}."]
    lines += [f"Bar of Spearman's, {verdict(both, bar=BARS['rank correlation'])}.", ""]
    lines += [_within(found["points"], "sampled"), ""]
    plain = {part: entry["signal"] for part, entry in found["agreement"].items() if "signal" in entry}
    lines += [] if len(plain) < len(PARTS) else [
        "The signals themselves contain neither the preference nor what a loss costs: they distinguish shifts, but not",
        "the size of a loss inside one. Pooled Spearman",
        f"{stated(plain['competing']['spearman'])} of the pull with the competing part,",
        f"{stated(plain['mismatched']['spearman'])} of the lost recognition with the mismatched part",
        f"({plain['competing']['points']} points; held-out topics have no paired requests).",
        _within([p for p in found["points"] if "signals" in p], "signals"), "",
    ]  # fmt: skip
    names = list(dict.fromkeys(p["plant"] for p in found["points"]))
    lines += ["Means over seeds, exact / from samples:", ""]
    shifts = dict.fromkeys(p["shift"] for p in found["points"])
    rows = [[s, part, *(_mean(found, name, s, part) for name in names)] for s in shifts for part in PARTS]
    return "\n".join([*lines, *table(["shift", "part", *names], rows, numbers=2)])


def _within(points: Sequence[Entry], side: str) -> str:
    """Spearman of a side's part with the exact one inside each shift: what is left without differences of shifts."""
    from evals.attribution.sampled_split import rank_correlation

    said = []
    for part in PARTS:
        each = []
        for shift in dict.fromkeys(p["shift"] for p in points):
            mine = [p for p in points if p["shift"] == shift]
            if len(mine) > 2:
                pair = ([p[side][part] for p in mine], [p["exact"][part] for p in mine])
                each.append(f"{shift} {num(rank_correlation(*pair)[0], 2)}")
        said.append(f"{part}: {', '.join(each) or 'too few points'}")
    return f"Those figures pool the shifts; Spearman inside each shift, {'; '.join(said)}."


def _mean(found: Entry, name: str, shift: str, part: str) -> str:
    mine = [p for p in found["points"] if p["plant"] == name and p["shift"] == shift]
    exact, sampled = (sum(p[side][part] for p in mine) / len(mine) for side in ("exact", "sampled"))
    return f"{num(exact)} / {num(sampled)}"


def _all_cases(found: Entry) -> str:
    """Every case with its failure rate and mean signals."""
    signals = ("comprehension", "recognition", "pull", "distance")
    rows = []
    for r in sorted(found["cases"], key=lambda r: (CLASSES.index(r["truth"]), r["fails"]["value"])):
        wrong = "" if r["truth"] == r["region"] else " (wrong)"
        cells = [r["fails"]["value"], r["fails_plain"]["value"]]
        cells += [r["shares"][r["truth"]]["value"] if r["shares"] else None]
        cells += [r["signals"][n]["value"] if r["signals"][n] else None for n in signals]
        rows.append([r["model"], r["weights"], r["shift"], r["truth"], r["region"] + wrong, *map(num, cells)])
    head = ["model (seed)", "weights", "shift", "planted", "found", "fails", "plain", "in region", *signals]
    return "\n".join(["## Every case", "", *table(head, rows, numbers=5)])
