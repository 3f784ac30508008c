"""Directional preference alignment (DPA, Wang et al. 2024): SFT on the best of n samples in the prompt's direction

A preference is a unit vector v of objective space, whose coordinates begin the prompt. Each round draws a
direction for every prompt, n responses, keeps `argmax v . r`, and trains on (x, v, y) with those of the earlier rounds.
The first round's responses are the reference's, at the prompt without tags; later ones are the model's own, behind
them. Asked for weights w, the family goes in the direction `w / |w|`, along which `v . r` orders responses as w . r.

There is no KL to the reference and no J: a round's fixed point is best-of-n of the round before, whose KL to it is at
most `log n - (n - 1) / n` nats, so that rounds and n say how far the policy goes.
*Deviations*: the training code was never released; the text's steps are followed, with tags of two decimals instead of
a sentence with integers of 0 to 100, raw objectives instead of one regression model's scale, and directions uniform on
the positive orthant (or on a cone: theirs are within 45 degrees of helpfulness, negative verbosity included).
Legend: K objectives.
Data: prompts. Fixed point: imitation of the best of n in the direction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from align import checks
from align.engines import tagged
from align.engines.on_policy.prompts import counted
from align.engines.points import check_preferences, inputs_of, part
from align.engines.problem import Problem
from align.engines.settings import TrainingConfig, check_training
from align.engines.tagged import Response
from align.engines.tagged_pairs import Example, frozen, imitate
from align.errors import UserError
from align.functional.draws import draw_directions
from align.models import load_tokenizer
from align.policies.tagged import TaggedFamily, Tags, forbid, tag_ids
from align.preferences import Direction, Weights
from align.runs import Run, Workspace

ASKED_BY = (Weights, Direction)
FAMILY = TaggedFamily


@dataclass(frozen=True, kw_only=True)
class Config(tagged.TagFields, TrainingConfig):
    """Rounds, samples and directions; `beta` has no part in it. The scheduler runs within each round."""

    rounds: int = 3
    prompts_per_round: int = 512
    n: int = 8  # responses per prompt, of which the best is kept
    epochs: float = 2.0  # of each round, over its own examples and those of earlier rounds
    axis: tuple[float, ...] = ()  # of the cone of directions; empty: the diagonal
    max_angle: float | None = None  # degrees between axis and directions; null: the whole positive orthant
    max_completion_length: int = 64  # tokens, the end token included
    sample_batch_size: int = 256


def fit(config: Config, problem: Problem[Weights | Direction], run: Workspace) -> TaggedFamily:
    """One model for all directions and weights, from samples on the prompts, else on those of the comparisons.

    UserError on an impossible configuration and without prompts.
    """
    names = check_preferences(problem, kinds=ASKED_BY)
    check_config(config, objectives=len(names))
    problem, left_out = tagged.askable(problem)
    rows = tagged.prompts_to_ask(problem, method="dpa")
    inputs = inputs_of(problem, rows=rows)
    tags = tagged.make_tags(config, problem, low=lowest(config, len(names)), high=1.0)
    family = tagged.untrained_family("dpa", problem, tags=tags, claim=describe(config), asked="direction")

    def body(place: Workspace, *, done: tuple[Run, ...]) -> Mapping[str, object]:
        made = one_round(place, config=config, problem=replace(problem, prompts=rows), tags=tags, done=done)
        last = len(done) + 1 == config.rounds
        told = tagged.told_apart(family, problem, place, seed=config.seed) if last else {}
        return {**made, **counted(left_out), **told}

    done: list[Run] = []
    for number in range(1, config.rounds + 1):
        following = part(
            "dpa", f"round-{number}", run, config=config,
            inputs={**inputs, **({"previous": done[-1].fingerprint} if done else {})},
            body=partial(body, done=tuple(done)),
        )  # fmt: skip
        if done:
            tagged.used_up(done[-1])
        done.append(following)
    return tagged.trained_family(family, done[-1])


def check_config(config: Config, *, objectives: int) -> None:
    """UserError on a value that no run can mean."""
    check_training(config)
    checks.above_zero(config, "epochs")
    checks.at_least(1, config, "rounds", "prompts_per_round", "n", "max_completion_length", "sample_batch_size")
    if config.axis and (len(config.axis) != objectives or not any(config.axis) or config.max_angle is None):
        raise UserError(f"axis needs one number for each of the {objectives} objectives, not all 0, and a max_angle")
    if config.max_angle is not None and not 0 < config.max_angle <= 180:
        raise UserError(f"max_angle must be null (the positive orthant) or in (0, 180], not {config.max_angle:g}")


def describe(config: Config) -> str:
    """One line: the fixed point of the training, which is no optimum of J."""
    far = config.rounds * (math.log(config.n) - (config.n - 1) / config.n)
    return (
        f"no J: likelihood of the best of {config.n} by v.r, drawn from the round before, {config.rounds} rounds (KL "
        f"about {far:.3g} nats at most), whatever beta; weights ask for v = w / |w|_2"
    )


def cone(config: Config, objectives: int) -> tuple[float, ...]:
    """The axis of the cone as a unit vector."""
    axis = config.axis or (1.0,) * objectives
    return tuple(a / math.hypot(*axis) for a in axis)


def lowest(config: Config, objectives: int) -> float:
    """The lowest coordinate of a direction, rounded down to a tenth: 0 on the positive orthant."""
    if config.max_angle is None:
        return 0.0
    widest = max(math.acos(max(-1.0, min(1.0, a))) for a in cone(config, objectives)) + math.radians(config.max_angle)
    return min(0.0, math.floor(10 * math.cos(min(widest, math.pi)) + 1e-9) / 10)


def along(response: Response, direction: Sequence[float]) -> float:
    """`v . r` of a response."""
    return sum(v * r for v, r in zip(direction, response.scores, strict=True))


def best_of(responses: Sequence[Response], *, direction: Sequence[float]) -> Response:
    """The response of the largest `v . r`, the first of equal ones (they are drawn alike)."""
    return max(responses, key=lambda response: along(response, direction))


def one_round(
    place: Workspace, *, config: Config, problem: Problem[Weights | Direction], tags: Tags, done: Sequence[Run]
) -> dict[str, object]:
    """Draw directions and responses, keep the best, train on them and on those of the rounds `done`; metrics."""
    previous, prompts, objectives = done[-1] if done else None, problem.prompts or (), problem.objectives
    rng = np.random.default_rng([config.seed, len(done) + 1])
    source = problem.reference if previous is None else str(previous.path)
    model, tokenizer = frozen(source), load_tokenizer(source)
    if previous is not None:
        forbid(model, tag_ids(tokenizer, tags))
    order = tagged.passes(len(prompts), count=config.prompts_per_round, rng=rng)
    directions = draw_directions(len(order), axis=cone(config, len(objectives)), max_angle=config.max_angle, rng=rng)
    drawn = tagged.sample(
        model, tokenizer,
        asked=[
            (prompts[i], None if previous is None else v.values)
            for i, v in zip(order, directions, strict=True) for _ in range(config.n)
        ],
        tags=tags, objectives=objectives, config=config, seed=int(rng.integers(2**31)), ledger=place.ledger,
    )  # fmt: skip
    groups = [drawn[i : i + config.n] for i in range(0, len(drawn), config.n)]
    best = [best_of(group, direction=v.values) for group, v in zip(groups, directions, strict=True)]
    new = [Example(r.prompt, v.values, r.ids) for r, v in zip(best, directions, strict=True)]
    tagged.keep(new, place.folder)
    earlier = [e for run in done for e in tagged.kept(run.path, Example)]
    with ExitStack() as stack:
        if previous is None:
            start = tagged.start_model(problem.reference, tags=tags, folder=place.folder, seed=config.seed)
            source = stack.enter_context(start)
        metrics = imitate(
            [*earlier, *new], config=config, model=source, tags=tags, run=place, epochs=config.epochs,
        )  # fmt: skip
    values = [[along(r, v.values) for r in group] for group, v in zip(groups, directions, strict=True)]
    gain = sum(max(group) - sum(group) / len(group) for group in values) / len(values)
    return {**metrics, "gain_of_best": gain}
