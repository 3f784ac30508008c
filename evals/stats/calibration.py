"""Whether stated confidence is how often one is right: reliability, ECE, MCE, Brier, log loss, temperature; pure.

Shapes: N answers, B bins, C classes. Sources: Guo et al. 2017 (ECE, temperature), Nguyen & O'Connor 2015 (equal mass).
ECE is biased upwards in small samples and has no simple interval: compare Brier scores, which are means over items.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from evals.stats.intervals import Interval, clustered_mean

Numbers = Sequence[float] | np.ndarray
TEMPERATURES = (0.02, 50.0)  # between these one is looked for


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


def brier_interval(confidence_N: Numbers, *, outcome_N: Numbers, clusters_N: Sequence[Hashable]) -> Interval:
    """Mean of `(confidence - outcome)^2` with its clustered interval: the calibration number that has one."""
    confidence, outcome = _checked(confidence_N, outcome_N)
    return clustered_mean((confidence - outcome) ** 2, clusters_N=clusters_N)


# --- temperature -----------------------------------------------------------------------------------------------------


def probabilities(logits_NC: Sequence[Sequence[float]] | np.ndarray, *, temperature: float = 1.0) -> np.ndarray:
    """Softmax of `logits / temperature`; N x C."""
    if not temperature > 0:
        raise ValueError(f"a temperature is positive, not {temperature}")
    scaled = np.asarray(logits_NC, dtype=float) / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    odds = np.exp(scaled)
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def fit_temperature(logits_NC: Sequence[Sequence[float]] | np.ndarray, *, labels_N: Sequence[int]) -> float:
    """The temperature with the least log loss on these answers, which must be in distribution (Guo et al. 2017).

    ValueError where the loss falls to the end of what is tried: all answers right (0), or logits that say nothing.
    """
    from scipy.optimize import minimize_scalar

    logits, labels = np.asarray(logits_NC, dtype=float), np.asarray(labels_N, dtype=int)
    if logits.ndim != 2 or len(labels) != len(logits) or not np.isfinite(logits).all():
        raise ValueError(f"logits of shape {logits.shape} with {len(labels)} labels: finite, one row per label")
    if not ((labels >= 0) & (labels < logits.shape[1])).all():
        raise ValueError(f"a label is none of the {logits.shape[1]} classes")

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        top = scaled.max(axis=1)
        log_z = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        return float((log_z - scaled[np.arange(len(labels)), labels]).mean())

    low, high = (math.log(limit) for limit in TEMPERATURES)
    found = float(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-8}).x)
    if min(loss(low), loss(high)) <= loss(found) + 1e-12:  # the search stops anywhere on a flat end
        raise ValueError(f"no temperature between {TEMPERATURES[0]} and {TEMPERATURES[1]} has the least log loss")
    return math.exp(found)


@dataclass(frozen=True)
class CalibrationShift:
    """Calibration in distribution and under a shift, before and after one temperature fitted in distribution alone."""

    temperature: float
    home: Calibration
    away: Calibration
    home_tempered: Calibration
    away_tempered: Calibration

    @property
    def gap(self) -> float:
        """ECE under the shift minus ECE in distribution, both tempered: what a temperature cannot mend."""
        return self.away_tempered.ece - self.home_tempered.ece


def calibration_shift(
    home_NC: Sequence[Sequence[float]] | np.ndarray,
    *,
    away_MC: Sequence[Sequence[float]] | np.ndarray,
    home_labels_N: Sequence[int],
    away_labels_M: Sequence[int],
    bins: int = 10,
) -> CalibrationShift:
    """Confidence is the largest class probability; the outcome is whether that class is the label."""
    temperature = fit_temperature(home_NC, labels_N=home_labels_N)

    def of(logits: Sequence[Sequence[float]] | np.ndarray, labels: Sequence[int], tempered: float) -> Calibration:
        p_NC = probabilities(logits, temperature=tempered)
        right = p_NC.argmax(axis=1) == np.asarray(labels)
        return calibration(p_NC.max(axis=1), outcome_N=right.astype(float), bins=bins)

    plain, after = ([of(home_NC, home_labels_N, t), of(away_MC, away_labels_M, t)] for t in (1.0, temperature))
    return CalibrationShift(temperature, plain[0], plain[1], after[0], after[1])
