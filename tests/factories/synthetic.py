"""Small exact worlds in numpy, and the answers and summaries they give: shared by the tests of tables and report.

A prompt has A enumerable responses with rewards; a row tilts the reference by `strength * w.r / beta`, so strength 1 is
the optimum, 0 the reference model, above 1 an overspender. Shapes: A responses, K objectives, M preferences.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from align.data.answers import ExactAnswer

BETA = 0.1


@dataclass(frozen=True)
class Prompt:
    item: str
    text: str
    ref_A: np.ndarray
    rewards_AK: np.ndarray


def make_prompt(item: str, text: str, *, objectives: int = 2, arms: int = 24, conflict: float = 0.7) -> Prompt:
    """Rewards in [0, 1]; every further objective opposes the first by `conflict`. A function of item and objectives."""
    rng = np.random.default_rng(zlib.crc32(item.encode()))
    first_A = rng.uniform(size=arms)
    columns = [first_A]
    for _ in range(objectives - 1):
        columns.append(conflict * (1 - first_A) + (1 - conflict) * rng.uniform(size=arms))
    return Prompt(item, text, rng.dirichlet(np.full(arms, 0.7)) * 0.99 + 0.01 / arms, np.stack(columns, axis=1))


def tilt(prompt: Prompt, weights_K: Sequence[float], *, strength: float, beta: float = BETA) -> np.ndarray:
    logits_A = np.log(prompt.ref_A) + strength * (prompt.rewards_AK @ np.asarray(weights_K)) / beta
    p_A = np.exp(logits_A - logits_A.max())
    return p_A / p_A.sum()


def kl(p_A: np.ndarray, q_A: np.ndarray) -> float:
    return float(np.sum(p_A * np.log(np.maximum(p_A, 1e-300) / q_A)))


def exact_answer(prompt: Prompt, p_A: np.ndarray, *, row: str, weights_K: Sequence[float], shift: str) -> ExactAnswer:
    """The exact answer of any policy p over the responses."""
    weights, best_A = np.asarray(weights_K, dtype=float), tilt(prompt, weights_K, strength=1.0)
    values, values_star = p_A @ prompt.rewards_AK, best_A @ prompt.rewards_AK
    spent, spent_star = kl(p_A, prompt.ref_A), kl(best_A, prompt.ref_A)
    value, best = float(weights @ values) - BETA * spent, float(weights @ values_star) - BETA * spent_star
    return ExactAnswer(
        row=row, preference=tuple(float(w) for w in weights), shift=shift, item=prompt.item, prompt=prompt.text,
        values=tuple(values.tolist()), kl=spent, J=value, J_star=best, regret=best - value,
        values_star=tuple(values_star.tolist()), kl_star=spent_star, malformed=0.0,
    )  # fmt: skip


def with_parts(away: Sequence[ExactAnswer], home: Sequence[ExactAnswer], *, adversarial: bool) -> list[ExactAnswer]:
    """Answers under a shift that leaves the reference as it is: the transported policy has the plain prompt's regret.

    An adversarial shift's control has the plain prompt's optimum; otherwise the shift is its own control.
    """
    plain = {(a.row, a.preference, a.item): a for a in home}
    return [
        replace(
            a, regret_carried=plain[a.row, a.preference, a.item].regret,
            J_star_control=plain[a.row, a.preference, a.item].J_star if adversarial else a.J_star,
        )
        for a in away
    ]  # fmt: skip


def grid(objectives: int, steps: int) -> list[tuple[float, ...]]:
    if objectives == 2:
        return [(i / steps, 1 - i / steps) for i in range(steps + 1)]
    return [(i / steps, j / steps, (steps - i - j) / steps) for i in range(steps + 1) for j in range(steps + 1 - i)]


def exact_answers(
    strengths: Mapping[str, float],
    *,
    prompts: Sequence[Prompt],
    shift: str = "none",
    preferences: Sequence[Sequence[float]] = tuple(grid(2, 4)),
) -> list[ExactAnswer]:
    """Answers of rows given as strengths, on prompts, under one shift name."""
    return [
        exact_answer(prompt, tilt(prompt, w, strength=strength), row=row, weights_K=w, shift=shift)
        for row, strength in strengths.items()
        for w in preferences
        for prompt in prompts
    ]


def topics(count: int, *, start: int = 0, objectives: int = 2, spelling: str = "plain", **kwargs: Any) -> list[Prompt]:
    """Two prompts (verbs) per topic; both have the topic's rewards."""
    return [
        make_prompt(f"topic {i}", f"{spelling} {verb} topic {i} :", objectives=objectives, **kwargs)
        for i in range(start, start + count)
        for verb in ("explain", "describe")
    ]


def front_at_kl(prompts: Sequence[Prompt], *, objectives: int = 2, steps: int = 200) -> Callable[[float], np.ndarray]:
    """Dense exact front whose every point spends the given mean KL, the temperature re-solved per preference."""

    def point(weights: Sequence[float], strength: float) -> tuple[np.ndarray, float]:
        tables = [(tilt(prompt, weights, strength=strength), prompt) for prompt in prompts]
        values = np.mean([p_A @ prompt.rewards_AK for p_A, prompt in tables], axis=0)
        return values, float(np.mean([kl(p_A, prompt.ref_A) for p_A, prompt in tables]))

    def solve(target: float) -> np.ndarray:
        rows = []
        for weights in grid(objectives, steps):
            low, high = 1e-4, 1e4
            for _ in range(40):
                middle = math.sqrt(low * high)
                low, high = (middle, high) if point(weights, middle)[1] < target else (low, middle)
            rows.append(point(weights, low)[0])
        return np.array(rows)

    return solve
