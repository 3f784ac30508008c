"""Rewards in context (RiC, Yang et al. 2024): SFT on responses behind their own scores, then on its own best samples.

Offline: the responses of the comparisons are scored by every objective, the scores normalised (`z_k = (r_k - shift_k) /
spread_k`, fitted once) and written before the prompt; the model learns p(y | x, z(x, y)). Each online round asks for
targets on the upper right boundary (all objectives at their maximum but one), scores what the model answers with the
same statistics, keeps what is good on some objective (or on all), and goes on training on all rounds' samples and on
offline rows that pass the same filter. Asked for weights, the family aims at scores: `low_k + f_k(w) (high_k - low_k)`
with `f_k = w_k / |w|_2` (the paper's choice at evaluation), or its linf or linear map.

There is no KL to the reference and no J: the fixed point of the offline stage is ref(y | x, z(x, y) = z), the law of
the pairs' responses among those of the asked scores, and online rounds move it towards the boundary.
*Deviations from the official code*: tags begin the last user turn, which is otherwise untouched (theirs stand before
"Assistant:", where `rstrip` of that string eats the last letters of prompts); high and low are quantiles of the offline
scores (`ends: normal` gives theirs, the extremes of 100,000 normal draws, +-4.3, which no response has); the response
is sampled at temperature 1 from the whole distribution (theirs: 0.7, top_p 0.9); the loss covers the end token (theirs
since 2024-11-03).
Legend: N responses, K objectives.
Data: pairs, prompts. Fixed point: none: imitation of what has the scores asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from align import checks
from align.data.comparisons import required_rows
from align.engines import tagged
from align.engines.on_policy.prompts import counted
from align.engines.points import check_preferences, inputs_of, part
from align.engines.problem import Problem
from align.engines.settings import TrainingConfig, check_training
from align.engines.tagged import Response
from align.engines.tagged_pairs import Example, frozen, imitate
from align.errors import UserError
from align.models import load_tokenizer
from align.policies.tagged import ASKED, TaggedFamily, Tags, forbid, tag_ids
from align.preferences import Targets, Weights
from align.runs import Run, Workspace, write_json

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

STATS_FILE = "stats.json"
NORMAL_EXTREME = 4.3  # about the largest of 100,000 standard normal draws
ASKED_BY = (Weights, Targets)
FAMILY = TaggedFamily


@dataclass(frozen=True, kw_only=True)
class Config(tagged.TagFields, TrainingConfig):
    """How to normalise, train and go on; `beta` has no part in it. Learning rate and epochs are the offline stage's."""

    scores: str = "rows"  # rows: scores_a, scores_b of the comparisons; objectives: they are asked
    normalise: str = "zscore"  # of the offline scores; or minmax: to [0, 1]
    ends: str = "data"  # high and low of the targets: quantiles of the offline scores; or normal: +-4.3 (zscore only)
    end_quantile: float = 0.0  # 0: the lowest and highest offline score
    aim: str = "targets_l2"  # the map from weights to targets: targets_l2, targets_linf or targets_linear
    epochs: float = 2.0
    online_rounds: int = 2
    online_samples: int = 1000  # per round
    online_epochs: float = 1.0
    online_learning_rate: float = 1e-5  # constant
    keep: str = "any"  # samples with any objective (or all) at its quantile or above
    quantile: float = 0.7
    replay: int = 1000  # offline rows that pass the same filter, in every round
    max_completion_length: int = 64  # tokens, the end token included
    sample_batch_size: int = 256


@dataclass(frozen=True)
class Stats:
    """Normalisation of K objectives and the ends of their normalised scores, fitted once on the offline responses."""

    shift: tuple[float, ...]
    spread: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def fit(cls, scores_NK: ArrayLike, *, config: Config) -> Stats:
        """From raw scores; UserError when an objective has one score for everything."""
        table_NK = np.asarray(scores_NK, dtype=float)
        lowest_K, highest_K = table_NK.min(0), table_NK.max(0)
        if not (highest_K > lowest_K).all():
            number = int((highest_K <= lowest_K).argmax()) + 1
            raise UserError(f"objective {number} scores all responses alike; drop it")
        shift_K, spread_K = table_NK.mean(0), table_NK.std(0)
        if config.normalise == "minmax":
            shift_K, spread_K = lowest_K, highest_K - lowest_K
        if config.ends == "normal":
            low_K, high_K = np.full(len(shift_K), -NORMAL_EXTREME), np.full(len(shift_K), NORMAL_EXTREME)
        else:
            ends = np.quantile(table_NK, [config.end_quantile, 1 - config.end_quantile], axis=0)
            low_K, high_K = (ends - shift_K) / spread_K
        return cls(*(tuple(map(float, v)) for v in (shift_K, spread_K, low_K, high_K)))

    def __call__(self, scores: Sequence[float]) -> tuple[float, ...]:
        """Normalised scores of one response."""
        return tuple((r - m) / s for r, m, s in zip(scores, self.shift, self.spread, strict=True))


def fit(config: Config, problem: Problem[Weights | Targets], run: Workspace) -> TaggedFamily:
    """One model for all weights and targets; online rounds sample on the prompts, else on those of the comparisons.

    UserError on an impossible configuration, and when comparisons or their scores are missing.
    """
    check_preferences(problem, kinds=ASKED_BY)
    check_config(config)
    required_rows(problem.comparisons, method="ric")
    problem, left_out = tagged.askable(problem)
    inputs = inputs_of(problem, rows=[*(problem.comparisons or ()), *(problem.prompts or ())])
    pairs = tagged.scored_pairs(problem, source=config.scores, ledger=run.ledger)
    offline = [response for pair in pairs for response in pair]
    stats = Stats.fit([r.scores for r in offline], config=config)
    ends = tag_range(offline, stats=stats, levels=config.levels)
    tags = tagged.make_tags(config, problem, **ends)
    family = tagged.untrained_family(
        "ric", problem, tags=tags, claim=describe(config), asked=config.aim, low=stats.low, high=stats.high
    )

    def told(place: Workspace, *, number: int) -> dict[str, float]:
        last = number == config.online_rounds
        return tagged.told_apart(family, problem, place, seed=config.seed) if last else {}

    def offline_stage(place: Workspace) -> Mapping[str, object]:
        write_json(place.folder / STATS_FILE, asdict(stats))
        examples = [Example(r.prompt, stats(r.scores), r.ids) for r in offline]
        with tagged.start_model(problem.reference, tags=tags, folder=place.folder, seed=config.seed) as start:
            made = imitate(examples, config=config, model=start, tags=tags, run=place, epochs=config.epochs)
        return {**made, **counted(left_out), **told(place, number=0)}

    def online_stage(place: Workspace, *, number: int, previous: Run, material: Material) -> Mapping[str, object]:
        metrics = online_round(
            place, config=config, problem=asking, material=material, number=number, previous=previous
        )
        return {**metrics, **told(place, number=number)}

    last = part("ric", "offline", run, config=config, inputs=inputs, body=offline_stage)
    material = Material(tuple(offline), stats, tags)
    asking = replace(problem, prompts=tagged.prompts_to_ask(problem, method="ric"))
    for number in range(1, config.online_rounds + 1):
        body = partial(online_stage, number=number, previous=last, material=material)
        following = part(
            "ric", f"online-{number}", run, config=config, inputs={**inputs, "previous": last.fingerprint}, body=body
        )
        tagged.used_up(last)
        last = following
        material = replace(material, kept=(*material.kept, *tagged.kept(following.path, Response)))
    return tagged.trained_family(family, last)


def check_config(config: Config) -> None:
    """UserError on a value that no run can mean."""
    check_training(config)
    checks.above_zero(config, "epochs", "online_epochs")
    checks.at_least(0, config, "online_rounds", "replay", "online_learning_rate")
    checks.at_least(1, config, "online_samples", "max_completion_length", "sample_batch_size")
    aims = [name for name in ASKED if name.startswith("targets")]
    checks.one_of(config, normalise=("zscore", "minmax"), ends=("data", "normal"), aim=aims, keep=("any", "all"))
    if config.ends == "normal" and config.normalise != "zscore":
        raise UserError("ends: normal are extremes of z-scores; set normalise: zscore")
    if not 0 <= config.end_quantile < 0.5 or not 0 <= config.quantile < 1:
        raise UserError("end_quantile must be in [0, 0.5) and quantile in [0, 1)")


def describe(config: Config) -> str:
    """One line: the fixed point of the training, which is no optimum of J."""
    rounds = f"then {config.online_rounds} rounds on its own samples" if config.online_rounds else "offline only"
    return (
        f"no J: likelihood of responses behind their own scores ({config.normalise}), {rounds}; weights ask for scores "
        f"by {config.aim}, whatever beta"
    )


def tag_range(offline: Sequence[Response], *, stats: Stats, levels: int) -> dict[str, float]:
    """The lowest and highest number of the tags: round ones, with round steps, around offline scores and targets."""
    scores_NK = np.array([stats(r.scores) for r in offline])
    least, most = min(*stats.low, scores_NK.min()), max(*stats.high, scores_NK.max())
    low = math.floor(10 * least + 1e-9) / 10
    step = math.ceil((most - low) / levels / 0.05 - 1e-9) * 0.05
    return {"low": low, "high": round(low + levels * step, 6)}


def upper_right(count: int, *, low: Sequence[float], high: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """(count, K) targets: one coordinate of each anywhere between its ends, all others at their maximum.

    The free one is the smallest of K uniform draws, as in the official `sample_goals`; draws are shares of each
    objective's range, so that objectives of wide ranges are not free more often.
    """
    share_NK = rng.random((count, len(low)))
    smallest_N = share_NK.argmin(1)
    boundary_NK = np.ones_like(share_NK)
    boundary_NK[np.arange(count), smallest_N] = share_NK[np.arange(count), smallest_N]
    return np.asarray(low) + boundary_NK * (np.asarray(high) - np.asarray(low))


def good_enough(scores_NK: ArrayLike, *, keep: str, quantile: float) -> np.ndarray:
    """(N,) whether any objective (or all) reaches its own quantile among these responses."""
    table_NK = np.asarray(scores_NK, dtype=float)
    reached_NK = table_NK >= np.quantile(table_NK, quantile, axis=0)
    return reached_NK.any(1) if keep == "any" else reached_NK.all(1)


@dataclass(frozen=True)
class Material:
    """What the rounds share: the offline responses and their statistics, the tags, and earlier rounds' samples."""

    offline: tuple[Response, ...]
    stats: Stats
    tags: Tags
    kept: tuple[Response, ...] = ()


def online_round(
    place: Workspace, *, config: Config, problem: Problem[Weights | Targets], material: Material, number: int,
    previous: Run,
) -> dict[str, object]:  # fmt: skip
    """Ask for the boundary, keep what is good, train on with earlier rounds' samples and offline rows; metrics."""
    offline, stats, tags, prompts = material.offline, material.stats, material.tags, problem.prompts or ()
    rng = np.random.default_rng([config.seed, number])
    model, tokenizer = frozen(str(previous.path)), load_tokenizer(previous.path)
    targets_NK = upper_right(config.online_samples, low=stats.low, high=stats.high, rng=rng)
    order = tagged.passes(len(prompts), count=config.online_samples, rng=rng)
    drawn = tagged.sample(
        forbid(model, tag_ids(tokenizer, tags)), tokenizer,
        asked=[(prompts[i], tuple(t)) for i, t in zip(order, targets_NK.tolist(), strict=True)],
        tags=tags, objectives=problem.objectives, config=config, seed=int(rng.integers(2**31)), ledger=place.ledger,
    )  # fmt: skip
    new = [drawn[i] for i in np.flatnonzero(_filter(drawn, config))]
    tagged.keep(new, place.folder)
    again = rng.permutation(np.flatnonzero(_filter(offline, config)))[: config.replay]
    mixed = [*material.kept, *new, *(offline[i] for i in again)]
    training = replace(config, learning_rate=config.online_learning_rate, scheduler="constant", warmup=0.0)
    metrics = imitate(
        [Example(r.prompt, stats(r.scores), r.ids) for r in mixed], config=training, model=str(previous.path),
        tags=tags, run=place, epochs=config.online_epochs,
    )  # fmt: skip
    scores_NK = np.array([stats(r.scores) for r in drawn])
    missed = np.abs(scores_NK - targets_NK).mean(0).tolist()
    return {**metrics, "kept": len(new), "of": len(drawn), "replayed": len(again), "distance_to_targets": missed}


def _filter(responses: Sequence[Response], config: Config) -> np.ndarray:
    return good_enough([r.scores for r in responses], keep=config.keep, quantile=config.quantile)
