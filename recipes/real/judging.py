"""Judging policies on real data: sampled cells under held-out judges, plain and shifted, and the reward-model table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align.data import real as source
from align.preferences import Weights
from align.runs import Ledger, Metrics, Run, Workspace, stage, write_json
from evals.measure.sampling import Point, Sampling, sample_answers
from recipes.real.stages import checkpoint, part_of

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from align.objectives import Normalized
    from align.policies.base import Policy

CONTROLS = ("kl_overspender", "best_of_n", "length_only")
LONGEST = 400  # tokens of a shifted prompt


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One row at one preference, and what it is asked: held-out `prompts`, plain and under `shifts`.

    n: of best-of-n and the longest of n. overspend: times a policy's distance from the reference. texts: held-out texts
    for bits per byte (0: not measured).
    """

    row: str
    weights: Weights
    prompts: int
    sampling: Sampling
    n: int
    overspend: float
    texts: int = 0
    shifts: tuple[str, ...] = ()


def _annotator(pairs: Run, reward_models: Mapping[str, Run]) -> dict[str, Normalized]:
    """The z-scored reward models: what the annotator's utility weighs."""
    from align.objectives import Normalized, RewardModelObjective, load_normalizer

    return {
        name: Normalized(
            RewardModelObjective(run.path, name=name), load_normalizer(pairs.path / f"normalizer-{name}.json")
        )
        for name, run in reward_models.items()
    }


def policy_of(
    judged: Judged, *, policy: Run, reference: Run, pairs: Run, reward_models: Mapping[str, Run], folder: Path
) -> Policy:
    """The policy of a row: the reference, a control, or the one that a family answers with."""
    from align.objectives import Length
    from align.policies.base import ModelPolicy
    from align.policies.best_of_n import BestOfNFamily, BestOfNPolicy, WeightedScore
    from align.policies.load import load_family
    from align.policies.soups import merge

    row, base = judged.row, ModelPolicy(checkpoint(reference), name="reference")
    if row == "reference":
        return base
    if row == "best_of_n":
        scores = _annotator(pairs, reward_models)
        score = WeightedScore(scores, names=list(scores), weights=judged.weights)
        return BestOfNPolicy(base, score=score, n=judged.n, name=row)
    if row == "length_only":
        words = WeightedScore({"words": Length("word")}, names=["words"], weights=Weights((1.0,)))
        return BestOfNPolicy(base, score=words, n=judged.n, name=row)
    family = load_family(policy.path)
    if isinstance(family, BestOfNFamily):  # it decodes with what it was made with, which its file cannot hold
        family = family.with_objectives(_annotator(pairs, reward_models))
    trained = family.policy(judged.weights)
    if row != "kl_overspender":
        return trained
    models, step = [trained.path, checkpoint(reference)], (judged.overspend, 1 - judged.overspend)
    return ModelPolicy(merge(models, weights=step, out=folder / "extrapolated", extrapolate=True), name=row)


@stage
def evaluate(
    work: Workspace, *, data: Run, reference: Run, policy: Run, judges: Mapping[str, Run], judged: Judged, pairs: Run,
    reward_models: Mapping[str, Run],
) -> Metrics:  # fmt: skip
    """Sampled cells of one policy at one preference under the judges, and its bits per byte on held-out text.

    Under shifts only prompts that every shift can change are asked, and judges score the decoded response against the
    plain prompt: one that read the shifted prompt would be shifted itself.
    """
    from align.objectives import RewardModelObjective
    from align.policies.base import ModelPolicy
    from align.training.bits import text_bits
    from evals.measure.answers import append_answers

    base = ModelPolicy(checkpoint(reference), name="reference")
    made = policy_of(
        judged, policy=policy, reference=reference, pairs=pairs, reward_models=reward_models, folder=work.folder
    )
    prompts, passed = {"none": source.unique_prompts(part_of(data, "test"))[: judged.prompts]}, dict[str, int]()
    if judged.shifts:
        prompts, passed = shifted_prompts(data, shifts=judged.shifts, count=judged.prompts, tokenizer=base.tokenizer)
    cells = sample_answers(
        [Point(judged.row, judged.weights, made)], reference=base, prompts=prompts,
        objectives={name: RewardModelObjective(run.path, name=name) for name, run in judges.items()},
        sampling=judged.sampling, folder=work.folder / "parts", ledger=work.ledger,
    )  # fmt: skip
    (work.folder / "cells.jsonl").unlink(missing_ok=True)
    append_answers(work.folder / "cells.jsonl", cells)
    facts = {"cells": len(cells), "samples_per_response": made.samples_per_response, "passed_over": passed}
    if judged.texts and isinstance(made, ModelPolicy):
        held_out = [row["text"] for row in part_of(data, "validation")[: judged.texts]]
        each = [text_bits(made.model, made.tokenizer, [text]) for text in held_out]
        facts["bits_per_byte"] = sum(one.bits for one in each) / sum(one.bytes for one in each)
        facts["bits_per_byte_of_texts"] = [one.per_byte for one in each]
    return facts


def shifted_prompts(
    data: Run, *, shifts: Sequence[str], count: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, list[dict[str, str]]], dict[str, int]]:
    """({"none" and each shift: rows of item, plain, prompt}, how many prompts were passed over, by reason).

    The first `count` of the test part's prompts that every shift changes into a text of at most LONGEST tokens.
    """
    from evals.items import Missing
    from evals.shifts import SHIFTS
    from evals.shifts.augment import shifted_prompt

    kept: dict[str, list[dict[str, str]]] = {name: [] for name in ("none", *shifts)}
    passed: Counter[str] = Counter()
    for row in source.unique_prompts(part_of(data, "test")):
        texts = {name: shifted_prompt(row["prompt"], shift=SHIFTS[name]) for name in shifts}
        reasons = [f"{name}: {text.reason}" for name, text in texts.items() if isinstance(text, Missing)]
        reasons += [
            f"{name}: too long"
            for name, text in texts.items()
            if isinstance(text, str) and len(tokenizer(text)["input_ids"]) > LONGEST
        ]
        if reasons:
            passed.update(reasons[:1])
            continue
        for name, text in {"none": row["prompt"], **texts}.items():
            kept[name].append({"item": row["item"], "plain": row["prompt"], "prompt": text})
        if len(kept["none"]) == count:
            break
    return kept, dict(passed)


@stage(name="reward table")
def reward_table(
    work: Workspace, *, data: Run, names: tuple[str, ...], ours: Mapping[str, Run], judges: Mapping[str, Run], seed: int
) -> Metrics:
    """Accuracy of every scorer, trained on each objective and tested on each, on all and on length-matched test pairs.

    Bag of words and length only are fitted here on the training part, and bag of words on the judges' part as well (its
    weights are kept: a second judge). `seed` decides nothing any more, and stays in the key of finished runs.
    """
    from evals.baselines.preference_baselines import fit_bag_of_words, fit_length_only
    from evals.baselines.reward_accuracy import accuracies

    parts = {part: part_of(data, part) for part in source.PARTS}

    def of(part: str, name: str) -> source.Rows:
        return [row for row in parts[part] if row["objective"] == name]

    scorers: dict[tuple[str, str], Callable[..., Sequence[float]]] = {}
    for scorer, models in (("ours", ours), ("judge", judges)):
        scorers |= {(scorer, name): _model_scorer(run, work.ledger) for name, run in models.items()}
    second_judge = {}
    for name in names:
        scorers["bag of words", name] = _text_scorer(fit_bag_of_words(of("train", name)).scores)
        scorers["length only", name] = _text_scorer(fit_length_only(of("train", name)).scores)
        second_judge[name] = dict(fit_bag_of_words(of("judge", name)).weights)
    write_json(work.folder / "second_judge.json", second_judge)
    tests = {name: of("test", name) for name in names}
    table, leads = accuracies(scorers, tests=tests)
    write_json(work.folder / "table.json", {"rows": table, "leads": leads})
    return {"rows": len(table), "test_pairs": {name: len(rows) for name, rows in tests.items()}}


def _model_scorer(run: Run, ledger: Ledger) -> Callable[..., list[float]]:
    from align.objectives import RewardModelObjective

    objective = RewardModelObjective(run.path)

    def score(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        ledger.add(scores_read=len(prompts))
        return [float(value) for value in objective(prompts, completions) if value is not None]

    return score


def _text_scorer(scores: Callable[[Sequence[str]], np.ndarray]) -> Callable[..., list[float]]:
    return lambda prompts, completions: scores(completions).tolist()
