"""The four parts of a drop: seven cases in closed form, and the identities that hold for every policy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from align.functional.parts import Parts, References, exact_parts, optimum_value, policy_value, transported

BETA = 0.1


def log(*probabilities: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities))


def optimum(reward_N: np.ndarray, reference_N: np.ndarray) -> np.ndarray:
    logits_N = reference_N + reward_N / BETA
    return logits_N - math.log(np.exp(logits_N).sum())


def tilted(reference_N: np.ndarray, tilt_N: np.ndarray) -> np.ndarray:
    logits_N = reference_N + tilt_N
    return logits_N - math.log(np.exp(logits_N).sum())


@dataclass(frozen=True)
class Case:
    """A case in closed form and its parts to three decimals: surface, competing, carried over, mismatched, reward."""

    reward_N: np.ndarray
    references: References
    plain_N: np.ndarray
    shifted_N: np.ndarray
    expected: tuple[float, float, float, float, float]


def cases() -> dict[str, Case]:
    eight, spread = np.array([1.0, *[0.0] * 7]), log(0.6, *[0.4 / 7] * 7)
    uniform = log(*[1 / 8] * 8)
    two = np.array([1.0, 0.0])
    even, pulled, kept = log(0.5, 0.5), log(0.01, 0.99), log(0.99, 0.01)
    three, wrong = np.array([1.0, 0.5, 0.0]), np.array([1.0, 0.5, 0.9]) / BETA
    before, after = log(0.45, 0.45, 0.1), log(0.2, 0.2, 0.6)
    rare = log(0.3, 0.7)
    best = optimum(two, rare)
    flipped = log(0.9, 0.1)
    return {
        "unreadable code, optimal on both sides": Case(
            eight, References(spread, uniform, uniform), optimum(eight, spread), optimum(eight, uniform),
            (0.157, 0.0, 0.0, 0.0, 0.0),
        ),
        "pull of an instruction, behaviour unchanged": Case(
            two, References(even, even, pulled), kept, kept, (0.0, 0.391, 0.197, -0.201, 0.0)
        ),
        "perfect transfer of a wrong reward": Case(
            three, References(before, after, after), tilted(before, wrong), tilted(after, wrong),
            (0.081, 0.0, 0.337, 0.0, 0.446),
        ),
        "the untouched reference": Case(
            two, References(even, flipped, flipped), even, flipped, (-0.059, 0.0, -0.341, 0.0, -0.4)
        ),
        "opposed objectives, nothing shifted": Case(
            np.array([0.5, 0.5]), References(even, even, even), even, even, (0.0, 0.0, 0.0, 0.0, 0.0)
        ),
        "nothing transfers": Case(two, References(rare, rare, rare), best, rare, (0.0, 0.0, 0.0, 0.580, 0.700)),
        "half of the implicit reward transfers": Case(
            two, References(rare, rare, rare), best, tilted(rare, 0.5 * (best - rare)), (0.0, 0.0, 0.0, 0.006, 0.015)
        ),
    }  # fmt: skip


def parts_of(case: Case) -> Parts:
    return exact_parts(
        case.reward_N, plain_N=case.plain_N, shifted_N=case.shifted_N, references=case.references, beta=BETA
    )


@pytest.mark.parametrize("name", cases())
def test_closed_form_cases(name: str) -> None:
    case = cases()[name]
    parts = parts_of(case)
    shown = (parts.surface, parts.competing, parts.carried_over, parts.mismatched, parts.reward_drop)
    assert shown == pytest.approx(case.expected, abs=6e-4)


@pytest.mark.parametrize("name", cases())
def test_the_parts_sum_to_the_drop_in_j(name: str) -> None:
    case = cases()[name]
    before = policy_value(case.plain_N, case.reward_N, case.references.plain_N, beta=BETA)
    after = policy_value(case.shifted_N, case.reward_N, case.references.shifted_N, beta=BETA)
    assert parts_of(case).drop == pytest.approx(before - after, abs=1e-12)


def test_by_hand_pull_of_an_instruction() -> None:
    """Every part of the second case from its definition, in ordinary numbers."""
    best_plain = BETA * math.log(0.5 * math.exp(10) + 0.5)
    best_shifted = BETA * math.log(0.01 * math.exp(10) + 0.99)
    kl = lambda p, q: p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))  # noqa: E731
    regret_plain = best_plain - (0.99 - BETA * kl(0.99, 0.5))
    regret_shifted = best_shifted - (0.99 - BETA * kl(0.99, 0.01))
    mass = 0.01 * 0.99 / 0.5, 0.99 * 0.01 / 0.5
    carried = mass[0] / sum(mass)
    regret_carried = best_shifted - (carried - BETA * kl(carried, 0.01))
    parts = parts_of(cases()["pull of an instruction, behaviour unchanged"])
    assert parts.surface == pytest.approx(0.0, abs=1e-12)
    assert parts.competing == pytest.approx(best_plain - best_shifted, abs=1e-12)
    assert parts.carried_over == pytest.approx(regret_carried - regret_plain, abs=1e-12)
    assert parts.mismatched == pytest.approx(regret_shifted - regret_carried, abs=1e-12)


def random_log(generator: np.random.Generator, size: int = 6) -> np.ndarray:
    return np.log(generator.dirichlet(np.ones(size)))


@pytest.mark.parametrize("seed", range(20))
def test_what_transfers_whole_has_no_mismatched_part(seed: int) -> None:
    """The reference itself, the optimum, and any fixed tilt of the reference are their own transported policies."""
    generator = np.random.default_rng(seed)
    reward_N, tilt_N = generator.normal(size=6), generator.normal(size=6)
    plain_N, control_N, shifted_N = (random_log(generator) for _ in range(3))
    references = References(plain_N, control_N, shifted_N)
    for before_N, after_N in (
        (plain_N, shifted_N),
        (optimum(reward_N, plain_N), optimum(reward_N, shifted_N)),
        (tilted(plain_N, tilt_N), tilted(shifted_N, tilt_N)),
    ):
        parts = exact_parts(reward_N, plain_N=before_N, shifted_N=after_N, references=references, beta=0.3)
        assert parts.mismatched == pytest.approx(0.0, abs=1e-9)
        assert parts.surface + parts.competing == pytest.approx(
            optimum_value(reward_N, plain_N, beta=0.3) - optimum_value(reward_N, shifted_N, beta=0.3), abs=1e-12
        )


def test_a_policy_that_learned_nothing_under_the_shift_is_mismatched_alone() -> None:
    parts = parts_of(cases()["nothing transfers"])
    assert parts.mismatched == pytest.approx(parts.drop, abs=1e-12)


def test_outcomes_that_the_policy_never_produces_stay_at_zero() -> None:
    carried_N = transported(log(1.0, 0.0), plain_N=log(0.5, 0.5), shifted_N=log(0.2, 0.8))
    assert np.exp(carried_N) == pytest.approx([1.0, 0.0])


def test_mass_outside_the_reference_is_refused() -> None:
    references = References(log(1.0, 0.0), log(0.5, 0.5), log(0.5, 0.5))
    with pytest.raises(ValueError, match="the plain reference has none"):
        exact_parts(np.ones(2), plain_N=log(0.5, 0.5), shifted_N=log(0.5, 0.5), references=references, beta=BETA)
    with pytest.raises(ValueError, match="no outcome has mass"):
        transported(log(1.0, 0.0), plain_N=log(0.5, 0.5), shifted_N=log(0.0, 1.0))
    with pytest.raises(ValueError, match="beta must be positive"):
        exact_parts(np.ones(2), plain_N=log(1, 0), shifted_N=log(1, 0), references=references, beta=0.0)
