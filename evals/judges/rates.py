"""Rates of judged responses: refused where too much is missing, and corrected for the judge's errors; pure.

Legend: D bootstrap draws, N judged responses, G clusters (base items).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from align.errors import UserError
from evals.items import Missing
from evals.judges.base import Judgement, Verdict
from evals.stats.intervals import Interval, bootstrap_interval, cluster_counts
from evals.stats.shares import share_of

SMALLEST_INFORMEDNESS = 0.01  # Se + Sp - 1 below which a judge says nothing and dividing by it only adds noise


@dataclass(frozen=True)
class Rate:
    """A share of one verdict among the judged, with what stands beside it: UNCLEAR, and what is missing and why."""

    interval: Interval
    unclear: float
    judged: int
    missing: dict[str, int]


def rate(
    verdicts: Sequence[Judgement | Verdict | Missing],
    *,
    of: Verdict = Verdict.BAD,
    clusters: Sequence[Hashable] | None = None,
    max_missing: float = 0.05,
) -> Rate:
    """`#of / (#GOOD + #BAD + #UNCLEAR)`, clustered (each entry its own cluster unless `clusters` says).

    UserError in one line where nothing is judged, or where the share of Missing is above `max_missing`: an outage of
    the judge is no verdict, so a rate over the rest would be of whatever got through.
    """
    if clusters is not None and len(clusters) != len(verdicts):
        raise ValueError(f"{len(verdicts)} verdicts with {len(clusters)} clusters: one each")
    missing = Counter(entry.reason for entry in verdicts if isinstance(entry, Missing))
    total, lost = len(verdicts), sum(missing.values())
    if total == lost or lost > max_missing * total:
        why = ", ".join(f"{reason} {n}" for reason, n in missing.most_common()) or "there is none"
        raise UserError(
            f"no rate of {of}: {lost} of {total} verdicts are missing ({why}), at most {max_missing:.0%} may be; "
            "fix the cause and run again (only these are asked again), or raise max_missing"
        )
    labels = range(total) if clusters is None else clusters
    placed = zip(verdicts, labels, strict=True)
    kept = [(_verdict(entry), label) for entry, label in placed if not isinstance(entry, Missing)]
    hits = [float(verdict is of) for verdict, _ in kept]
    unclear = sum(verdict is Verdict.UNCLEAR for verdict, _ in kept) / len(kept)
    return Rate(share_of(hits, clusters_N=[label for _, label in kept]), unclear, len(kept), dict(missing))


def _verdict(entry: Judgement | Verdict) -> Verdict:
    return entry.verdict if isinstance(entry, Judgement) else Verdict(entry)


def rogan_gladen(observed: float, *, sensitivity: float, specificity: float) -> float | None:
    """True rate behind an observed one: `(p + Sp - 1) / (Se + Sp - 1)`, clipped to [0, 1] (Rogan & Gladen 1978).

    None where Se + Sp - 1 < .01.
    """
    for name, value in (("observed", observed), ("sensitivity", sensitivity), ("specificity", specificity)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} {value} lies outside [0, 1]")
    informedness = sensitivity + specificity - 1
    if informedness < SMALLEST_INFORMEDNESS:
        return None
    return min(1.0, max(0.0, (observed + specificity - 1) / informedness))


@dataclass(frozen=True)
class Labelled:
    """A judge on responses with known labels: what it flagged, what is true, and the cluster (prompt) of each."""

    flagged: Sequence[bool]
    truth: Sequence[bool]
    clusters: Sequence[Hashable]

    def __post_init__(self) -> None:
        if not len(self.flagged) == len(self.truth) == len(self.clusters):
            raise ValueError("flags, labels and clusters: one each for every response")
        if len(set(map(bool, self.truth))) < 2:
            raise ValueError("labels of both kinds are needed for sensitivity and specificity")

    def tables_G4(self) -> np.ndarray:
        """Per cluster, counts of (flagged and true, missed, flagged and false, rightly not flagged); shape G x 4."""
        index: dict[Hashable, int] = {}
        rows = np.array([index.setdefault(cluster, len(index)) for cluster in self.clusters])
        kinds = np.array([(1 - bool(f)) + 2 * (1 - bool(t)) for f, t in zip(self.flagged, self.truth, strict=True)])
        return np.bincount(rows * 4 + kinds, minlength=4 * len(index)).reshape(-1, 4).astype(float)


@dataclass(frozen=True)
class Corrected:
    """The observed rate, and the one corrected for the judge's errors; `corrected.reason` says why it is not, if so."""

    observed: Interval
    corrected: Interval
    sensitivity: float
    specificity: float


def corrected_rate(
    flagged: Sequence[bool], *, clusters: Sequence[Hashable], validation: Labelled, draws: int = 2000, seed: int = 0
) -> Corrected:
    """Rogan-Gladen's rate with a percentile bootstrap that resamples base items and, apart, the validation's prompts.

    So the interval holds the judge's own uncertainty. It is never inside the observed rate's own interval, corrected at
    the judge's rates as they are, since resamples of items that all agree have no spread. Falls back to the observed
    rate, without an interval and with the reason, where Se + Sp - 1 < .01. It assumes that Se and Sp on the validation
    set hold on these responses too.
    """
    observed = share_of([float(flag) for flag in flagged], clusters_N=clusters)
    tables_G4 = validation.tables_G4()
    se, sp = _rates(tables_G4.sum(axis=0))
    estimate = rogan_gladen(observed.estimate, sensitivity=float(se), specificity=float(sp))
    n = len(set(clusters))
    if estimate is None:
        reason = f"not corrected: Se + Sp - 1 = {se + sp - 1:.3f} of the judge is below {SMALLEST_INFORMEDNESS}"
        kept = Interval(observed.estimate, None, None, observed.over, n, reason)
        return Corrected(observed, kept, float(se), float(sp))
    index: dict[Hashable, int] = {}
    codes = np.array([index.setdefault(cluster, len(index)) for cluster in clusters])
    hits_G, counts_G = np.bincount(codes, weights=np.asarray(flagged, dtype=float)), np.bincount(codes)
    picks_DG = cluster_counts([f"item {i}" for i in range(n)], draws=draws, seed=seed)
    observed_D = (picks_DG @ hits_G) / (picks_DG @ counts_G)
    labels = [f"validation {i}" for i in range(len(tables_G4))]
    se_D, sp_D = _rates((cluster_counts(labels, draws=draws, seed=seed) @ tables_G4).T)
    with np.errstate(divide="ignore", invalid="ignore"):
        values_D = np.clip((observed_D + sp_D - 1) / (se_D + sp_D - 1), 0, 1)
    values_D[~(se_D + sp_D - 1 >= SMALLEST_INFORMEDNESS)] = np.nan
    over = f"base items and {len(tables_G4)} validation prompts"
    # plain percentiles cover 92.7 % with 20 base items
    interval = bootstrap_interval(values_D, estimate=estimate, n=n, over=over)
    if interval.pair and observed.pair:
        ends = [rogan_gladen(end, sensitivity=float(se), specificity=float(sp)) for end in observed.pair]
        low, high = (float(end) for end in ends if end is not None)
        interval = replace(interval, low=min(interval.pair[0], low), high=max(interval.pair[1], high))
    return Corrected(observed, interval, float(se), float(sp))


def _rates(tables_4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sensitivity, specificity) of counts whose first axis is the four kinds."""
    hit, missed, false_alarm, passed = tables_4
    with np.errstate(divide="ignore", invalid="ignore"):
        return hit / (hit + missed), passed / (passed + false_alarm)
