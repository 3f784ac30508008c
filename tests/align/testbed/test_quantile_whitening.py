"""RDPO's advantages by hand, and its fixed point by what must hold there."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from align.testbed.theory.fixed_points import Tree, fixed_point
from align.testbed.theory.quantile_whitening import advantages, below, rdpo, scores, whitened


def tree(rewards: list[list[float]]) -> Tree:
    """One prompt, one token, four equally likely replies with these rewards (4, K)."""
    return Tree((np.full((1, 1, 4), np.log(0.25)),), (np.array(rewards)[None, None],), 4)


def test_scores_are_normal_quantiles_of_mid_ranks() -> None:
    """Four replies, two of them tied in the middle: ranks 1/8, 1/2, 1/2, 7/8; the size of a reward does not matter."""
    p, r = np.full(4, 0.25), np.array([[0.0], [3.0], [3.0], [1000.0]])
    edge = NormalDist().inv_cdf(7 / 8)
    assert scores(p, below(r))[:, 0] == pytest.approx([-edge, 0, 0, edge])
    assert scores(p, below(-r))[:, 0] == pytest.approx([edge, 0, 0, -edge])


def test_whitened_objectives_have_covariance_one_and_constant_ones_are_left_out() -> None:
    p = np.array([0.1, 0.2, 0.3, 0.4])
    q = np.array([[1.0, 2.0, 5.0], [0.5, -1.0, 5.0], [-2.0, 0.0, 5.0], [1.0, 0.0, 5.0]])
    q = q - p @ q
    z = whitened(p, q)
    covariance = np.einsum("m,mj,mk->jk", p, z, z)
    assert covariance == pytest.approx(np.diag([1.0, 1.0, 0.0]), abs=1e-3)
    assert np.einsum("m,m,m->", p, z[:, 0], q[:, 0]) > 0  # symmetric root: no objective changes its sign


def test_its_fixed_point_is_stationary_and_blind_to_monotone_changes_of_rewards() -> None:
    """log p/ref = A / beta + const, and exp(r) in place of r changes nothing, where GDPO's fixed point moves."""
    raw = [[0.0, 1.0], [0.5, -0.3], [2.0, 0.2], [-1.0, 0.4]]
    stretched = [[float(np.exp(2 * a)), b] for a, b in raw]
    w, beta = np.array([0.7, 0.3]), 1.5
    points = [rdpo(tree(rewards), weights=w, beta=beta) for rewards in (raw, stretched)]
    assert points[0].residual < 1e-7
    left = advantages(points[0].leaf_logp, below(np.array(raw)[None]), weights=w) - beta * points[0].leaf_logp
    assert np.ptp(left, axis=-1) == pytest.approx(0, abs=1e-5)
    assert points[1].leaf_logp == pytest.approx(points[0].leaf_logp, abs=1e-5)
    other = [fixed_point(tree(rewards), weights=w, beta=beta, scale="gdpo", kl="loss") for rewards in (raw, stretched)]
    assert np.abs(other[0].leaf_logp - other[1].leaf_logp).max() > 0.05
