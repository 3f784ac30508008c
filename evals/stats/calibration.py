"""Whether stated confidence is how often one is right: reliability, ECE, MCE, Brier, log loss; pure.

Shapes: N answers, B bins. Sources: Guo et al. 2017 (ECE), Nguyen & O'Connor 2015 (equal mass).
ECE is biased upwards in small samples and has no simple interval: compare Brier scores, which are means over items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Bin:
    """Answers whose confidence lies in (low, high]; the first bin holds 0, too."""

    low: float
    high: float
    count: int
    confidence: float  # mean
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """The numbers of one set of answers; `bins` is the reliability table without its empty bins."""

    ece: float
    mce: float
    brier: float
    nll: float
    bins: tuple[Bin, ...]


def _checked(confidence_N: Numbers, outcome_N: Numbers) -> tuple[np.ndarray, np.ndarray]:
    confidence, outcome = np.asarray(confidence_N, dtype=float), np.asarray(outcome_N, dtype=float)
    if confidence.shape != outcome.shape or confidence.ndim != 1 or len(confidence) == 0:
        raise ValueError(f"confidences of shape {confidence.shape} with outcomes of shape {outcome.shape}: one each")
    for name, values in (("confidence", confidence), ("outcome", outcome)):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"a {name} lies outside [0, 1]")
    return confidence, outcome


def equal_width(confidence_N: np.ndarray, *, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """(bin of each answer, B + 1 edges): right-closed, so that with ten bins .3 falls into (.2, .3]."""
    edges = np.arange(bins + 1) / bins
    return np.searchsorted(edges[1:-1], confidence_N, side="left"), edges


def equal_mass(confidence_N: np.ndarray, *, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """(bin of each answer, edges): as many answers in each as equal confidences, which stay together, allow."""
    edges = np.concatenate([[0.0], np.quantile(confidence_N, np.arange(1, bins) / bins, method="inverted_cdf"), [1.0]])
    edges = np.unique(edges)
    return np.searchsorted(edges[1:-1], confidence_N, side="left"), edges


BINNINGS = {"width": equal_width, "mass": equal_mass}


def reliability(confidence_N: Numbers, *, outcome_N: Numbers, bins: int = 10, by: str = "width") -> tuple[Bin, ...]:
    """The reliability table; outcomes are 1 where the answer was right, 0 where wrong, 1/2 for a tie."""
    confidence, outcome = _checked(confidence_N, outcome_N)
    if by not in BINNINGS or bins < 1:
        raise ValueError(f"{bins} bins by {by!r}; choose one or more, by {' or '.join(BINNINGS)}")
    places, edges = BINNINGS[by](confidence, bins=bins)
    found = []
    for b in range(len(edges) - 1):
        inside = places == b
        if inside.any():
            means = float(confidence[inside].mean()), float(outcome[inside].mean())
            found.append(Bin(float(edges[b]), float(edges[b + 1]), int(inside.sum()), *means))
    return tuple(found)


def expected_error(table: Sequence[Bin]) -> float:
    """ECE: `sum_b n_b / n |accuracy_b - confidence_b|`."""
    return sum(b.count * abs(b.accuracy - b.confidence) for b in table) / sum(b.count for b in table)


def calibration(confidence_N: Numbers, *, outcome_N: Numbers, bins: int = 10, by: str = "width") -> Calibration:
    """Every number at once. `nll` is in nats and infinite where a certain answer was wrong."""
    confidence, outcome = _checked(confidence_N, outcome_N)
    table = reliability(confidence, outcome_N=outcome, bins=bins, by=by)
    with np.errstate(divide="ignore", invalid="ignore"):
        right = np.where(outcome > 0, outcome * np.log(confidence), 0.0)
        wrong = np.where(outcome < 1, (1 - outcome) * np.log1p(-confidence), 0.0)
    return Calibration(
        ece=expected_error(table),
        mce=max(abs(b.accuracy - b.confidence) for b in table),
        brier=float(((confidence - outcome) ** 2).mean()),
        nll=float(-(right + wrong).mean()),
        bins=table,
    )
