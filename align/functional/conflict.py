"""How far objectives disagree: labels, rankings within a prompt, gradients, covariance with the advantage; pure.

Shapes: N comparisons, P prompts, S samples of one prompt, K objectives, D parameters. Higher rewards are better.
`rank_correlation` takes complete tables of any length per prompt; the two `of_groups` take one array of equal groups,
nan where an objective does not apply, and are quick enough for every step of a training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Array = ArrayLike


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


def rank_correlation_of_groups(rewards_PSK: Array) -> Matrix:
    """Kendall's tau-b of the objectives within a prompt, averaged over prompts, as `rank_correlation` gives it.

    A pair of objectives is compared on the samples that both apply to; a prompt on which either is constant there says
    nothing and is left out. ValueError for anything but a P x S x K array with S >= 2.
    """
    rewards = _groups(rewards_PSK)
    first, second = np.triu_indices(rewards.shape[1], k=1)
    signs_PMK = np.sign(rewards[:, first] - rewards[:, second])
    known_PMK = np.isfinite(signs_PMK).astype(float)
    signs_PMK = np.nan_to_num(signs_PMK)
    inner_PKK = signs_PMK.transpose(0, 2, 1) @ signs_PMK
    decided_PKK = np.abs(signs_PMK).transpose(0, 2, 1) @ known_PMK  # pairs that j decides and k applies to
    scale_PKK = np.sqrt(decided_PKK * decided_PKK.transpose(0, 2, 1))
    defined_PKK = scale_PKK > 0
    tau_PKK = np.divide(inner_PKK, scale_PKK, out=np.zeros_like(inner_PKK), where=defined_PKK)
    n_KK = defined_PKK.sum(0)
    with np.errstate(invalid="ignore"):
        return Matrix(np.where(n_KK > 0, tau_PKK.sum(0) / n_KK, np.nan), n_KK)


def covariance_of_groups(rewards_PSK: Array, *, advantages_PS: Array) -> np.ndarray:
    """Covariance of each objective with the advantage within a prompt, divisor S - 1, averaged over prompts; shape K.

    To first order a policy-gradient step raises E[r_k] in proportion to it, so a negative entry is an objective that
    this advantage trains down. Over the samples that the objective applies to; a prompt with fewer than two of them is
    left out, and nan stands where no prompt is left. ValueError for shapes that do not fit or an advantage that is not
    finite.
    """
    rewards, advantages = _groups(rewards_PSK), np.asarray(advantages_PS, dtype=float)
    if advantages.shape != rewards.shape[:2] or not np.isfinite(advantages).all():
        raise ValueError(f"advantages_PS must be finite and of shape {rewards.shape[:2]}, not {advantages.shape}")
    known_PSK = np.isfinite(rewards)
    n_PK = known_PSK.sum(1)
    advantages_PSK = np.where(known_PSK, advantages[:, :, None], 0.0)
    rewards = np.where(known_PSK, rewards, 0.0)
    centred_PSK = np.where(known_PSK, advantages_PSK - (advantages_PSK.sum(1) / np.maximum(n_PK, 1))[:, None], 0.0)
    used_PK = n_PK >= 2
    # Centring one of the two factors would do on paper; with both centred, rounding stays small.
    centred_rewards_PSK = rewards - (rewards.sum(1) / np.maximum(n_PK, 1))[:, None]
    covariances_PK = (centred_PSK * centred_rewards_PSK).sum(1) / np.maximum(n_PK - 1, 1)
    prompts_K = used_PK.sum(0)
    with np.errstate(invalid="ignore"):
        return np.where(prompts_K > 0, np.where(used_PK, covariances_PK, 0.0).sum(0) / prompts_K, np.nan)


def _groups(rewards_PSK: Array) -> np.ndarray:
    rewards = np.asarray(rewards_PSK, dtype=float)
    if rewards.ndim != 3 or not rewards.shape[0] or rewards.shape[1] < 2 or np.isinf(rewards).any():
        raise ValueError(
            f"rewards_PSK must be P x S x K with at least two samples a prompt, and not infinite; not {rewards.shape}"
        )
    return rewards
