"""Losses against values derived by hand and against the optimum that they are meant to have."""

from __future__ import annotations

import math

import pytest
import torch

from align.errors import UserError
from align.functional.losses import modpo_reference_shift
from factories.formulae import bradley_terry_loss, dpo_loss, kl_penalized, modpo_loss, rloo_advantages


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_dpo_value_by_hand() -> None:
    # chosen ratio -1 + 2 = 1, rejected ratio -3 + 2.5 = -0.5, so the logit is 0.5 * 1.5 = 0.75
    # and -log sigmoid(0.75) = log(1 + e^-0.75) = log 1.4723666 = 0.3868710
    loss = dpo_loss(t(-1), rejected_B=t(-3), ref_chosen_B=t(-2), ref_rejected_B=t(-2.5), beta=0.5)
    assert loss.tolist() == pytest.approx([0.3868710], abs=1e-6)
    swapped = dpo_loss(t(-3), rejected_B=t(-1), ref_chosen_B=t(-2.5), ref_rejected_B=t(-2), beta=0.5)
    assert swapped.tolist() == pytest.approx([0.3868710 + 0.75], abs=1e-6)  # log(1 + e^x) = x + log(1 + e^-x)


def test_dpo_keeps_examples_apart_and_falls_as_the_chosen_rises() -> None:
    chosen = t(-1, -1).requires_grad_()
    rejected = t(-1, -2).requires_grad_()
    losses = dpo_loss(chosen, rejected_B=rejected, ref_chosen_B=t(-1, -1), ref_rejected_B=t(-1, -1), beta=2.0)
    assert losses.shape == (2,)
    assert losses[0].item() == pytest.approx(math.log(2))
    losses.sum().backward()
    assert (chosen.grad < 0).all() and (rejected.grad > 0).all()
    assert chosen.grad[0].item() == pytest.approx(-1.0)  # -beta sigmoid(0)


def test_dpo_refuses_beta_zero() -> None:
    with pytest.raises(ValueError, match="beta"):
        dpo_loss(t(0), rejected_B=t(0), ref_chosen_B=t(0), ref_rejected_B=t(0), beta=0.0)


LOGPS = {"rejected_B": t(-3, -1), "ref_chosen_B": t(-2, -2), "ref_rejected_B": t(-2.5, -3)}


def modpo(w0: float, rest: list[float], *, tau: float = 1.0, beta: float = 0.5) -> torch.Tensor:
    margins = {"margin_chosen_BR": t(1, 3, 0.5, 0).reshape(2, 2), "margin_rejected_BR": t(2, 1, 0, 0).reshape(2, 2)}
    return modpo_loss(t(-1, -2), **LOGPS, **margins, main_weight=w0, rest_weights_R=rest, beta=beta, tau=tau)


def test_modpo_value_by_hand() -> None:
    # Row 0: beta dlogratio = 0.5 * 1.5 = 0.75; margin 0.25 * (1 - 2) + 0.25 * (3 - 1) = 0.25; (0.75 - 0.25) / 0.5 = 1.
    # Row 1: ratios 0 and 2, so 0.5 * (0 - 2) = -1; margin 0.25 * 0.5 = 0.125; (-1 - 0.125) / 0.5 = -2.25.
    expected = [math.log1p(math.exp(-1)), math.log1p(math.exp(2.25))]
    assert modpo(0.5, [0.25, 0.25]).tolist() == pytest.approx(expected, abs=1e-12)
    # The annotator's temperature divides the logit, as the main weight does.
    expected = [math.log1p(math.exp(-5)), math.log1p(math.exp(11.25))]
    assert modpo(0.5, [0.25, 0.25], tau=0.2).tolist() == pytest.approx(expected, abs=1e-12)


def test_modpo_with_all_weight_on_the_main_objective_is_dpo() -> None:
    assert torch.equal(modpo(1.0, [0.0, 0.0]), dpo_loss(t(-1, -2), **LOGPS, beta=0.5))


def test_modpo_of_three_objectives_with_a_zero_weight_is_that_of_two() -> None:
    two = modpo_loss(
        t(-1, -2),
        **LOGPS,
        margin_chosen_BR=t(1, 0.5).reshape(2, 1),
        margin_rejected_BR=t(2, 0).reshape(2, 1),
        main_weight=0.6,
        rest_weights_R=[0.4],
        beta=0.5,
    )
    assert modpo(0.6, [0.4, 0.0]).tolist() == pytest.approx(two.tolist(), abs=1e-12)


def test_modpo_ignores_a_constant_of_the_prompt_in_the_margins() -> None:
    def loss(constant: float) -> torch.Tensor:
        margins = {
            "margin_chosen_BR": t(1, 3).reshape(2, 1) + constant,
            "margin_rejected_BR": t(0, 1).reshape(2, 1) + constant,
        }
        return modpo_loss(t(-1, -2), **LOGPS, **margins, main_weight=0.5, rest_weights_R=[0.5], beta=0.1)

    assert loss(7.0).tolist() == pytest.approx(loss(0.0).tolist(), abs=1e-12)


def test_modpo_is_dpo_against_a_shifted_reference() -> None:
    chosen, rejected = t(1, 3, 0.5, 0).reshape(2, 2), t(2, 1, 0, 0).reshape(2, 2)
    weights, w0, tau, beta = [0.3, 0.2], 0.5, 0.2, 0.1
    shifted = dpo_loss(
        t(-1, -2),
        rejected_B=LOGPS["rejected_B"],
        ref_chosen_B=LOGPS["ref_chosen_B"] + modpo_reference_shift(chosen, rest_weights_R=weights, beta=beta),
        ref_rejected_B=LOGPS["ref_rejected_B"] + modpo_reference_shift(rejected, rest_weights_R=weights, beta=beta),
        beta=beta / (w0 * tau),
    )
    assert shifted.tolist() == pytest.approx(modpo(w0, weights, tau=tau, beta=beta).tolist(), rel=1e-12)


@pytest.mark.parametrize("weight", [0.0, -0.1])
def test_modpo_refuses_a_main_objective_without_weight(weight: float) -> None:
    with pytest.raises(UserError, match="main objective"):
        modpo(weight, [0.5, 0.5])


def test_modpo_refuses_a_wrong_number_of_weights() -> None:
    with pytest.raises(ValueError, match="1 weights"):
        modpo(0.5, [0.5])


def test_the_minimiser_of_modpo_is_the_optimum_of_the_weighted_sum() -> None:
    """Labels of the main objective only, exact margins: the population minimiser is ref exp(w.r / beta)."""
    beta, tau, weights = 0.3, 0.4, (0.4, 0.35, 0.25)
    reward_NK = torch.tensor([[1.0, 0, 0.2], [0.3, 0.8, 0.1], [0, 0.5, 0.9], [0.6, 0.6, 0]], dtype=torch.float64)
    ref_N = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64).log()
    optimum_N = (ref_N + reward_NK @ torch.tensor(weights, dtype=torch.float64) / beta).softmax(-1)
    first, second = torch.tensor([(i, j) for i in range(4) for j in range(4) if i != j]).T
    win_B = torch.sigmoid((reward_NK[first, 0] - reward_NK[second, 0]) / tau)
    logits_N = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [logits_N], max_iter=300, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        solver.zero_grad()
        logp_N = logits_N.log_softmax(-1)
        losses_B = modpo_loss(
            logp_N[first],
            rejected_B=logp_N[second],
            ref_chosen_B=ref_N[first],
            ref_rejected_B=ref_N[second],
            margin_chosen_BR=reward_NK[first, 1:],
            margin_rejected_BR=reward_NK[second, 1:],
            main_weight=weights[0],
            rest_weights_R=weights[1:],
            beta=beta,
            tau=tau,
        )
        loss = (win_B * losses_B).mean()
        loss.backward()
        return loss

    solver.step(closure)
    assert logits_N.softmax(-1).tolist() == pytest.approx(optimum_N.tolist(), abs=1e-6)


def test_bradley_terry_by_hand() -> None:
    # (1.5 - 1) / 0.25 = 2: -log sigmoid(2) = log(1 + e^-2) = 0.1269280
    assert bradley_terry_loss(t(1.5), rejected_B=t(1), tau=0.25).tolist() == pytest.approx([0.1269280], abs=1e-6)
    assert bradley_terry_loss(t(1), rejected_B=t(1.5), tau=0.25).tolist() == pytest.approx([2.1269280], abs=1e-6)
    # A tenth of the labels flipped: 0.9 * 0.1269280 + 0.1 * 2.1269280
    smoothed = bradley_terry_loss(t(1.5), rejected_B=t(1), tau=0.25, smoothing=0.1)
    assert smoothed.tolist() == pytest.approx([0.3269280], abs=1e-6)
    with pytest.raises(ValueError, match="tau"):
        bradley_terry_loss(t(1), rejected_B=t(0), tau=0)


def test_leave_one_out_by_hand() -> None:
    # The others' means: (2 + 6) / 2 = 4, (1 + 6) / 2 = 3.5, (1 + 2) / 2 = 1.5
    advantages = rloo_advantages(torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]]))
    assert advantages.tolist() == [pytest.approx([-3.0, -1.5, 4.5]), pytest.approx([0.0, 0.0, 0.0], abs=1e-6)]
    with pytest.raises(ValueError, match="two responses"):
        rloo_advantages(torch.ones(3, 1))


def test_the_kl_penalty_is_subtracted() -> None:
    penalised = kl_penalized(t(1, 1), logp_B=t(-1, -3), ref_B=t(-2, -2), beta=0.5)
    assert penalised.tolist() == pytest.approx([0.5, 1.5])  # a response made likelier than in the reference pays
