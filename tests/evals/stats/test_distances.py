"""Distances from a cloud of states against the shrunk covariance written out."""

from __future__ import annotations

import numpy as np
import pytest

from evals.stats.distances import distances, fit_cloud, log_distance


def test_distances_are_those_of_the_shrunk_covariance() -> None:
    rng = np.random.default_rng(0)
    states, others = rng.normal(size=(30, 5)), 2 * rng.normal(size=(7, 5))
    off = states - states.mean(0)
    covariance = off.T @ off / len(states)
    shrunk = 0.9 * covariance + 0.1 * np.trace(covariance) / 5 * np.eye(5)
    away = others - states.mean(0)
    expected = np.sqrt(np.einsum("mh,hk,mk->m", away, np.linalg.inv(shrunk), away))
    cloud = fit_cloud(states)
    assert distances(cloud, others) == pytest.approx(expected)
    home = distances(cloud, states[:4]).mean()
    assert log_distance(cloud, others, plain_MH=states[:4]) == pytest.approx(np.log(expected / home))


def test_more_dimensions_than_states_have_a_distance() -> None:
    states = np.random.default_rng(1).normal(size=(3, 40))
    assert np.isfinite(log_distance(fit_cloud(states), states + 1, plain_MH=states)).all()


def test_what_is_no_cloud() -> None:
    with pytest.raises(ValueError, match="at least two states"):
        fit_cloud(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="the same"):
        fit_cloud(np.ones((4, 3)))
    with pytest.raises(ValueError, match="shrinkage"):
        fit_cloud(np.eye(3), shrinkage=0)
    square = np.array([[0.0, 1], [1, 0], [0, -1], [-1, 0]])
    with pytest.raises(ValueError, match="lie at the mean"):
        log_distance(fit_cloud(square), square, plain_MH=np.zeros((1, 2)))
