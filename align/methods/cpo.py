"""Controllable preference optimisation (CPO, Guo et al. 2024): SFT behind ratings (CPSFT), then DPO by the asked ones.

Every objective's score is a rating `P_i = round(levels (r_i - low_i) / (high_i - low_i))`, with the ends of the pairs'
scores. CPSFT imitates both responses of every comparison behind their own ratings. CDPO asks, behind each prompt, for
targets c of the objectives under control (the others' tags say `any`) and prefers the response of the larger
`R = sum_i importance_i g_i`, with `g_i = -control |P_i - c_i|` under control and `g_i = P_i` else. Its reference is the
CPSFT model at the same tagged prompt, at DPO's coefficient `beta`: no J in the units of the objectives is optimised.
Asked for weights, the family controls the objectives of weight above 0, at `levels w_k / |w|_2`.
*Deviations from the official code*: its `control and -abs(P - c) or P` gives an exact match, whose distance is 0, the
raw rating instead of the best score; its distance in honesty is -|P| - c; a rating of 0 counts as missing; its tag for
helpfulness says "helplessness". Targets are the ratings of another response to the prompt, as there, or uniform. The
mix of cases is a probability of control per objective, not a table of counts.
Legend: K objectives.
Data: pairs. Fixed point: none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from align import checks
from align.data.comparisons import required_rows
from align.engines import tagged
from align.engines.on_policy.prompts import counted
from align.engines.points import check_preferences, inputs_of, part
from align.engines.problem import Problem
from align.engines.settings import TrainingConfig, check_training
from align.engines.tagged import Response
from align.engines.tagged_pairs import (
    Example,
    TaggedPair,
    build_pair_trainer,
    encoded,
    finish,
    frozen,
    imitate,
    pair_config,
)
from align.errors import UserError
from align.models import load_tokenizer
from align.policies.tagged import TaggedFamily, Tags, forbid, tag_ids
from align.preferences import Targets, Weights
from align.runs import Run, Workspace

TARGETS = ("responses", "uniform")
Ratings = tuple[float, ...]
Asked = tuple[float | None, ...]
ASKED_BY = (Weights, Targets)
FAMILY = TaggedFamily


@dataclass(frozen=True, kw_only=True)
class Config(tagged.TagFields, TrainingConfig):
    """Ratings, cases and both stages; learning rate, epochs and `beta` are those of DPO."""

    levels: int = 5  # the highest rating; the lowest is 0
    scores: str = "rows"  # rows: scores_a, scores_b of the comparisons; objectives: they are asked
    importance: tuple[float, ...] = ()  # of each objective in R; empty: 1 for all
    control: float = 1.0  # weight of the distance to a target
    controlled: float = 0.75  # probability that an objective of a prompt is under control
    targets: str = "responses"  # ratings of a response to the same prompt; or uniform over all ratings
    draws: int = 1  # targets for every comparison
    sft_epochs: float = 1.0
    sft_learning_rate: float = 1e-5
    epochs: float = 1.0
    max_length: int | None = None  # tokens kept of tagged prompt and response in DPO


def fit(config: Config, problem: Problem[Weights | Targets], run: Workspace) -> TaggedFamily:
    """One model for all weights, and for targets (in ratings). Prompts are not used.

    UserError on an impossible configuration, and when comparisons or their scores are missing.
    """
    names = check_preferences(problem, kinds=ASKED_BY)
    check_config(config, objectives=len(names))
    required_rows(problem.comparisons, method="cpo")
    problem, left_out = tagged.askable(problem)
    inputs = inputs_of(problem, rows=problem.comparisons or ())
    pairs = tagged.scored_pairs(problem, source=config.scores, ledger=run.ledger)
    rate = Rater.fit([r.scores for pair in pairs for r in pair], levels=config.levels)
    tags = tagged.make_tags(config, problem, low=0.0, high=float(config.levels), free=True)
    family = tagged.untrained_family(
        "cpo", problem, tags=tags, claim=describe(config), asked="controls_l2",
        low=(0.0,) * len(names), high=(float(config.levels),) * len(names),
    )  # fmt: skip

    def cpsft(place: Workspace) -> Mapping[str, object]:
        rng = np.random.default_rng([config.seed, 0])
        responses = [r for pair in pairs for r in pair]
        examples = [
            Example(r.prompt, under_control(rate(r.scores), share=config.controlled, rng=rng), r.ids) for r in responses
        ]
        with tagged.start_model(problem.reference, tags=tags, folder=place.folder, seed=config.seed) as start:
            return imitate(
                examples, config=replace(config, learning_rate=config.sft_learning_rate), model=start, tags=tags,
                run=place, epochs=config.sft_epochs,
            )  # fmt: skip

    def cdpo(place: Workspace) -> Mapping[str, object]:
        made, ties = controlled_pairs(pairs, rate=rate, config=config)
        metrics = train_pairs(made, ties=ties, config=config, start=first, tags=tags, run=place)
        told = tagged.told_apart(family, problem, place, seed=config.seed)
        return {**metrics, **counted(left_out), **told}

    first = part("cpo", "cpsft", run, config=config, inputs=inputs, body=cpsft)
    second = part("cpo", "cdpo", run, config=config, inputs={**inputs, "cpsft": first.fingerprint}, body=cdpo)
    tagged.used_up(first)
    return tagged.trained_family(family, second)


def check_config(config: Config, *, objectives: int) -> None:
    """UserError on a value that no run can mean."""
    check_training(config)
    checks.above_zero(config, "epochs", "sft_epochs", "sft_learning_rate", "control")
    checks.at_least(1, config, "draws", "levels", "max_length")
    checks.one_of(config, targets=TARGETS)
    if not 0 < config.controlled <= 1:
        raise UserError(f"controlled must be above 0 and at most 1, not {config.controlled:g}")
    if config.importance and (len(config.importance) != objectives or min(config.importance) < 0):
        raise UserError(f"importance needs a number of at least 0 for each of the {objectives} objectives")


def describe(config: Config) -> str:
    """One line: what is trained, which is no J."""
    return (
        f"no J: pairs ordered by R = sum of -{config.control:g} |rating - target| under control and the rating else, "
        f"DPO beta {config.beta:g} against the SFT model behind the same tags; weights control what they are above 0 "
        "for, at levels w / |w|_2"
    )


@dataclass(frozen=True)
class Rater:
    """Ratings 0 to `levels` of K scores between the lowest and highest that were seen; beyond them they are clipped."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    levels: int

    @classmethod
    def fit(cls, scores: Sequence[Sequence[float]], *, levels: int) -> Rater:
        """From raw scores; UserError when an objective has one score for everything."""
        low, high = (tuple(map(of, zip(*scores, strict=True))) for of in (min, max))
        for k, (a, b) in enumerate(zip(low, high, strict=True), 1):
            if not a < b:
                raise UserError(f"objective {k} scores all responses alike; drop it")
        return cls(low, high, levels)

    def __call__(self, scores: Sequence[float]) -> Ratings:
        """The ratings of one response."""
        shares = ((s - a) / (b - a) for s, a, b in zip(scores, self.low, self.high, strict=True))
        return tuple(float(round(min(max(share, 0.0), 1.0) * self.levels)) for share in shares)


def under_control(ratings: Ratings, *, share: float, rng: np.random.Generator) -> Asked:
    """The ratings, each with probability `share`, else None: free."""
    return tuple(p if rng.random() < share else None for p in ratings)


def score(ratings: Ratings, *, asked: Asked, importance: Sequence[float] = (), control: float = 1.0) -> float:
    """`R = sum_i importance_i g_i`, `g_i = -control |P_i - c_i|` where c_i is asked for, else P_i."""
    parts = (p if c is None else -control * abs(p - c) for p, c in zip(ratings, asked, strict=True))
    return sum(w * g for w, g in zip(importance or (1.0,) * len(ratings), parts, strict=True))


def controlled_pairs(
    pairs: Sequence[tuple[Response, Response]], *, rate: Rater, config: Config
) -> tuple[list[TaggedPair], int]:
    """`draws` targets for every comparison, its response of the larger R first, and how many had equal R (dropped)."""
    rng = np.random.default_rng([config.seed, 1])
    known: dict[str, list[Ratings]] = {}
    for pair in pairs:
        known.setdefault(pair[0].prompt, []).extend(rate(r.scores) for r in pair)
    made, ties = [], 0
    for a, b in pairs:
        for _ in range(config.draws):
            if config.targets == "uniform":
                target = tuple(float(rng.integers(config.levels + 1)) for _ in a.scores)
            else:
                target = known[a.prompt][rng.integers(len(known[a.prompt]))]
            asked = under_control(target, share=config.controlled, rng=rng)
            of_a, of_b = (
                score(rate(r.scores), asked=asked, importance=config.importance, control=config.control) for r in (a, b)
            )
            if of_a == of_b:
                ties += 1
                continue
            chosen, rejected = (a, b) if of_a > of_b else (b, a)
            made.append(TaggedPair(a.prompt, asked, chosen.ids, rejected.ids))
    if not made:
        raise UserError("every comparison is a tie under its targets; raise levels or draws")
    return made, ties


def train_pairs(
    pairs: Sequence[TaggedPair], *, ties: int, config: Config, start: Run, tags: Tags, run: Workspace
) -> dict[str, float | None]:
    """DPO from the CPSFT model, which is the reference as well, at the tagged prompt."""
    from datasets import Dataset

    tokenizer = load_tokenizer(start.path)
    settings = pair_config(config, epochs=config.epochs, max_length=config.max_length)
    rows = encoded(
        pairs, tokenizer=tokenizer, tags=tags, reference=forbid(frozen(str(start.path)), tag_ids(tokenizer, tags)),
        ledger=run.ledger, config=settings, untagged=False,
    )  # fmt: skip
    trainer = build_pair_trainer(
        settings, start=str(start.path), tags=tags, beta=config.beta, folder=run.folder, dataset=Dataset.from_list(rows)
    )
    loss = finish(trainer, label="cpo", run=run)
    return {"loss": loss, "pairs": len(rows), "pairs_dropped_by_length": len(pairs) - len(rows), "ties_dropped": ties}
