"""The optimum under learned rewards, judged in gold, from the reference's mass on whole responses alone.

All malformed leaves of a prompt have one reward, so one number holds their mass and nothing is approximated.
Legend: N responses (and one more place for the malformed), K objectives, W preferences, P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from align.preferences import Weights
from align.testbed.responses import gold_rewards
from align.testbed.world import Prompt, World

Array = NDArray[np.float64]
PRESSURES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)  # of the world's 1 / beta


@dataclass(frozen=True)
class Masses:
    """Of one prompt: (N + 1,) log-masses of the reference, malformed last, and (N + 1, K) gold rewards."""

    log_mass: Array
    gold: Array


def masses_of(world: World, prompt: Prompt, log_mass_N: Array) -> Masses:
    """From the reference's log-probability of every well-formed response: what is left of its mass is malformed."""
    malformed = max(1.0 - float(np.exp(log_mass_N).sum()), 1e-12)
    gold_NK = np.asarray(gold_rewards(world, prompt.topic), dtype=np.float64)
    lowest_1K = np.full((1, world.config.objectives), world.config.malformed_reward)
    return Masses(np.append(log_mass_N, np.log(malformed)), np.concatenate([gold_NK, lowest_1K]))


@dataclass(frozen=True)
class Judged:
    """Means over prompts: (W,) regrets of the optimum under the rewards, of the reference, KL in nats, and what the
    rewards promise and gold gives over the reference, `E[w . r] - E_ref[w . r]`.
    """

    regret_W: Array
    reference_W: Array
    kl_W: Array
    promised_W: Array
    gained_W: Array

    @property
    def share(self) -> float:
        """Mean regret over preferences, over the reference model's."""
        return float(self.regret_W.mean() / self.reference_W.mean())


def judge(
    prompts: Sequence[Masses], learned: Sequence[Array], weights: Sequence[Weights], *, beta: float, malformed: float,
    pressure: float = 1.0,
) -> Judged:  # fmt: skip
    """The policy `ref exp(pressure * w . learned / beta)`, judged at `beta`; `learned` has (N, K) rewards a prompt."""
    rows_PW5 = []
    for masses, learned_NK in zip(prompts, learned, strict=True):
        for weight in weights:
            w_K = np.array(weight.values)
            gold, own = masses.gold @ w_K, learned_NK @ w_K
            own = np.append(own, own.min() + malformed)  # as LearnedTable has it
            best = beta * _log_sum(masses.log_mass + gold / beta)
            log_p = masses.log_mass + pressure * own / beta
            log_p = log_p - _log_sum(log_p)
            p, ref = np.exp(log_p), np.exp(masses.log_mass)
            kl = float(p @ (log_p - masses.log_mass))
            rows_PW5.append((best - (p @ gold - beta * kl), best - ref @ gold, kl, (p - ref) @ own, (p - ref) @ gold))
    means_5W = np.array(rows_PW5).reshape(len(prompts), len(weights), 5).mean(0).T
    return Judged(*means_5W)


def _log_sum(logits: Array) -> float:
    top = logits.max()
    return float(top + np.log(np.exp(logits - top).sum()))
