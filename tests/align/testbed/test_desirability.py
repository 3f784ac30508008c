"""KTO's fixed point on pairs taken apart: shares of wins by hand, the solution against Adam on the written loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from align.testbed.theory.desirability import couples, kto, net_wins

TOTAL = np.array([[1.0, 0.2, -0.5, -1.2, 0.4], [-0.3, 2.0, 0.1, 0.5, -0.9]])  # P 2, R 5
LOGREF = np.log([[0.3, 0.25, 0.2, 0.15, 0.1], [0.4, 0.05, 0.25, 0.2, 0.1]])


def test_couples_are_two_different_replies_and_wins_are_the_labels() -> None:
    """Of .5, .3, .2: {a, b} as a then b .5 (.3 / .5) = .3, or b then a .3 (.5 / .7) = .2143."""
    drawn = couples(np.log([0.5, 0.3, 0.2]))
    assert drawn[0, 1] == pytest.approx(0.3 + 0.15 / 0.7) and np.diag(drawn) == pytest.approx(0)
    assert drawn.sum() / 2 == pytest.approx(1)
    wins = net_wins(np.log([0.5, 0.5]), np.array([0.0, 1.6]), tau=0.8)  # margin 2: sigmoid(2) - sigmoid(-2)
    assert wins == pytest.approx([-0.7616, 0.7616], abs=1e-4)


@pytest.mark.parametrize("beta", [0.5, 1.5])
def test_the_solution_is_where_adam_on_the_written_loss_ends(beta: float) -> None:
    """Every ordered pair as a desirable row and an undesirable one, weighted by how often it is so labelled."""
    tau, ref = 0.8, torch.tensor(LOGREF)
    win = torch.sigmoid(torch.tensor((TOTAL[:, :, None] - TOTAL[:, None, :]) / tau))
    weight = torch.tensor(couples(LOGREF)) / 2 * 2 * win  # (P, R, R): a chosen, b rejected; both orders are listed
    rows = weight.sum(2) + weight.sum(1)
    law = (rows / rows.sum(1, keepdim=True)).mean(0)
    logits = ref.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([logits], lr=0.02)
    for _ in range(6000):
        ratio = logits.log_softmax(-1) - ref
        z = (law * ratio).sum(1).mean().detach().clamp(min=0)
        good, bad = 1 - torch.sigmoid(beta * (ratio - z)), 1 - torch.sigmoid(beta * (z - ratio))
        loss = (weight * (good[:, :, None] + bad[:, None, :])).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    expected = logits.detach().softmax(-1).numpy()
    assert np.exp(kto(LOGREF, TOTAL, beta=beta, tau=tau)) == pytest.approx(expected, abs=5e-3)


def test_it_is_no_optimum_of_j_and_losers_vanish() -> None:
    found = np.exp(kto(LOGREF, TOTAL, beta=1.5, tau=0.8))
    wins = net_wins(LOGREF, TOTAL, tau=0.8)
    assert found.sum(-1) == pytest.approx(1) and (found[wins < 0] < 1e-3).all() and (wins.sum(-1) < 1e-12).all()
    optimum = np.exp(LOGREF + TOTAL / 1.2)
    assert np.abs(found - optimum / optimum.sum(-1, keepdims=True)).max() > 0.1
    assert kto(LOGREF, -TOTAL, beta=1.5, tau=0.8).argmax(-1).tolist() != found.argmax(-1).tolist()
