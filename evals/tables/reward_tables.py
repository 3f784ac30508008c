"""Reward models on comparisons: accuracy, log loss, calibration, RM-Bench's matrix, subsets, and shifts; pure.

A margin is `r(chosen) - r(rejected)`. Shapes: N comparisons. Sources: Bradley & Terry 1952; RewardBench (Lambert et al.
2024); RM-Bench (Liu et al. 2024).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evals.baselines.preference_baselines import in_order
from evals.stats.calibration import Calibration, calibration
from evals.stats.intervals import Interval, clustered_mean
from evals.stats.paired_shares import share_change
from evals.stats.paired_tests import PairedTest, family, t_test
from evals.stats.shares import share_of


def wins(margins_N: Sequence[float] | np.ndarray) -> np.ndarray:
    """1 where the chosen response scores higher, 0 where lower, 1/2 for a tie; shape N."""
    margins = np.asarray(margins_N, dtype=float)
    if margins.ndim != 1 or len(margins) == 0 or not np.isfinite(margins).all():
        raise ValueError(f"margins are at least one finite number in a row, not of shape {margins.shape}")
    return in_order(margins.tolist(), [0.0] * len(margins))


def pair_losses(margins_N: Sequence[float] | np.ndarray) -> np.ndarray:
    """Bradley-Terry loss of each comparison, `-log sigmoid(margin)`, in nats; log 2 knows nothing."""
    return np.asarray(np.logaddexp(0.0, -np.asarray(margins_N, dtype=float)))


def pair_briers(margins_N: Sequence[float] | np.ndarray) -> np.ndarray:
    """`(1 - sigmoid(margin))^2` of each comparison; 1/4 knows nothing."""
    return np.asarray(np.exp(-2 * np.logaddexp(0.0, np.asarray(margins_N, dtype=float))))


def pair_calibration(margins_N: Sequence[float] | np.ndarray, *, bins: int = 10) -> Calibration:
    """Confidence `sigmoid(|margin|)` in the response that scores higher, against whether that is the chosen one.

    Read so, it does not depend on which response is named first; `sigmoid(margin)` against "chosen wins" would have one
    outcome only. A tie is confidence 1/2, right by half.
    """
    margins = np.asarray(margins_N, dtype=float)
    return calibration(1 / (1 + np.exp(-np.abs(margins))), outcome_N=wins(margins), bins=bins)


@dataclass(frozen=True)
class PairTable:
    """A reward model on one set of comparisons. `macro` weighs subsets equally, `accuracy` comparisons."""

    accuracy: Interval
    macro: float
    log_loss: Interval
    brier: Interval
    calibration: Calibration
    subsets: Mapping[str, Interval]


def pair_table(
    margins: Mapping[str, float],
    *,
    subsets: Mapping[str, str] | None = None,
    clusters: Mapping[str, Hashable] | None = None,
    bins: int = 10,
) -> PairTable:
    """Every number of margins by item; each item is its own cluster unless `clusters` is given."""
    keys = list(margins)
    values = np.array([margins[key] for key in keys], dtype=float)
    labels: list[Hashable] = [key if clusters is None else clusters[key] for key in keys]
    groups = ["" if subsets is None else subsets[key] for key in keys]
    right = wins(values)
    results: dict[str, Interval] = {}
    for name in dict.fromkeys(groups):
        places = [i for i, group in enumerate(groups) if group == name]
        results[name] = share_of(right[places], clusters_N=[labels[i] for i in places])
    return PairTable(
        accuracy=share_of(right, clusters_N=labels),
        macro=macro_average({name: interval.estimate for name, interval in results.items()}),
        log_loss=clustered_mean(pair_losses(values), clusters_N=labels),
        brier=clustered_mean(pair_briers(values), clusters_N=labels),
        calibration=pair_calibration(values, bins=bins),
        subsets=results,
    )


def macro_average(values: Mapping[str, float]) -> float:
    """The unweighted mean over subsets."""
    if not values:
        raise ValueError("an average over subsets needs at least one")
    return float(np.mean(list(values.values())))


# --- RM-Bench --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StyleMatrix:
    """Accuracy by style of the chosen (rows) and of the rejected response (columns), plainest style first.

    Hard: the chosen is plainer than the rejected (upper triangle); normal: alike (diagonal); easy: fancier (lower).
    """

    accuracy_SS: np.ndarray
    comparisons: int

    @property
    def hard(self) -> float:
        return float(self.accuracy_SS[np.triu_indices(len(self.accuracy_SS), k=1)].mean())

    @property
    def normal(self) -> float:
        return float(np.diag(self.accuracy_SS).mean())

    @property
    def easy(self) -> float:
        return float(self.accuracy_SS[np.tril_indices(len(self.accuracy_SS), k=-1)].mean())

    @property
    def average(self) -> float:
        """Mean of all cells, which is that of hard, normal and easy."""
        return float(self.accuracy_SS.mean())


def style_matrix(
    chosen_NS: Sequence[Sequence[float]] | np.ndarray, *, rejected_NS: Sequence[Sequence[float]] | np.ndarray
) -> StyleMatrix:
    """RM-Bench's matrix of scores in S = 3 styles: strictly greater counts, a tie is wrong."""
    chosen, rejected = np.asarray(chosen_NS, dtype=float), np.asarray(rejected_NS, dtype=float)
    if chosen.ndim != 2 or chosen.shape != rejected.shape or len(chosen) == 0 or chosen.shape[1] < 2:
        raise ValueError(
            f"scores of shape {chosen.shape} against {rejected.shape}: prompts x styles, two and more styles"
        )
    if not (np.isfinite(chosen).all() and np.isfinite(rejected).all()):
        raise ValueError("a score is not finite")
    greater_NSS = chosen[:, :, None] > rejected[:, None, :]
    return StyleMatrix(greater_NSS.mean(axis=0), greater_NSS.size)


@dataclass(frozen=True)
class RMBench:
    """Per domain its matrix. Parts of a domain ("safety-refuse", "safety-response") are averaged into it first."""

    domains: Mapping[str, StyleMatrix]

    @property
    def overall(self) -> dict[str, float]:
        """Hard, normal, easy and average as unweighted means over domains."""
        parts: dict[str, list[str]] = {}
        for name in self.domains:
            parts.setdefault(name.split("-")[0], []).append(name)
        return {
            number: macro_average(
                {
                    domain: macro_average({name: getattr(self.domains[name], number) for name in names})
                    for domain, names in parts.items()
                }
            )
            for number in ("hard", "normal", "easy", "average")
        }


def rm_bench(
    chosen: Mapping[str, Sequence[float]], *, rejected: Mapping[str, Sequence[float]], domains: Mapping[str, str]
) -> RMBench:
    """Scores in three styles by item, plainest first, and each item's domain."""
    if set(chosen) != set(rejected):
        raise ValueError(f"item {sorted(set(chosen) ^ set(rejected))[0]} has scores on one side only")
    results = {}
    for domain in dict.fromkeys(domains[item] for item in chosen):
        items = [item for item in chosen if domains[item] == domain]
        results[domain] = style_matrix([chosen[i] for i in items], rejected_NS=[rejected[i] for i in items])
    return RMBench(results)


# --- under shift -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RewardShift:
    """One shift against plain prompts, paired by item, shift minus plain: worse is below 0 for accuracy alone."""

    accuracy: PairedTest
    log_loss: PairedTest
    brier: PairedTest
    ece: tuple[float, float]  # plain, shifted, on the shared items
    margin_ratio: float | None  # mean margin under the shift over that on plain prompts


def reward_shifts(
    plain: Mapping[str, float],
    *,
    shifted: Mapping[str, Mapping[str, float]],
    clusters: Mapping[str, Hashable] | None = None,
    bins: int = 10,
) -> dict[str, RewardShift]:
    """shift -> accuracy and calibration against the plain prompts, over the items that both have.

    The change of accuracy is one of shares (`stats.paired_shares`), losses have a paired t; each p is that of its
    interval. Holm runs over all shifts and the three numbers, and each test states how many. ValueError for a shift
    that shares no item.
    """
    tests: list[PairedTest] = []
    shared: dict[str, list[str]] = {}
    for shift, margins in shifted.items():
        shared[shift] = [item for item in plain if item in margins]
        if not shared[shift]:
            raise ValueError(f"shift {shift} shares no item with the plain prompts")
        for measure in (wins, pair_losses, pair_briers):
            home, away = (
                dict(zip(shared[shift], measure([side[i] for i in shared[shift]]).tolist(), strict=True))
                for side in (plain, margins)
            )
            found = share_change(away, before=home, clusters=clusters) if measure is wins else None
            paired = PairedTest(found.test, found.interval, found.p) if found else None
            tests.append(paired or t_test(away, second=home, clusters=clusters))
    adjusted = iter(family(tests))
    results = {}
    for shift, items in shared.items():
        home_N, away_N = ([side[i] for i in items] for side in (plain, shifted[shift]))
        mean = float(np.mean(home_N))
        results[shift] = RewardShift(
            accuracy=next(adjusted), log_loss=next(adjusted), brier=next(adjusted),
            ece=(pair_calibration(home_N, bins=bins).ece, pair_calibration(away_N, bins=bins).ece),
            margin_ratio=float(np.mean(away_N)) / mean if mean else None,
        )  # fmt: skip
    return results
