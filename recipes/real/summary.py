"""The hh recipe's summary.json: cells, ledgers and tables on disk -> what the report reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.data.answers import SampledAnswer
from align.runs import Run, open_run
from recipes.pipeline.conflict_summary import training_conflict
from recipes.pipeline.inputs import joined_claims
from recipes.pipeline.provenance import ledger_table, provenance

if TYPE_CHECKING:
    from recipes.real.plan import Config, Plan

CONTROL_NOTES = {
    "kl_overspender": "control: the dpo policy extrapolated to {overspend:g} times its distance from the reference",
    "best_of_n": "control: the best of {n} reference samples under the reward models; {n} samples and scores each",
    "length_only": "control: the longest of {n} reference samples, which is what a reward model of length would choose",
}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def summarise(config: Config, *, plan: Plan, out: Path) -> dict[str, Any]:
    """summary.json of a finished run."""
    from evals.measure.answers import read_sampled
    from evals.tables.tradeoffs import controls_table
    from recipes.pipeline.sampling import sampled_summary
    from recipes.real.plan import NAMES

    cells = {row: [c for f in folders for c in read_sampled(f / "cells.jsonl")] for row, folders in plan.cells.items()}
    summary = sampled_summary(
        [cell for found in cells.values() for cell in found],
        title=f"Helpful against harmless: HH-RLHF, seed {config.seed}",
        names=list(NAMES),
        headline="harmless",
        info=_row_info(config, plan=plan),
        seed=config.seed,
    )
    table = read_json(out / "reward-table" / "table.json")
    second = _second_judge(cells, weights=read_json(out / "reward-table" / "second_judge.json"), names=NAMES)
    summary["controls"] = controls_table(
        summary["methods"], controls={"reference": "reference", **{name: name for name in CONTROL_NOTES}}
    )
    summary["conflict"]["training"] = training_conflict(plan.points)
    language_model = _language_model(plan)
    summary["world_details"] |= {
        "judges": "reward models trained on comparisons that nothing else was trained on; raw scores",
        "preferences": [list(w.values) for w in plan.preferences],
        "rows": open_run(plan.stages["rows"]).metrics["rows"],
        "dropped": open_run(plan.stages["rows"]).metrics["dropped"],
        "language_model": language_model,
    }
    summary["reward_models"] = table["rows"]
    summary["reward_model_leads"] = table["leads"]
    summary["second_judge"] = second
    summary["notes"] = _notes(language_model, leads=table["leads"], second=second)
    summary["provenance"] = provenance(config, seed=config.seed, runs=_runs(plan))
    summary["ledger"] = ledger_table(_costs(plan))
    return summary


def _language_model(plan: Plan) -> dict[str, Any]:
    """Parameters and bits per byte of pretraining beside the n-grams on the same tokens; empty with `--model`."""
    if "pretrain" not in plan.stages:
        return {}
    metrics = open_run(plan.stages["pretrain"]).metrics
    grams = open_run(plan.stages["ngram"]).metrics
    return {
        "parameters": metrics["parameters"],
        "steps": metrics["steps"],
        "tokens_per_epoch": metrics["tokens_per_epoch"],
        "bits_per_byte": metrics["bits_per_byte"],
        "validation_bytes": metrics["validation_bytes"],
        "ngram_order": next(iter(grams.values()))["order"],
        "ngram_bits_per_byte": {smoothing: score["bits_per_byte"] for smoothing, score in grams.items()},
    }


def _row_info(config: Config, *, plan: Plan) -> dict[str, dict[str, Any]]:
    """What each row says about itself: what it optimises, its rewards, cost and alignment tax."""
    before = open_run(plan.cells["reference"][0]).metrics["bits_per_byte"]
    info: dict[str, dict[str, Any]] = {}
    for row, folders in plan.cells.items():
        measured = [open_run(folder).metrics for folder in folders]
        bits = [m["bits_per_byte"] for m in measured if "bits_per_byte" in m]
        after = sum(bits) / len(bits) if bits else None
        change = None if after is None else after - before
        info[row] = {
            "rewards": "learned",
            "samples_per_response": measured[0]["samples_per_response"],
            "bits_per_byte": {"before": before, "after": after, "change": change},
        }
    base = "likelihood of the demonstrations"
    info["reference"] |= {"optimises": base, "note": "what every KL is measured against", "rewards": "none"}
    for row, points in plan.points.items():
        claims = {label: open_run(path).metrics["optimises"][label] for label, path in points.items()}
        info[row] |= {"optimises": joined_claims(claims), "note": _method_note(config, row)}
        info[row]["ledger"] = ledger_table(_row_costs(config, row, plan=plan))["total"]
    for name, words in CONTROL_NOTES.items():
        info[name] |= {"optimises": words.format(**config.controls), "note": "", "ledger": {}}
    info["length_only"]["rewards"] = "length"
    return info


def _row_costs(config: Config, row: str, *, plan: Plan) -> dict[str, dict[str, float]]:
    """Ledgers of what a row is made of: its points, a soup's specialists, the pairs and their reward models."""
    costs = {str(path): open_run(path).ledger for path in plan.points[row].values()}  # one run may hold all points
    source = config.methods[row].get("specialists_of")
    if source:
        vertices = [w.label for w in plan.preferences if w.is_vertex]
        costs |= {f"specialist {label}": open_run(plan.points[source][label]).ledger for label in vertices}
    shared = [name for name in plan.stages if name == "pairs" or name.startswith("reward model")]
    return costs | {name: open_run(plan.stages[name]).ledger for name in shared}


def _method_note(config: Config, row: str) -> str:
    source = config.methods[row].get("specialists_of")
    if source:
        return f"made of the two specialists of {source}: no training of its own"
    return "trained on the learned reward models, in z units of the reference's samples"


def _second_judge(
    cells: Mapping[str, Sequence[SampledAnswer]],
    *,
    weights: Mapping[str, Mapping[str, float]],
    names: Sequence[str],
) -> dict[str, Any]:
    """Mean bag-of-words scores per row and preference, and how they rank the points in comparison with the judges."""
    import numpy as np
    from scipy.stats import spearmanr

    from evals.baselines.preference_baselines import BagOfWords
    from evals.tables.surfaces import by_preference

    judges = [BagOfWords(weights=weights[name]) for name in names]
    rows: dict[str, list[dict[str, Any]]] = {}
    first, second = [], []
    for row, found in cells.items():
        for preference, group in by_preference(found).items():
            values = [float(judge.scores([cell.completion for cell in group]).mean()) for judge in judges]
            rows.setdefault(row, []).append({"preference": list(preference), "values": values, "n": len(group)})
            first.append(np.mean([cell.values for cell in group], axis=0))
            second.append(values)
    agreement = {}
    for k, name in enumerate(names):
        a, b = np.array(first)[:, k], np.array(second)[:, k]
        agreement[name] = float(spearmanr(a, b).statistic) if a.std() > 0 and b.std() > 0 else None
    return {
        "is": "bag of words, trained on the judges' part",
        "rows": rows,
        "rank_agreement": agreement,
        "points": len(first),
    }


def _notes(
    language_model: Mapping[str, Any], *, leads: Sequence[Mapping[str, Any]], second: Mapping[str, Any]
) -> list[str]:
    """Sentences that open the report."""
    notes = []
    if language_model:
        grams = ", ".join(f"{value:.3f} ({name})" for name, value in language_model["ngram_bits_per_byte"].items())
        notes.append(
            f"The language model has {language_model['parameters'] / 1e6:.2f} M parameters and "
            f"{language_model['bits_per_byte']:.3f} bits per byte on {language_model['validation_bytes']:,} held-out "
            f"bytes; "
            f"{language_model['ngram_order']}-grams on the same tokens have {grams}."
        )
        notes.append(
            "A model of this size, trained for minutes, writes text that looks like a dialogue and says little: "
            "completions show the direction in which training moves it, not what an assistant would answer."
        )
    for lead in leads:
        if lead["ci"] is None or lead["objective"] != "both":
            continue
        low, high = (100 * bound for bound in lead["ci"])
        word = "beat" if low > 0 else "are below" if high < 0 else "are level with"
        pairs = "all held-out pairs" if lead["pairs"] == "all pairs" else "length-matched held-out pairs"
        notes.append(
            f"On {pairs} of both objectives our reward models {word} {lead['over_scorer']}: "
            f"{100 * lead['lead']:+.1f} points [{low:.1f}, {high:.1f}], {lead['over']}."
        )
    ranks = ", ".join(f"{name} {value:.2f}" for name, value in second["rank_agreement"].items() if value is not None)
    notes.append(
        f"A second judge, bag of words on the judges' comparisons, agrees with the judges on the order of the "
        f"{second['points']} policies with a rank correlation of {ranks or 'no defined value'}."
    )
    return notes


def _runs(plan: Plan) -> list[Run]:
    """Every finished run behind the summary."""
    folders = [*plan.stages.values(), *(f for found in plan.cells.values() for f in found)]
    folders += [path for points in plan.points.values() for path in points.values()]
    return [open_run(folder) for folder in dict.fromkeys(folders)]


def _costs(plan: Plan) -> dict[str, dict[str, float]]:
    """Stage -> ledger; the points of a row and all evaluations are added up."""
    costs = {name: open_run(path).ledger for name, path in plan.stages.items()}
    for row, points in plan.points.items():
        costs[row] = ledger_table({str(path): open_run(path).ledger for path in points.values()})["total"]
    runs = {str(folder): open_run(folder).ledger for folders in plan.cells.values() for folder in folders}
    costs["evaluate"] = ledger_table(runs)["total"]
    return costs


def closing_words(summary: Mapping[str, Any]) -> str:
    """The hypervolume that each row gained, and its KL, for the terminal."""
    lines = ["hypervolume gained over the reference model (judges' units), mean KL:"]
    for row, entry in summary["methods"].items():
        low, high = entry["raw_hypervolume_ci"] or (float("nan"), float("nan"))
        lines.append(f"  {row:<16} {entry['raw_hypervolume']:+.3f} [{low:.3f}, {high:.3f}]  {entry['kl']:.2f}")
    return "\n".join(lines)
