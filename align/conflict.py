"""How far objectives disagree: labels, rankings within a prompt, gradients, covariance with the advantage; pure.

Shapes: N comparisons, P prompts, S samples of one prompt, K objectives, D parameters. Higher rewards are better.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = Any  # whatever numpy.asarray takes


@dataclass(frozen=True)
class Matrix:
    """A K x K table and the number of units (comparisons or prompts) behind each entry; nan where there are none."""

    values_KK: np.ndarray
    n_KK: np.ndarray


def _table(values: Array, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 2 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be a finite two-dimensional table, not of shape {array.shape}")
    return array


def label_disagreement(margins_NK: Array) -> Matrix:
    """Share of comparisons on which two objectives prefer different responses.

    `margins_NK[n, k]` is objective k's score of the first response minus its score of the second (or a label +1/-1);
    0 means that k has no preference, and the comparison is then left out of k's row and column and of its count.
    """
    signs_NK = np.sign(_table(margins_NK, "margins_NK"))
    decided_NK = np.abs(signs_NK)
    n_KK = decided_NK.T @ decided_NK
    opposed_KK = (n_KK - signs_NK.T @ signs_NK) / 2
    with np.errstate(invalid="ignore"):
        return Matrix(np.where(n_KK > 0, opposed_KK / n_KK, np.nan), n_KK.astype(int))


def _average_ranks(values_S: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing their mean rank."""
    _, inverse, counts = np.unique(values_S, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _features(rewards_SK: np.ndarray, kind: str) -> np.ndarray:
    """Columns whose cosines are the rank correlations: centred ranks, or the signs of all pairwise differences."""
    if kind == "spearman":
        ranks_SK = np.stack([_average_ranks(column) for column in rewards_SK.T], axis=1)
        return ranks_SK - ranks_SK.mean(axis=0)
    first, second = np.triu_indices(len(rewards_SK), k=1)
    return np.sign(rewards_SK[first] - rewards_SK[second])


def rank_correlation(rewards_PSK: Sequence[Array], *, kind: Literal["kendall", "spearman"] = "kendall") -> Matrix:
    """Rank correlation of the objectives over the samples of one prompt, averaged over prompts.

    Within a prompt, because only differences between responses to the same prompt are chosen between; pooling prompts
    would measure which prompts are easy. Kendall's is tau-b, Spearman's uses mean ranks. A prompt on which an
    objective is constant says nothing about its pairs: it is left out of them, and `n_KK` counts the prompts used.
    """
    if kind not in ("kendall", "spearman"):
        raise ValueError(f"kind must be 'kendall' or 'spearman', not {kind!r}")
    tables = [_table(rewards, "rewards_PSK[p]") for rewards in rewards_PSK]
    if not tables or len({table.shape[1] for table in tables}) != 1:
        raise ValueError("rewards_PSK needs at least one prompt, and the same objectives for each")
    objectives = tables[0].shape[1]
    total_KK, n_KK = np.zeros((objectives, objectives)), np.zeros((objectives, objectives), dtype=int)
    for table in tables:
        cosines_KK = gradient_cosines(_features(table, kind).T)
        defined_KK = np.isfinite(cosines_KK)
        total_KK += np.where(defined_KK, cosines_KK, 0.0)
        n_KK += defined_KK
    with np.errstate(invalid="ignore"):
        return Matrix(np.where(n_KK > 0, total_KK / n_KK, np.nan), n_KK)


def gradient_cosines(gradients_KD: Array) -> np.ndarray:
    """Cosines between the objectives' gradients, K x K; nan for a gradient that is zero (it has no direction)."""
    gradients = _table(gradients_KD, "gradients_KD")
    norms_K = np.linalg.norm(gradients, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines_KK = gradients @ gradients.T / np.outer(norms_K, norms_K)
    return np.where(np.outer(norms_K, norms_K) > 0, np.clip(cosines_KK, -1, 1), np.nan)


def advantage_covariance(rewards_PSK: Sequence[Array], *, advantages_PS: Sequence[Array]) -> np.ndarray:
    """Covariance of each objective with the advantage within a prompt (divisor S - 1), averaged over prompts; shape K.

    To first order a policy-gradient step raises E[r_k] in proportion to it, so a negative entry is an objective that
    this advantage trains down. ValueError for a prompt with fewer than two samples or with unequal lengths.
    """
    covariances = []
    for rewards, advantages in zip(rewards_PSK, advantages_PS, strict=True):
        rewards_SK, advantages_S = _table(rewards, "rewards_PSK[p]"), np.asarray(advantages, dtype=float)
        if advantages_S.shape != rewards_SK.shape[:1] or len(advantages_S) < 2:
            raise ValueError("each prompt needs one advantage per sample and at least two samples")
        centred_S = advantages_S - advantages_S.mean()
        covariances.append(centred_S @ (rewards_SK - rewards_SK.mean(axis=0)) / (len(centred_S) - 1))
    if not covariances:
        raise ValueError("rewards_PSK needs at least one prompt")
    return np.mean(covariances, axis=0)
