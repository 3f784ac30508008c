"""The reward-model table: accuracy of every scorer on held-out pairs, and the lead of ours over the baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from evals.baselines.preference_baselines import in_order, length_matched, pairwise_accuracy
from evals.stats.intervals import clustered_mean

BASELINES, BOTH = ("bag of words", "length only"), "both"
Scorer = Callable[..., Sequence[float]]  # (prompts, completions) -> scores


def accuracies(
    scorers: Mapping[tuple[str, str], Scorer], *, tests: Mapping[str, Sequence[Mapping[str, str]]]
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """(rows of the reward-model table, our lead over the baselines on the diagonal: each objective, then both)."""
    table: list[dict[str, object]] = []
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
                found = pairwise_accuracy(*sides, prompts=prompts)
                right[scorer, trained] = in_order(*sides)
                about = {"scorer": scorer, "trained_on": trained, "tested_on": tested, "pairs": words}
                value = {"accuracy": found.interval.estimate, "ci": found.interval.pair, "over": found.interval.says}
                table.append({**about, **value, "n": found.pairs})
            for other in BASELINES:
                if ("ours", tested) in right and (other, tested) in right:
                    lead = (right["ours", tested] - right[other, tested]).tolist()
                    compared[other, words, tested] = (prompts, lead)
                    before = compared.get((other, words, BOTH), ([], []))
                    compared[other, words, BOTH] = (before[0] + prompts, before[1] + lead)
    return table, [_lead(key, *found) for key, found in compared.items()]


def _lead(key: tuple[str, str, str], prompts: Sequence[str], leads: Sequence[float]) -> dict[str, object]:
    """Mean difference of being right on the same pairs, with an interval over prompts."""
    other, words, objective = key
    mean = clustered_mean(leads, clusters_N=prompts, over="prompts")
    return {"over_scorer": other, "pairs": words, "objective": objective, "lead": mean.estimate} | {
        "ci": mean.pair, "over": mean.says, "n": len(leads),
    }  # fmt: skip
