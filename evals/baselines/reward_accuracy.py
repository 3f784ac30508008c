"""The reward-model table: accuracy of every scorer on held-out pairs, and the lead of ours over the baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evals.baselines.preference_baselines import in_order, length_matched, pairwise_accuracy
from evals.stats.paired_shares import paired_change

BASELINES, BOTH = ("bag of words", "length only"), "both"
Scorer = Callable[..., Sequence[float]]  # (prompts, completions) -> scores


@dataclass(frozen=True)
class Compared:
    """Two scorers on the same pairs: the prompt of each, and whether each is right (1, 0, or 1/2 for a tie)."""

    prompts: list[str]
    ours: list[float]
    theirs: list[float]

    def with_(self, more: Compared) -> Compared:
        """These pairs and more."""
        return Compared(self.prompts + more.prompts, self.ours + more.ours, self.theirs + more.theirs)


def accuracies(
    scorers: Mapping[tuple[str, str], Scorer], *, tests: Mapping[str, Sequence[Mapping[str, str]]]
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """(rows of the reward-model table, our lead over the baselines on the diagonal: each objective, then both)."""
    table: list[dict[str, object]] = []
    compared: dict[tuple[str, str, str], Compared] = {}  # other, pairs, objective
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
                    one = Compared(prompts, *(right[name, tested].tolist() for name in ("ours", other)))
                    compared[other, words, tested] = one
                    before = compared.get((other, words, BOTH))
                    compared[other, words, BOTH] = one if before is None else before.with_(one)
    return table, [_lead(key, found) for key, found in compared.items()]


def _lead(key: tuple[str, str, str], found: Compared) -> dict[str, object]:
    """Mean difference of being right on the same pairs, with the interval of paired changes of shares over prompts."""
    other, words, objective = key
    ours, theirs = ({str(i): v for i, v in enumerate(side)} for side in (found.ours, found.theirs))
    prompts = {str(i): prompt for i, prompt in enumerate(found.prompts)}
    mean = paired_change(ours, before=theirs, clusters=prompts, over="prompts, paired")
    if mean is None:
        raise ValueError("a lead needs a pair")
    return {"over_scorer": other, "pairs": words, "objective": objective, "lead": mean.estimate} | {
        "ci": mean.pair, "over": mean.says, "n": len(ours),
    }  # fmt: skip
