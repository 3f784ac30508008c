"""Measuring the hh recipe's policies: sampled cells under held-out judges, controls, the reward-model table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.runs import Ledger, model_dir, open_run, run_stage, write_json
from recipes.pipeline.inputs import content_key
from recipes.real import data as hh_data

Settings = Mapping[str, Any]
BASELINES, BOTH = ("bag of words", "length only"), "both"


def _annotator(pairs: str, *, reward_models: Mapping[str, str]) -> dict[str, Any]:
    """The z-scored reward models: what the annotator's utility weighs."""
    from align.objectives import Normalized, RewardModelObjective, load_normalizer

    return {
        name: Normalized(
            RewardModelObjective(path, name=name), load_normalizer(Path(pairs) / f"normalizer-{name}.json")
        )
        for name, path in reward_models.items()
    }


def policy_of_row(
    row: str, weights: Any, *, policy: str, reference: str, pairs: str, reward_models: Mapping[str, str],
    options: Settings, folder: Path,
) -> Any:  # fmt: skip
    """The policy of a row: the reference, a control, or the one that a family answers with."""
    from align.objectives import Length
    from align.policies.base import ModelPolicy
    from align.policies.best_of_n import BestOfNFamily, BestOfNPolicy, WeightedScore
    from align.policies.load import load_family
    from align.policies.soups import merge
    from align.preferences import Weights

    base = ModelPolicy(reference, name="reference")
    if row == "reference":
        return base
    if row == "best_of_n":
        judged = _annotator(pairs, reward_models=reward_models)
        score = WeightedScore(judged, names=list(judged), weights=weights)
        return BestOfNPolicy(base, score=score, n=options["n"], name=row)
    if row == "length_only":
        words = WeightedScore({"words": Length("word")}, names=["words"], weights=Weights((1.0,)))
        return BestOfNPolicy(base, score=words, n=options["n"], name=row)
    family = load_family(policy)
    if isinstance(family, BestOfNFamily):  # it decodes with what it was made with, which its file cannot hold
        family = family.with_objectives(_annotator(pairs, reward_models=reward_models))
    trained = family.policy(weights)
    if row != "kl_overspender":
        return trained
    scale = options["overspend"]
    step = (scale, 1 - scale)
    return ModelPolicy(
        merge([trained.path, model_dir(reference)], weights=step, out=folder / "extrapolated", extrapolate=True),
        name=row,
    )


def evaluate(
    *, out: str, data: str, row: str, policy: str, weights: Sequence[float], reference: str, pairs: str,
    reward_models: Mapping[str, str], judges: Mapping[str, str], prompts: Mapping[str, Any], sampling: Settings,
    options: Settings, texts: int,
) -> None:  # fmt: skip
    """Sampled cells of one policy at one preference under the judges, and its bits per byte on held-out text.

    `prompts["none"]` says how many of the test part's prompts are asked, the objectives' prompts taking turns.
    """

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.objectives import RewardModelObjective
        from align.policies.base import ModelPolicy
        from align.preferences import Weights
        from align.training.bits import bits_per_byte
        from evals.measure.answers import append_answers
        from recipes.pipeline.sampling import Point, Sampling, sample_answers

        asked = Weights(tuple(weights))
        made = policy_of_row(
            row, asked, policy=policy, reference=reference, pairs=pairs, reward_models=reward_models, options=options,
            folder=folder,
        )  # fmt: skip
        asked_of = hh_data.unique_prompts(hh_data.read_rows(Path(data) / "test.jsonl"))[: prompts["none"]]
        cells = sample_answers(
            [Point(row, asked, made)],
            reference=ModelPolicy(reference, name="reference"),
            prompts={"none": asked_of},
            objectives={name: RewardModelObjective(path, name=name) for name, path in judges.items()},
            sampling=Sampling(**sampling),
            folder=folder / "parts",
            ledger=ledger,
        )
        (folder / "cells.jsonl").unlink(missing_ok=True)
        append_answers(folder / "cells.jsonl", cells)
        facts: dict[str, Any] = {"cells": len(cells), "samples_per_response": made.samples_per_response}
        if isinstance(made, ModelPolicy):
            held_out = [r["text"] for r in hh_data.read_rows(Path(data) / "validation.jsonl")[:texts]]
            facts["bits_per_byte"] = bits_per_byte(made.model, made.tokenizer, held_out)
        return facts

    paths = {"reference": reference, "policy": policy, "pairs": pairs}
    paths |= {f"judge {name}": path for name, path in judges.items()}
    inputs = {name: content_key(path) for name, path in paths.items()} | {"data": open_run(data).fingerprint}
    config = {"row": row, "weights": list(weights), "prompts": prompts, "sampling": sampling, "texts": texts}
    run_stage(out, stage="evaluate", config={**config, "options": options}, body=body, inputs=inputs)


def reward_table(
    *, out: str, data: str, names: Sequence[str], models: Mapping[str, Mapping[str, str]], seed: int
) -> None:
    """Accuracy of every scorer, trained on each objective and tested on each, on all and on length-matched test pairs.

    `models`: scorer -> objective -> run. Bag of words and length only are fitted here on the training part, and bag of
    words on the judges' part as well (its weights are kept: a second judge). `lead` is ours minus another scorer on the
    same pairs, with an interval over prompts.
    """

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from evals.baselines.preference_baselines import fit_bag_of_words, fit_length_only

        parts = {part: hh_data.read_rows(Path(data) / f"{part}.jsonl") for part in hh_data.PARTS}

        def of(part: str, name: str) -> list[dict[str, Any]]:
            return [row for row in parts[part] if row["objective"] == name]

        scorers: dict[tuple[str, str], Any] = {}
        for scorer, paths in models.items():
            scorers |= {(scorer, name): _model_scorer(path, ledger) for name, path in paths.items()}
        second_judge = {}
        for name in names:
            scorers["bag of words", name] = _text_scorer(fit_bag_of_words(of("train", name)))
            scorers["length only", name] = _text_scorer(fit_length_only(of("train", name)))
            second_judge[name] = dict(fit_bag_of_words(of("judge", name)).weights)
        write_json(folder / "second_judge.json", second_judge)
        tests = {name: of("test", name) for name in names}
        table, leads = accuracies(scorers, tests=tests, seed=seed)
        write_json(folder / "table.json", {"rows": table, "leads": leads})
        return {"rows": len(table), "test_pairs": {name: len(rows) for name, rows in tests.items()}}

    inputs = {"data": open_run(data).fingerprint}
    inputs |= {f"{s} {n}": open_run(p).fingerprint for s, paths in models.items() for n, p in paths.items()}
    run_stage(out, stage="reward table", config={"seed": seed, "names": list(names)}, body=body, inputs=inputs)


def _model_scorer(path: str, ledger: Ledger) -> Callable[..., list[float]]:
    from align.objectives import RewardModelObjective

    objective = RewardModelObjective(path)

    def score(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        ledger.add(scores_read=len(prompts))
        return [float(value) for value in objective(prompts, completions) if value is not None]

    return score


def _text_scorer(model: Any) -> Callable[..., list[float]]:
    return lambda prompts, completions: model.scores(completions).tolist()


def accuracies(
    scorers: Mapping[tuple[str, str], Callable[..., Sequence[float]]],
    *,
    tests: Mapping[str, Sequence[Mapping[str, Any]]],
    seed: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows of the reward-model table, our lead over the baselines on the diagonal: each objective, then both)."""
    from evals.baselines.preference_baselines import in_order, length_matched, pairwise_accuracy

    table: list[dict[str, Any]] = []
    compared: dict[
        tuple[str, str, str], tuple[list[str], list[float]]
    ] = {}  # other, pairs, objective -> prompts, leads
    for tested, every in tests.items():
        asked = [pair["prompt"] for pair in every]
        scores = {
            key: [score(asked, [pair[side] for pair in every]) for side in ("chosen", "rejected")]
            for key, score in scorers.items()
        }
        matched = {id(pair) for pair in length_matched(every)}
        for words in ("all pairs", "length-matched"):
            kept = [i for i, pair in enumerate(every) if words == "all pairs" or id(pair) in matched]
            if not kept:
                continue
            prompts, right = [asked[i] for i in kept], {}
            for (scorer, trained), both in scores.items():
                sides = [[side[i] for i in kept] for side in both]
                found = pairwise_accuracy(*sides, prompts=prompts, seed=seed)
                right[scorer, trained] = in_order(*sides)
                table.append(
                    {"scorer": scorer, "trained_on": trained, "tested_on": tested, "pairs": words}
                    | {"accuracy": found.interval.estimate, "ci": found.interval.pair, "n": found.pairs}
                    | {"over": found.interval.says}
                )
            for other in BASELINES:
                if ("ours", tested) in right and (other, tested) in right:
                    lead = (right["ours", tested] - right[other, tested]).tolist()
                    compared[other, words, tested] = (prompts, lead)
                    before = compared.get((other, words, BOTH), ([], []))
                    compared[other, words, BOTH] = (before[0] + prompts, before[1] + lead)
    return table, [_lead(key, *found) for key, found in compared.items()]


def _lead(key: tuple[str, str, str], prompts: Sequence[str], leads: Sequence[float]) -> dict[str, Any]:
    """Mean difference of being right on the same pairs, with an interval over prompts."""
    from evals.stats.intervals import clustered_mean

    other, words, objective = key
    mean = clustered_mean(leads, clusters_N=prompts, over="prompts")
    return {"over_scorer": other, "pairs": words, "objective": objective, "lead": mean.estimate} | {
        "ci": mean.pair, "over": mean.says, "n": len(leads),
    }  # fmt: skip
