"""Several policies on the same items: the chance to be best, to be undominated, groups that no test separates; pure.

Legend: P policies, C clusters (base items), D draws, M metrics. Lower is better throughout: metrics are rates of
failures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from align.functional.fronts import nondominated

DRAWS = 2000


def drawn_means(hits_PC: np.ndarray, *, cells_PC: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """(D, P) means `sum hits / sum cells`, clusters weighted at random, alike for all policies.

    The Bayesian bootstrap (Rubin 1981): exponential weights, and for each policy half a cluster that hits and half a
    one that does not. A mean of n yes/no clusters with k hits is then Beta(k + 1/2, n - k + 1/2), Jeffreys' posterior,
    which is not sure of a rate of 0. ValueError for a policy without a cell.
    """
    if (cells_PC.sum(1) == 0).any():
        raise ValueError("a policy has no cell")
    rng = np.random.default_rng(seed)
    weights_DC = rng.standard_exponential((draws, hits_PC.shape[1]))
    hit_DP, missed_DP = rng.standard_gamma(0.5, (2, draws, len(hits_PC))) * cells_PC.sum(1) / (cells_PC > 0).sum(1)
    means_DP: np.ndarray = (weights_DC @ hits_PC.T + hit_DP) / (weights_DC @ cells_PC.T + hit_DP + missed_DP)
    return means_DP


def chance_best(means_DP: np.ndarray) -> np.ndarray:
    """(P,) share of draws in which a policy has the lowest mean; equals share a draw."""
    best_DP = np.isclose(means_DP, means_DP.min(1, keepdims=True), rtol=0, atol=1e-12)
    found_P: np.ndarray = (best_DP / best_DP.sum(1, keepdims=True)).mean(0)
    return found_P


def chance_undominated(means_DPM: np.ndarray) -> np.ndarray:
    """(P,) share of draws in which no other policy is at least as low in every metric and lower in one."""
    found_P: np.ndarray = np.mean([nondominated(-means_PM) for means_PM in means_DPM], axis=0)
    return found_P


def letters(order: Sequence[int], *, apart_PP: np.ndarray) -> list[str]:
    """Compact letters by policy: two policies share a letter where they are not told apart (`apart_PP` is symmetric).

    A letter is a largest group without a pair that is told apart; letters run along `order`, best first.
    """
    rank = {policy: place for place, policy in enumerate(order)}
    together = {p: {q for q in rank if q != p and not apart_PP[p, q]} for p in rank}
    groups = sorted(sorted(rank[p] for p in group) for group in _groups(set(), set(rank), set(), together))
    names = {place: "" for place in rank.values()}
    for number, group in enumerate(groups):
        for place in group:
            names[place] += chr(ord("a") + number % 26) + str(number // 26 or "")
    return [names[rank[p]] for p in range(len(rank))]


def _groups(group: set[int], left: set[int], done: set[int], together: dict[int, set[int]]) -> Iterator[set[int]]:
    """The maximal cliques (Bron & Kerbosch 1973)."""
    if not left and not done:
        yield group
    while left:
        p = left.pop()
        yield from _groups(group | {p}, left & together[p], done & together[p], together)
        done = done | {p}
