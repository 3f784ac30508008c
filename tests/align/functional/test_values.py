"""V*_w by hand, the regression on it against the enumerated optimum, and draws by shares."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from align.functional.draws import systematic_draws
from align.functional.values import optimal_advantages, optimal_values, squared_residuals

CORNERS = np.array([[[1.0, 0.0], [0.0, 1.0]]])  # one prompt, two samples, each the best of one objective


@pytest.mark.parametrize("beta", [0.5, 2.0])
@pytest.mark.parametrize("w", [0.0, 0.25, 1.0])
def test_two_samples_by_hand(w: float, beta: float) -> None:
    """w . r is w for the first sample and 1 - w for the second: V = beta log of the mean of their exponentials."""
    (value,) = optimal_values(CORNERS, np.array([[w, 1 - w]]), beta=beta)
    assert value == pytest.approx(beta * math.log((math.exp(w / beta) + math.exp((1 - w) / beta)) / 2))
    assert 0.5 < value < max(w, 1 - w)  # above the mean of w . r, below the best
    advantages = optimal_advantages(CORNERS, np.array([[w, 1 - w]]), beta=beta)
    np.testing.assert_allclose(advantages, [[w - value, 1 - w - value]])


def test_listed_responses_count_by_their_mass_and_minus_infinity_leaves_one_out() -> None:
    """Masses need not be normalised: 0.3 and 0.9 are 1/4 and 3/4. The sample left out would win by far."""
    mass = np.log([[0.3, 0.9]])
    (value,) = optimal_values(CORNERS, np.array([[1.0, 0.0]]), beta=0.5, log_mass_MN=mass)
    assert value == pytest.approx(0.5 * math.log(0.25 * math.exp(2) + 0.75))
    more = np.array([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    padded = np.array([[0.0, 0.0, -np.inf]])
    np.testing.assert_allclose(
        optimal_values(more, np.array([[0.25, 0.75]]), beta=0.5, log_mass_MN=padded),
        optimal_values(CORNERS, np.array([[0.25, 0.75]]), beta=0.5),
    )


def test_each_prompt_has_its_own_weights() -> None:
    values = optimal_values(CORNERS.repeat(2, 0) * [[[1.0, 3.0]]], np.array([[1.0, 0.0], [0.0, 1.0]]), beta=1.0)
    np.testing.assert_allclose(values, [math.log((math.e + 1) / 2), math.log((math.e**3 + 1) / 2)])


def test_what_no_value_is_of_is_refused() -> None:
    for beta, rewards in ((0.0, CORNERS), (1.0, CORNERS * np.nan)):
        with pytest.raises(ValueError, match="beta must be above 0"):
            optimal_values(rewards, np.array([[0.5, 0.5]]), beta=beta)


def test_a_residual_by_hand() -> None:
    """pi = 1/2, ref = 1/4: beta times one bit, less the advantage. A reversed KL or advantage gives 0.2386 squared."""
    logp, reference, advantage = (torch.tensor([x]) for x in (math.log(0.5), math.log(0.25), 0.1))
    found = squared_residuals(logp, reference_B=reference, advantage_B=advantage, beta=0.2)
    assert found.item() == pytest.approx((0.2 * math.log(2) - 0.1) ** 2)


@pytest.mark.parametrize("w", [0.0, 0.3, 1.0])
def test_the_minimiser_is_the_optimum_whatever_the_law_of_the_responses(w: float) -> None:
    """All four responses listed with their masses: gradient steps from the reference end at ref exp(w . r / beta)."""
    beta, reference = 0.5, np.array([0.4, 0.3, 0.2, 0.1])
    rewards = np.array([[[1.0, 0.2], [0.0, 0.9], [0.5, 0.5], [-1.0, 2.0]]])
    scalar = rewards[0] @ [w, 1 - w]
    optimum = reference * np.exp(scalar / beta)
    optimum /= optimum.sum()
    found = optimal_advantages(rewards, np.array([[w, 1 - w]]), beta=beta, log_mass_MN=np.log(reference)[None])
    advantage, ref = torch.tensor(found[0]), torch.tensor(reference).log()
    law = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.double)
    logits = ref.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        logp = logits.log_softmax(-1)
        loss: torch.Tensor = (law * squared_residuals(logp, reference_B=ref, advantage_B=advantage, beta=beta)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)
    assert closure().item() < 1e-12
    np.testing.assert_allclose(logits.detach().softmax(-1).numpy(), optimum, atol=1e-5)


# --------------------------------------------------------------------------------------------------- draws by shares


def test_systematic_draws_come_up_by_their_shares_to_within_one() -> None:
    shares = np.array([[0.5, 0.0, 0.3, 0.2], [0.0, 0.0, 0.0, 1.0]])
    rng, counts = np.random.default_rng(0), np.zeros(4)
    for _ in range(2000):
        drawn = systematic_draws(shares, count=4, rng=rng)
        assert drawn.shape == (2, 4) and (drawn[1] == 3).all()
        each = np.bincount(drawn[0], minlength=4)
        assert (np.abs(each - 4 * shares[0]) < 1).all() and each[1] == 0
        counts += each
    np.testing.assert_allclose(counts / counts.sum(), shares[0], atol=0.01)  # 0.8 draws of the last: its sd is 0.0022


def test_shares_that_are_none_are_refused() -> None:
    for shares, count in (([[0.5, 0.4]], 1), ([[1.5, -0.5]], 1), ([[0.5, 0.5]], 0)):
        with pytest.raises(ValueError, match="cannot draw"):
            systematic_draws(np.array(shares), count=count, rng=np.random.default_rng(0))
