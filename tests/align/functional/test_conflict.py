"""Conflict measures against hand counts and scipy. CPU, below a second."""

import numpy as np
import pytest
from scipy import stats as oracle

from align.functional import conflict
from factories.oracles import advantage_covariance


def test_disagreement_counts_only_decided_pairs() -> None:
    """Four comparisons; objective 1 has no preference on the last. It opposes objective 0 on two of three."""
    matrix = conflict.label_disagreement([[1.0, 2.0], [3.0, -0.1], [-1.0, 5.0], [2.0, 0.0]])
    assert matrix.values_KK[0, 1] == pytest.approx(2 / 3) and matrix.n_KK[0, 1] == 3
    assert matrix.n_KK[0, 0] == 4 and matrix.values_KK[0, 0] == 0
    assert (matrix.values_KK == matrix.values_KK.T).all()


def test_disagreement_without_a_decided_pair_is_nan_not_zero() -> None:
    matrix = conflict.label_disagreement([[1.0, 0.0]])
    assert np.isnan(matrix.values_KK[0, 1]) and matrix.n_KK[0, 1] == 0


@pytest.mark.parametrize("kind", ["kendall", "spearman"])
def test_rank_correlation_against_scipy_with_ties(kind: str) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 4, size=(12, 3)).astype(float) for _ in range(5)]
    matrix = conflict.rank_correlation(prompts, kind=kind)  # type: ignore[arg-type]
    function = oracle.kendalltau if kind == "kendall" else oracle.spearmanr
    for j in range(3):
        for k in range(3):
            expected = np.mean([function(table[:, j], table[:, k])[0] for table in prompts])
            assert matrix.values_KK[j, k] == pytest.approx(expected, abs=1e-12)
    assert (matrix.n_KK == 5).all()


def test_correlation_is_within_prompts_and_skips_constants() -> None:
    """Opposed within each prompt, though pooled they would agree (prompt two is better in both)."""
    prompts = [[[0, 1], [1, 0]], [[10, 11], [11, 10]], [[0, 5], [1, 5]]]
    matrix = conflict.rank_correlation(prompts)
    assert matrix.values_KK[0, 1] == -1 and matrix.n_KK[0, 1] == 2 and matrix.n_KK[0, 0] == 3


def test_gradient_cosines() -> None:
    cosines = conflict.gradient_cosines([[3, 4], [-4, 3], [-6, -8], [0, 0]])
    assert np.allclose(cosines[0, :3], [1, 0, -1]) and np.isnan(cosines[3]).all()


def test_advantage_covariance_by_hand() -> None:
    """Advantage (-1, 0, 1): objective 0 = (0, 1, 2) has covariance 1; objective 1 = (4, 4, 0) has -2."""
    covariance = advantage_covariance([[[0, 4], [1, 4], [2, 0]]], advantages_PS=[[-1, 0, 1]])
    assert np.allclose(covariance, [1, -2])
    shifted = advantage_covariance([[[0, 4], [1, 4], [2, 0]]], advantages_PS=[[9, 10, 11]])
    assert np.allclose(covariance, shifted)
    two = advantage_covariance([[[0], [1]], [[0], [3]]], advantages_PS=[[0, 1], [0, 1]])
    assert np.allclose(two, [(0.5 + 1.5) / 2])
    with pytest.raises(ValueError, match="one advantage per sample"):
        advantage_covariance([[[0], [1]]], advantages_PS=[[0, 1, 2]])
