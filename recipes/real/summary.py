"""The summary of a run on real data: the plan's own tables, and beside them the judges, the reward models, the text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from align.data.answers import SampledAnswer
from align.runs import Call, open_run
from evals.items import Fields, Json
from recipes.pipeline.plan import Plan
from recipes.pipeline.sampled import POINT_IS
from recipes.pipeline.setting import REFERENCE
from recipes.pipeline.summary import About, Summary, Table, answers_of, preferences, summary
from recipes.real.setting import Config, RealData

CONTROL_NOTES = {
    "kl_overspender": "control: the dpo policy extrapolated to {overspend:g} times its distance from the reference",
    "best_of_n": "control: the best of {n} reference samples under the reward models; {n} samples and scores each",
    "length_only": "control: the longest of {n} reference samples, which is what a reward model of length would choose",
}


def read_json(path: Path) -> Mapping[str, Sequence[Fields]]:
    found: Mapping[str, Sequence[Fields]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def real_summary(config: Config, plan: Plan, setting: RealData) -> Summary:
    """The summary of a finished run."""
    tables = setting.out / "reward-table"
    found = read_json(tables / "table.json")
    about = About(
        title=f"Helpful against harmless: HH-RLHF, seed {config.seed}", headline="harmless", info=_info(plan, setting)
    )
    made = summary(plan, about=about, config=config, seed=config.seed)
    second = _second_judge(plan, weights=json.loads((tables / "second_judge.json").read_text(encoding="utf-8")))
    model = _language_model(setting)
    rows = open_run(setting.out / "rows").metrics
    details = {
        "reference_point_is": POINT_IS,
        "judges": "reward models trained on comparisons that nothing else was trained on; raw scores",
        "preferences": preferences(setting.preferences),
        "rows": rows["rows"],
        "dropped": rows["dropped"],
        "language_model": model,
    }
    return dataclasses.replace(
        made, world_details={**made.world_details, **details}, reward_models=found["rows"],
        reward_model_leads=found["leads"], second_judge=second, notes=_notes(model, found["leads"], second),
    )  # fmt: skip


def _info(plan: Plan, setting: RealData) -> dict[str, Table]:
    """What the rows say beside their claims: where the rewards come from, and what the controls are."""
    start = {"optimises": "likelihood of the demonstrations", "note": "what every KL is measured against"}
    info: dict[str, Table] = {REFERENCE: start}
    for row in plan.rows:
        note = "trained on the learned reward models, in z units of the reference's samples"
        if row.specialists_of is not None:
            note = f"made of the two specialists of {row.specialists_of}: no training of its own"
        info[row.name] = {"note": row.note or note}
    for name, words in CONTROL_NOTES.items():
        optimises = words.format(n=setting.closed.n, overspend=setting.closed.overspend)
        info[name] = {"optimises": optimises, "rewards": "length" if name == "length_only" else "learned"}
    return info


def _language_model(setting: RealData) -> Json:
    """Parameters and bits per byte of pretraining beside the n-grams on the same tokens; empty with `--model`."""
    if setting.budget.start is not None:
        return {}
    metrics, grams = (open_run(setting.out / name).metrics for name in ("pretrain", "ngram"))
    kept = ("parameters", "steps", "tokens_per_epoch", "bits_per_byte", "validation_bytes")
    return {
        **{name: metrics[name] for name in kept},
        "ngram_order": next(iter(grams.values()))["order"],
        "ngram_bits_per_byte": {smoothing: score["bits_per_byte"] for smoothing, score in grams.items()},
    }


def _second_judge(plan: Plan, *, weights: Mapping[str, Mapping[str, float]]) -> Json:
    """Mean bag-of-words scores per row and preference, and how they rank the points in comparison with the judges."""
    import numpy as np
    from scipy.stats import spearmanr

    from evals.baselines.preference_baselines import BagOfWords
    from evals.tables.surfaces import by_preference

    names = plan.setting.objectives
    judges = [BagOfWords(weights=weights[name]) for name in names]
    rows: dict[str, list[Json]] = {}
    first, second = [], []
    for row, calls in plan.cells.items():
        for preference, group in by_preference(sampled_of(calls)).items():
            values = [float(judge.scores([answer.completion for answer in group]).mean()) for judge in judges]
            rows.setdefault(row, []).append({"preference": list(preference), "values": values, "n": len(group)})
            first.append(np.mean([answer.values for answer in group], axis=0))
            second.append(values)
    agreement = {}
    for k, name in enumerate(names):
        a, b = np.array(first)[:, k], np.array(second)[:, k]
        agreement[name] = float(spearmanr(a, b).statistic) if a.std() > 0 and b.std() > 0 else None
    about = "bag of words, trained on the judges' part"
    return {"is": about, "rows": rows, "rank_agreement": agreement, "points": len(first)}


def sampled_of(calls: Sequence[Call]) -> list[SampledAnswer]:
    """The sampled answers of some evaluation runs."""
    return [answer for answer in answers_of(calls) if isinstance(answer, SampledAnswer)]


def _notes(model: Fields, leads: Sequence[Fields], second: Fields) -> list[str]:
    """Sentences that open the report."""
    notes = []
    if model:
        grams = ", ".join(f"{value:.3f} ({name})" for name, value in model["ngram_bits_per_byte"].items())
        notes += [
            f"The language model has {model['parameters'] / 1e6:.2f} M parameters and {model['bits_per_byte']:.3f} "
            f"bits per byte on {model['validation_bytes']:,} held-out bytes; {model['ngram_order']}-grams on the same "
            f"tokens have {grams}.",
            "A model of this size, trained for minutes, writes text that looks like a dialogue and says little: "
            "completions show the direction in which training moves it, not what an assistant would answer.",
        ]
    for lead in leads:
        if lead["ci"] is None or lead["objective"] != "both":
            continue
        low, high = (100 * bound for bound in lead["ci"])
        word = "beat" if low > 0 else "are below" if high < 0 else "are not told from"
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
