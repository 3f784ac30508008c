"""Random tabular worlds of two objectives, small enough to enumerate: trees of sequences, and rewards of low rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from align.testbed.theory.fixed_points import Tree


@dataclass(frozen=True)
class SequenceWorld:
    """Random prompts whose responses are all sequences of `length` words out of `words`, scored by two objectives.

    `scales`: standard deviations of the two rewards; `spread`: each prompt's rewards are further multiplied by
    exp(uniform(-spread, spread)), each objective on its own; `correlation` between the two; `binary`: rewards in
    {0, 1}, of success rates between 0.1 and 0.6 of the responses. Reference: Dirichlet(1) at every prefix.
    """

    name: str
    words: int
    length: int
    prompts: int
    beta: float
    correlation: float = -0.5
    scales: tuple[float, float] = (1.0, 1.0)
    spread: float = 0.0
    binary: bool = False
    group: int | None = None  # also solved in groups of this size


@dataclass(frozen=True)
class LowRankWorld:
    """Prompts x responses with log-linear policies of rank `rank`; rewards of rank `latent` plus noise, correlated."""

    name: str
    rank: int
    latent: int
    noise: float
    prompts: int = 8
    responses: int = 12
    beta: float = 1.0
    correlation: float = -0.5


def draw_trees(world: SequenceWorld, *, draws: int, seed: int) -> Tree:
    """`draws` independent worlds as one tree of leading axes (draws, prompts)."""
    shape = (world.prompts,)
    logref: list[list[np.ndarray]] = [[] for _ in range(world.length)]
    finals = []
    for draw in range(draws):
        rng = np.random.default_rng([seed, sum(world.name.encode()), draw])
        for d in range(world.length):
            logref[d].append(np.log(rng.dirichlet(np.ones(world.words), size=(*shape, world.words**d))))
        finals.append(_rewards(world, rng))
    empty = [np.zeros((draws, *shape, world.words**d, world.words, 2)) for d in range(world.length - 1)]
    return Tree(tuple(np.stack(x) for x in logref), (*empty, np.stack(finals)), world.words)


def _rewards(world: SequenceWorld, rng: np.random.Generator) -> np.ndarray:
    """(P, n, words, 2) rewards of the last tokens."""
    leaves = world.words**world.length
    if world.binary:
        r = np.zeros((world.prompts, leaves, 2))
        for prompt in range(world.prompts):
            for k in range(2):
                right = max(1, round(leaves * rng.uniform(0.1, 0.6)))
                r[prompt, rng.permutation(leaves)[:right], k] = 1.0
    else:
        first, other = rng.normal(size=(2, world.prompts, leaves))
        second = world.correlation * first + np.sqrt(1 - world.correlation**2) * other
        r = np.stack([first, second], axis=-1) * np.array(world.scales)
        r = r * np.exp(rng.uniform(-world.spread, world.spread, size=(world.prompts, 1, 2)))
    return r.reshape(world.prompts, leaves // world.words, world.words, 2)


def latent_rewards(world: LowRankWorld, rng: np.random.Generator) -> list[np.ndarray]:
    """Each objective's rewards (P, responses): of rank `latent`, correlated, plus noise."""
    prompts = rng.normal(size=(world.prompts, world.latent))
    first, other = rng.normal(size=(2, world.latent, world.responses)) / np.sqrt(world.latent)
    second = world.correlation * first + np.sqrt(1 - world.correlation**2) * other
    shape = (2, world.prompts, world.responses)
    return list(np.stack([prompts @ first, prompts @ second]) + world.noise * rng.normal(size=shape))
