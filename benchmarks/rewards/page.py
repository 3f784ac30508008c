"""The rewards benchmark's page: rewards.json -> rewards.md; every number on it is generated."""

from __future__ import annotations

from pathlib import Path

from benchmarks.pages import filled, heading, render, write
from evals.items import Json
from evals.report.words import interval, num, signed

MADE = {
    "single": "one reward model: the usual training, score at the last token",
    "single/calibrated": "the same, margins times the number that makes validation labels most probable",
    "ensemble/mean": "mean of three reward models of different seeds",
    "ensemble/calibrated": "the same mean, calibrated",
    "ensemble/min": "the worst of the three",
    "ensemble/mean-std": "their mean less their standard deviation",
    "warm": "one model of the three's average weights (WARM)",
    "one_epoch": "trained for one epoch in place of three",
    "decay": "weight decay 1 in place of .01",
    "smoothed": "labels smoothed by the annotator's temperature, e = sigmoid(-1 / tau)",
    "length_matched": "pairs matched by length",
    "pooled": "solved: a linear reward on all of the frozen reference's pooled features",
    "pooled/last": "the same solve on the last state alone",
    "pooled/pessimistic": "pooled, less one posterior standard deviation",
    "single + pooled": "mean of the two",
    "oracle/true_class": "oracle: the gold rewards' own functions, coefficients from the labels",
    "oracle/rules": "oracle: knows right facts and harm levels, not the form of the reward",
    "oracle/topic_blind": "oracle: endless labels, knows nothing of a new topic",
}


def write_page(table: Json, *, folder: Path) -> None:
    """Write `rewards.md` into `folder`."""
    write(folder, {"rewards.md": page(table)})


def page(table: Json) -> str:
    """The Markdown page; a function of the numbers alone."""
    parts = render(
        Path(__file__).with_name("page.md.j2"), table=table, ranking=ranking, curves=curves, diagnostics=diagnostics,
        said=said, headline=headline, told=told,
    )  # fmt: skip
    return filled(parts)


def said(entry: Json, *, sign: bool = False) -> str:
    """A value with its interval, or why there is none."""
    if entry["value"] is None:
        return "not run"
    value = (signed if sign else num)(entry["value"], 3)
    return f"{value} {interval(entry['ci'], 3)}".strip()


def told(entry: Json) -> bool:
    """Whether a change has an interval that leaves 0 out."""
    return entry["ci"] is not None and (entry["ci"][0] > 0 or entry["ci"][1] < 0)


def ranking(world: Json) -> str:
    """Rows by regret share, the oracles last."""
    rows = sorted(world["rows"].items(), key=lambda row: (row[0].startswith("oracle"), row[1]["share"]["value"]))
    lines = [heading(["rewards", "what they are", "regret share of the optimum", "against `single`", "helpful alone",
                      "harmless alone", "KL", "log-loss", "seeds"], align="llllr")]  # fmt: skip
    for name, row in rows:
        loss = "" if row["log_loss"] is None else num(row["log_loss"], 3)
        change = "" if name == "single" else said(row["change"], sign=True)
        ends = row["share_by_weight"]
        cells = [name, MADE[name], said(row["share"]), change, num(ends[-1], 2), num(ends[0], 2), num(row["kl"], 2),
                 loss, str(len(row["share"]["by_seed"]))]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def curves(world: Json, *, rows: tuple[str, ...] = ("single", "pooled", "pooled/pessimistic", "oracle/rules")) -> str:
    """Gold against proxy: what the rewards promise over the reference and what gold gives, by KL."""
    kept = [name for name in rows if name in world["rows"]]
    lines = [heading(["pressure", *(f"{name}: KL, promised, gold" for name in kept)], align="r")]
    for place, (pressure, *_) in enumerate(world["rows"][kept[0]]["curve"]):
        points = [world["rows"][name]["curve"][place] for name in kept]
        shown = [f"{num(kl, 2)}, {num(promised, 2)}, {num(gained, 2)}" for _, kl, promised, gained, _ in points]
        lines.append(f"| {num(pressure, 3)} | {' | '.join(shown)} |")
    return "\n".join(lines)


def diagnostics(table: Json) -> str:
    """Rank correlations of what needs no gold with the regret share, one a seed, world by world."""
    names = {"log_loss": "log-loss on validation labels", "accuracy": "accuracy on them", "kl": "KL of the optimum",
             "promised": "reward that the optimum promises"}  # fmt: skip
    lines = [heading(["diagnostic", *table["worlds"]])]
    for key, words in names.items():
        cells = [
            ", ".join(signed(value, 2) for value in world["diagnostics"][key]["by_seed"].values())
            for world in table["worlds"].values()
        ]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def headline(world: Json) -> str:
    """Before, best, and how much of the gap an estimator with the world's rules closes on the same labels."""
    before, best = world["optimum_before"]["value"], world["optimum_best"]["value"]
    change = said(world["optimum_change"], sign=True)
    text = f"{num(before, 3)} with the usual reward models, {num(best, 3)} with pooled rewards, {change}"
    rules = world["rows"].get("oracle/rules")
    if rules is None:
        return text
    blind, exact = (world["rows"][f"oracle/{kind}"]["share"]["value"] for kind in ("topic_blind", "true_class"))
    known = num(rules["share"]["value"], 3)
    return (
        f"{text}. On the same labels {known} for an estimator that knows right facts and harm "
        f"levels, {num(exact, 3)} for one that knows the rewards' form, too; {num(blind, 3)} for endless labels and no "
        "knowledge of a new topic"
    )
