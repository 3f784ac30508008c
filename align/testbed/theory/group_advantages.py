"""Expected advantages in groups of finite size: every multiset of the other members, weighted by its probability.

Legend: C reward classes of one prompt, K objectives, n multisets or draws of the others, G group size.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

EPS = 1e-4  # TRL adds it to every standard deviation


@dataclass(frozen=True)
class Groups:
    """Groups of finite `size`; where they cannot be enumerated, `draws` of the others from the generator `seed`."""

    size: int
    draws: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"a group has at least two members, not {self.size}")


class GroupAdvantages:
    """E[A | y] for each reward class y of one prompt, in groups of G: y and G - 1 others drawn from the policy.

    Group mean and standard deviation (Bessel's correction) include y itself, as in TRL. Exact by enumerating the
    multisets of others where there are at most 200,000; else over the groups' seeded draws (the same uniforms at every
    policy), ValueError where they have none.
    """

    def __init__(self, rewards_CK: np.ndarray, *, weights: np.ndarray, scale: str, groups: Groups) -> None:
        group = groups.size
        self.rewards, self.weights, self.scale, self.group = rewards_CK, weights, scale, group
        classes, self.counts = len(rewards_CK), None
        if comb(classes + group - 2, group - 1) <= 200_000:
            self.counts = _multisets(classes, group - 1)
            self.log_count = _log_multinomial(self.counts)
            total_C = rewards_CK @ weights
            self.table = self._table(self.counts @ rewards_CK, self.counts @ rewards_CK**2, self.counts @ total_C**2)
            self.squares = self.table**2
        elif groups.draws is None:
            raise ValueError(f"{classes} reward classes in groups of {group} are too many to enumerate; give draws")
        else:
            self.uniform = np.random.default_rng(groups.seed).random((groups.draws, group - 1))

    def _table(self, sum_nK: np.ndarray, square_nK: np.ndarray, total_square_n: np.ndarray) -> np.ndarray:
        """(n, C) advantage of class y beside others with these sums."""
        if self.scale == "gdpo":
            z = 0.0
            for k, weight in enumerate(self.weights):
                z = z + weight * self._score(sum_nK[:, k], square_nK[:, k], self.rewards[:, k], scaled=True)
            return np.asarray(z)
        total_C = self.rewards @ self.weights
        return self._score(sum_nK @ self.weights, total_square_n, total_C, scaled=self.scale == "group")

    def _score(self, sum_n: np.ndarray, square_n: np.ndarray, own_C: np.ndarray, *, scaled: bool) -> np.ndarray:
        mean = (sum_n[:, None] + own_C) / self.group
        if not scaled:
            return own_C - mean
        variance = (square_n[:, None] + own_C**2 - self.group * mean**2) / (self.group - 1)
        return (own_C - mean) / (np.sqrt(np.maximum(variance, 0)) + EPS)

    def __call__(self, mass_C: np.ndarray) -> tuple[np.ndarray, float]:
        """(C,) E[A | y], and E[A^2] over the policy's groups, before the batch's scale."""
        if self.counts is not None:
            with np.errstate(divide="ignore"):
                log_mass = np.maximum(np.log(mass_C), -700.0)
            weight_n = np.exp(self.counts @ log_mass + self.log_count)
            table, squares = self.table, self.squares
        else:
            edges_C = mass_C.cumsum() / mass_C.sum()
            pick = np.minimum(np.searchsorted(edges_C, self.uniform, side="right"), len(mass_C) - 1)
            others, total = self.rewards[pick], (self.rewards @ self.weights)[pick]
            table = self._table(others.sum(1), (others**2).sum(1), (total**2).sum(1))
            weight_n, squares = np.full(len(table), 1 / len(table)), table**2
        return weight_n @ table, float(mass_C @ (weight_n @ squares))


def _multisets(classes: int, size: int) -> np.ndarray:
    """(n, C) counts of every multiset of `size` from `classes`."""
    bars = np.array(list(combinations(range(size + classes - 1), classes - 1)), dtype=np.int64).reshape(-1, classes - 1)
    ends = [np.full((len(bars), 1), end) for end in (-1, size + classes - 1)]
    edges = np.concatenate([ends[0], bars, ends[1]], axis=1)
    return (np.diff(edges, axis=1) - 1).astype(float)


def _log_multinomial(counts: np.ndarray) -> np.ndarray:
    table = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, int(counts.sum(1).max()) + 1)))])
    return table[counts.sum(1).astype(int)] - table[counts.astype(int)].sum(1)
