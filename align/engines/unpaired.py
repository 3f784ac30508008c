"""Unpaired labels: each response by itself desirable or not, by its `w . r` against a threshold or as its row says."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from align import checks
from align.data.comparisons import LABELS, Ids, Row, given_pairs, ids_of, responses_of, row_scores
from align.engines.problem import Problem
from align.engines.settings import TrainingConfig, check_training
from align.errors import UserError
from align.objectives.metered import objective_scores
from align.policies.best_of_n import DECIMALS
from align.preferences import Weights
from align.runs import Ledger

THRESHOLDS = ("mean", "median")
SCOPES = ("prompt", "all")
Scores = Mapping[str, tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True, kw_only=True)
class UnpairedConfig(TrainingConfig):
    """How responses get their labels.

    scalarised: from the row's `scores_a`, `scores_b`. objectives: from scores asked from the objectives. given: chosen
    responses are desirable and rejected ones are not, one objective per preference.
    """

    labels: str = "scalarised"
    # w . r above it is desirable: the mean or median of the scope's w . r, or a number. The median is the best value
    # itself where at least half of the responses reach that, and then nothing is above it.
    threshold: str | float = "mean"
    per: str = "prompt"  # the scope. prompt: the responses of one prompt. all: those of all prompts
    tau: float = 0.0  # annotator's temperature: desirable with probability sigmoid((w . r - threshold) / tau); 0: sure


@dataclass(frozen=True)
class Example:
    """A labelled response; `id` is its comparison's, and `side` (0 or 1) its place there; `ids` if it was drawn."""

    id: str
    side: int
    prompt: str
    completion: str
    label: bool
    ids: Ids = None


def check_labels(config: UnpairedConfig) -> None:
    """UserError on a value that is no way to label responses."""
    check_training(config)
    checks.at_least(0, config, "tau")
    checks.one_of(config, labels=LABELS, per=SCOPES)
    number = not isinstance(config.threshold, str) and math.isfinite(config.threshold)
    if not number and config.threshold not in THRESHOLDS:
        raise UserError(f"threshold must be mean, median or a number, not {config.threshold!r}")


def describe_labels(config: UnpairedConfig) -> str:
    """Which responses are desirable, in words."""
    if config.labels == "given":
        return "chosen responses"
    if not isinstance(config.threshold, str):
        return f"responses with w.r above {config.threshold:g}"
    return f"responses with w.r above the {config.threshold} of {'their prompt' if config.per == 'prompt' else 'all'}"


def known_scores(config: UnpairedConfig, problem: Problem[Weights], ledger: Ledger) -> Scores | None:
    """The K scores of both responses of every row by id; None with given labels.

    Objectives without weight at every preference are not asked and score 0.
    """
    rows, objectives = problem.comparisons or (), problem.objectives
    if config.labels == "given":
        return None
    if rows and "label" in rows[0]:
        raise UserError(f"rows with a label of their own need labels: given, not {config.labels}")
    if config.labels == "scalarised":
        return row_scores(rows)
    asked = {name: f for k, (name, f) in enumerate(objectives.items()) if any(w[k] for w in problem.preferences)}
    found = objective_scores(rows, objectives=asked, ledger=ledger)
    place = {name: i for i, name in enumerate(asked)}

    def widened(score: Sequence[float]) -> list[float]:
        return [score[place[name]] if name in place else 0.0 for name in objectives]

    return {row: (widened(first), widened(second)) for row, (first, second) in found.items()}


def given_examples(rows: Sequence[Row], *, weights: Weights, names: Sequence[str]) -> list[Example]:
    """Chosen responses as desirable, rejected ones as not, of the one objective that `weights` picks.

    Rows of single responses carry their own label.
    """
    if rows and "label" in rows[0]:
        return _labelled(rows, weights=weights, names=names)
    return [
        Example(pair.id, side, pair.prompt, text, side == 0, ids)
        for pair in given_pairs(rows, weights=weights, names=names)
        for side, (text, ids) in enumerate(((pair.chosen, pair.chosen_ids), (pair.rejected, pair.rejected_ids)))
    ]


def _labelled(rows: Sequence[Row], *, weights: Weights, names: Sequence[str]) -> list[Example]:
    if not weights.is_vertex:
        raise UserError(f"weights {weights.label} mix objectives, but given labels follow one; ask for a vertex")
    name = names[weights.values.index(1.0)]
    if len(names) > 1 and any("objective" not in row for row in rows):
        raise UserError(f"rows without an objective column cannot be split over {len(names)} objectives")
    kept = [row for row in rows if row.get("objective", name) == name]
    if len({row["label"] for row in kept}) < 2:
        raise UserError(f"responses of both labels are needed for objective {name!r}; give some of each")
    return [Example(str(row["id"]), 0, row["prompt"], row["completion"], row["label"]) for row in kept]


def thresholded_examples(
    rows: Sequence[Row], *, scores: Scores, weights: Weights, config: UnpairedConfig
) -> list[Example]:
    """Both responses of every row with their labels.

    Values and thresholds are compared at 12 decimals. A prompt of which no response is above its own threshold (all are
    equal, say) tells nothing and is left out, unless an annotator of a temperature above 0 judges. UserError when all
    labels are alike.
    """
    found: list[tuple[Row, int, str, float]] = []
    groups: dict[str, list[float]] = {}
    for row in rows:
        for side, (text, score_K) in enumerate(zip(responses_of(row), scores[str(row["id"])], strict=True)):
            if len(score_K) != len(weights):
                raise UserError(f"comparison {row['id']} has {len(score_K)} scores for {len(weights)} objectives")
            value = round(sum(w * s for w, s in zip(weights, score_K, strict=True)), DECIMALS)
            found.append((row, side, text, value))
            groups.setdefault(_scope(row, config), []).append(value)
    limits = {scope: threshold_of(values, rule=config.threshold) for scope, values in groups.items()}
    examples = []
    for row, side, text, value in found:
        scope = _scope(row, config)
        if config.tau > 0:
            chance = (1 + math.tanh((value - limits[scope]) / config.tau / 2)) / 2  # the sigmoid
            label = _draw(config.seed, row, side) < chance
        elif config.per == "prompt" and max(groups[scope]) <= limits[scope]:
            continue
        else:
            label = value > limits[scope]
        examples.append(Example(str(row["id"]), side, row["prompt"], text, label, ids_of(row)[side]))
    if len({example.label for example in examples}) < 2:
        raise UserError(
            f"at w = {weights.label} no two responses fall on different sides of the threshold {config.threshold}; "
            "choose another threshold, or per: all"
        )
    return examples


def threshold_of(values: Sequence[float], *, rule: str | float) -> float:
    """The median or mean of the values, or the number itself, at 12 decimals."""
    if isinstance(rule, str):
        return round(statistics.median(values) if rule == "median" else statistics.fmean(values), DECIMALS)
    return round(float(rule), DECIMALS)


def _scope(row: Row, config: UnpairedConfig) -> str:
    return row["prompt"] if config.per == "prompt" else ""


def _draw(seed: int, row: Row, side: int) -> float:
    """The annotator's uniform draw for one response: its own, where the row's `u` is one for the pair."""
    digest = hashlib.sha256(f"unpaired\x1f{seed}\x1f{row['id']}\x1f{side}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
