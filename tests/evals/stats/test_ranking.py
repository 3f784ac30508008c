"""Chances of a rank and groups that no test separates, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from evals.stats.ranking import chance_best, chance_undominated, drawn_means, letters


def test_drawn_means_of_yes_and_no_are_jeffreys_posterior() -> None:
    hits, cells = np.array([[1.0, 0, 0, 0], [0, 0, 0, 0], [2.0, 2, 2, 2]]), np.ones((3, 4))
    cells[2] = 2  # two cells in each cluster: the cluster counts once
    means = drawn_means(hits, cells_PC=cells, draws=20_000)
    assert means.shape == (20_000, 3)
    for p, (a, b) in enumerate(((1.5, 3.5), (0.5, 4.5), (4.5, 0.5))):
        assert means[:, p].mean() == pytest.approx(a / (a + b), abs=0.006)
        assert means[:, p].var() == pytest.approx(a * b / (a + b) ** 2 / (a + b + 1), rel=0.06)


def test_policies_are_drawn_on_the_same_clusters() -> None:
    hits = np.tile(np.arange(200) % 2, (3, 1)).astype(float)
    hits[2] = 1 - hits[2]
    means = drawn_means(hits, cells_PC=np.ones((3, 200)))
    assert np.corrcoef(means[:, 0], means[:, 1])[0, 1] > 0.95 and np.corrcoef(means[:, 0], means[:, 2])[0, 1] < -0.95
    assert chance_best(means[:, :2]) == pytest.approx([0.5, 0.5], abs=0.05), "twins share being best"
    with pytest.raises(ValueError, match="no cell"):
        drawn_means(hits, cells_PC=np.zeros((3, 200)))


def test_the_lowest_is_best_and_equals_share() -> None:
    means = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.4], [0.2, 0.2, 0.2], [0.0, 0.0, 1.0]])
    assert chance_best(means).tolist() == pytest.approx([(1 + 1 / 3 + 1 / 2) / 4, (1 + 1 / 3 + 1 / 2) / 4, 1 / 12])


def test_a_policy_is_dominated_by_one_as_low_everywhere_and_lower_once() -> None:
    first = [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]  # the last equals the first: neither dominates
    second = [[0.0, 0.0], [0.0, 0.1], [0.5, 0.5], [0.1, 0.0]]
    assert chance_undominated(np.array([first, second])).tolist() == [1.0, 0.5, 0.0, 0.5]


def test_letters_are_the_largest_groups_without_a_separated_pair() -> None:
    apart = np.zeros((4, 4), dtype=bool)
    for i, j in ((0, 2), (0, 3), (1, 3)):
        apart[i, j] = apart[j, i] = True
    assert letters([0, 1, 2, 3], apart_PP=apart) == ["a", "ab", "bc", "c"]
    assert letters([3, 2, 1, 0], apart_PP=apart) == ["c", "bc", "ab", "a"], "the best has the first letter"
    assert letters([0, 1], apart_PP=np.zeros((2, 2), dtype=bool)) == ["a", "a"]
    assert letters([1, 0], apart_PP=~np.eye(2, dtype=bool)) == ["b", "a"]
    assert letters([0], apart_PP=np.zeros((1, 1), dtype=bool)) == ["a"]
