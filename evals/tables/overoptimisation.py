"""How far a proxy reward can be pushed before the gold one falls: best-of-n curves, Gao's fits, peak, gap; pure.

`d = sqrt(KL(pi || pi_init))` in nats^(1/2); rewards are gains over the initial policy, so R(0) = 0. Best-of-n:
`R(d) = d (alpha - beta d)`; reinforcement learning: `R(d) = d (alpha - beta log d)` (Gao, Schulman & Hilton 2022,
section 3.1). KL of the two is not comparable (their caveat). Shapes: P prompts, N samples of each, M points of a curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from align.errors import UserError
from evals.items import NO_SHIFT, Json
from evals.stats.intervals import Interval, bootstrap_interval, cluster_counts, clustered_mean

Scores = list[list[float]]


def best_of_n_weights(samples: int, *, n: int) -> np.ndarray:
    """`C(j - 1, n - 1) / C(N, n)`, j = 1 .. N: how likely the j-th worst of N samples is the best of n drawn without
    replacement; shape N, sums to 1.
    """
    if not 1 <= n <= samples:
        raise ValueError(f"best of {n} from {samples} samples")
    weights = np.zeros(samples)
    weights[-1] = n / samples
    for j in range(samples - 1, n - 1, -1):  # 1-based rank j from rank j + 1
        weights[j - 1] = weights[j] * (j + 1 - n) / j
    return weights


def best_of_n_means(proxy_PN: ArrayLike, *, gold_PN: ArrayLike, n: int) -> np.ndarray:
    """(P,) unbiased expected gold score of best-of-n by the proxy, from one dump of N scored samples per prompt.

    `sum_j C(j - 1, n - 1) / C(N, n) gold_(j)`, samples in rising order of the proxy; equal proxies share their gold
    scores, as if ties were broken by lot. With `gold_PN=proxy_PN` it is the proxy's own curve.
    """
    proxy, gold = np.asarray(proxy_PN, dtype=float), np.asarray(gold_PN, dtype=float)
    if proxy.ndim != 2 or proxy.shape != gold.shape or 0 in proxy.shape:
        raise ValueError(f"proxies of shape {proxy.shape} with gold scores of shape {gold.shape}: prompts x samples")
    if not (np.isfinite(proxy).all() and np.isfinite(gold).all()):
        raise ValueError("a score is not finite")
    weights = best_of_n_weights(proxy.shape[1], n=n)
    return np.array([_shared_ties(p, g) @ weights for p, g in zip(proxy, gold, strict=True)])


def _shared_ties(proxy_N: np.ndarray, gold_N: np.ndarray) -> np.ndarray:
    """Gold scores in rising order of the proxy, equal proxies averaged."""
    _, places, counts = np.unique(proxy_N, return_inverse=True, return_counts=True)
    means = np.bincount(places, weights=gold_N) / counts
    return np.asarray(np.repeat(means, counts))


@dataclass(frozen=True)
class Curve:
    """Gains over the initial policy along d: per prompt (the cluster of every interval), gold and proxy."""

    d_M: np.ndarray
    gold_PM: np.ndarray
    proxy_PM: np.ndarray
    labels: tuple[int, ...] = ()  # n of best-of-n, or training steps

    def __post_init__(self) -> None:
        shapes = {self.gold_PM.shape, self.proxy_PM.shape}
        if len(shapes) > 1 or self.gold_PM.ndim != 2 or self.gold_PM.shape[1] != len(self.d_M):
            raise ValueError(f"a curve of {len(self.d_M)} points with tables of shapes {sorted(shapes)}")
        if (self.d_M < 0).any() or (np.diff(self.d_M) <= 0).any():
            raise ValueError("the points of a curve stand at rising d >= 0")

    def gold(self) -> list[Interval]:
        return [clustered_mean(column, clusters_N=range(len(column)), over="prompts") for column in self.gold_PM.T]

    def gap(self) -> list[Interval]:
        """Proxy minus gold at each d, paired by prompt: what the proxy promises and the gold reward does not pay."""
        return [
            clustered_mean(column, clusters_N=range(len(column)), over="prompts, paired")
            for column in (self.proxy_PM - self.gold_PM).T
        ]

    def drop(self) -> float:
        """The best mean gold gain of the curve, less that of its last point: what pushing on has cost."""
        means = self.gold_PM.mean(axis=0)
        return float(max(means.max(), 0.0) - means[-1])


def best_of_n_curve(proxy_PN: ArrayLike, *, gold_PN: ArrayLike, ns: Sequence[int] | None = None) -> Curve:
    """The whole curve from one dump, at `d = sqrt(log n - (n - 1) / n)`; by default n = 1, 2, 4, .. up to N.

    That KL is an upper bound (`align.policies.best_of_n.kl_bound`), reached where no two samples score alike.
    """
    from align.policies.best_of_n import kl_bound

    samples = np.asarray(proxy_PN).shape[-1]
    chosen = [2**k for k in range(int(math.log2(samples)) + 1)] if ns is None else list(ns)
    tables = [
        np.stack([best_of_n_means(proxy_PN, gold_PN=scores, n=n) for n in chosen], axis=1)
        for scores in (gold_PN, proxy_PN)
    ]
    start = [best_of_n_means(proxy_PN, gold_PN=scores, n=1)[:, None] for scores in (gold_PN, proxy_PN)]
    d_M = np.sqrt([max(0.0, kl_bound(n)) for n in chosen])
    return Curve(d_M, tables[0] - start[0], tables[1] - start[1], tuple(chosen))


# --- Gao's fits ------------------------------------------------------------------------------------------------------

BENDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"best-of-n": lambda d: d * d, "rl": lambda d: d * np.log(d)}


@dataclass(frozen=True)
class Fit:
    """`R(d) = alpha d - beta bend(d)`; the peak is None where beta <= 0: the curve never turns."""

    form: str
    alpha: float
    beta: float

    @property
    def peak(self) -> float | None:
        """d* of the largest R: `alpha / (2 beta)` for best-of-n, `exp(alpha / beta - 1)` for RL (none past e^700)."""
        if self.beta <= 0 or (self.form == "best-of-n" and self.alpha <= 0) or self.alpha / self.beta > 700:
            return None
        return self.alpha / (2 * self.beta) if self.form == "best-of-n" else math.exp(self.alpha / self.beta - 1)

    def at(self, d: ArrayLike) -> np.ndarray:
        """R at d > 0."""
        points = np.asarray(d, dtype=float)
        return np.asarray(self.alpha * points - self.beta * BENDS[self.form](points))


def fit(d_M: ArrayLike, *, gains_M: ArrayLike, form: str, d_min: float) -> Fit:
    """Least squares over the points with d > d_min, without intercept: R(0) = 0.

    The RL form's slope is unbounded at 0, so d_min keeps away from it. UserError for fewer than three such points.
    """
    if form not in BENDS:
        raise ValueError(f"no form {form!r}; choose {' or '.join(BENDS)}")
    d, gains = np.asarray(d_M, dtype=float), np.asarray(gains_M, dtype=float)
    kept = d > max(d_min, 0.0)
    if kept.sum() < 3:
        raise UserError(f"over-optimisation: {kept.sum()} points above d = {d_min:g}, a fit needs at least 3; add some")
    d, gains = d[kept], gains[kept]
    (alpha, minus_beta), *_ = np.linalg.lstsq(np.stack([d, BENDS[form](d)], axis=1), gains, rcond=None)
    return Fit(form, float(alpha), -float(minus_beta))


@dataclass(frozen=True)
class Fitted:
    """A fit with bootstrap intervals over prompts. `peak` is None where the fit has none; its interval is null with the
    reason where more than 5 % of the resamples have none.
    """

    fit: Fit
    alpha: Interval
    beta: Interval
    peak: Interval | None
    peak_beyond: bool  # the peak lies past the last point: an extrapolation
    points: int
    d_min: float


def fit_curve(curve: Curve, *, form: str, d_min: float, draws: int = 1000, seed: int = 0) -> Fitted:
    """The fit of the mean gold gain, and its intervals from whole prompts resampled (percentiles, expanded)."""
    prompts = len(curve.gold_PM)
    fitted = fit(curve.d_M, gains_M=curve.gold_PM.mean(axis=0), form=form, d_min=d_min)
    counts_DP = cluster_counts([str(p) for p in range(prompts)], draws=draws, seed=seed)
    fits = [fit(curve.d_M, gains_M=row, form=form, d_min=d_min) for row in counts_DP @ curve.gold_PM / prompts]

    def interval(values: list[float], estimate: float) -> Interval:
        return bootstrap_interval(values, estimate=estimate, n=prompts, over="prompts")

    peaks = [math.nan if one.peak is None else one.peak for one in fits]
    return Fitted(
        fit=fitted,
        alpha=interval([one.alpha for one in fits], fitted.alpha),
        beta=interval([one.beta for one in fits], fitted.beta),
        peak=None if fitted.peak is None else interval(peaks, fitted.peak),
        peak_beyond=fitted.peak is not None and fitted.peak > float(curve.d_M[-1]),
        points=int((curve.d_M > d_min).sum()),
        d_min=d_min,
    )


# --- from a dump of scored samples -----------------------------------------------------------------------------------


def scores_of(
    rows: Iterable[tuple[str, Mapping[str, object]]], *, item: str, proxy: str, gold: str, shift: str = NO_SHIFT,
    max_missing: float = 0.05,
) -> tuple[Scores, Scores, dict[str, int]]:  # fmt: skip
    """(proxy, gold) as prompts x samples, and what was counted: {prompts, samples, missing, left_out}.

    `rows` come with the place that errors name. Rows of another shift are not read (a file without a column `shift`
    has one). A sample without both scores is missing; every prompt keeps as many samples as the one with the fewest
    has, and `left_out` counts the rest. UserError for a score that is no number, fewer than two samples, or more than
    `max_missing` missing.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    missing = total = 0
    for where, row in rows:
        if row.get("shift", shift) != shift:
            continue
        total += 1
        samples = pairs.setdefault(str(row[item]), [])
        if row.get(proxy) is None or row.get(gold) is None:
            missing += 1
        else:
            samples.append((_number(row, proxy, where), _number(row, gold, where)))
    if not total:
        raise UserError(f"no row has shift {shift!r}; name the one to read with --shift")
    if missing > max_missing * total:
        words = f"{missing} of {total} samples lack {proxy!r} or {gold!r}"
        raise UserError(f"{words}; measure them, or raise --max-missing")
    poorest = min(pairs, key=lambda name: len(pairs[name]))
    least = len(pairs[poorest])
    if least < 2:
        raise UserError(f"prompt {poorest!r} has {least} scored samples; a curve needs at least 2 of every prompt")
    left_out = sum(len(samples) - least for samples in pairs.values())
    counts = {"prompts": len(pairs), "samples": least, "missing": missing, "left_out": left_out}
    proxy_PN, gold_PN = ([[pair[k] for pair in samples[:least]] for samples in pairs.values()] for k in range(2))
    return proxy_PN, gold_PN, counts


def _number(row: Mapping[str, object], column: str, where: str) -> float:
    value = row[column]
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise UserError(f"{where}: {column!r} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise UserError(f"{where}: {column!r} must be finite, not {value!r}")
    return float(value)


def curve_table(proxy_PN: Scores, *, gold_PN: Scores, draws: int = 1000, seed: int = 0) -> Json:
    """`points`: n, KL bound, d, gold and proxy gain and their gap, with intervals over prompts; `fit` and its peak.

    Gains are over one sample (n = 1). `fit` is null with the reason where there are too few points for one.
    """
    curve = best_of_n_curve(proxy_PN, gold_PN=gold_PN)
    gold, gap = curve.gold(), curve.gap()
    means = curve.proxy_PM.mean(axis=0)
    points = [
        {
            "n": n, "kl": float(curve.d_M[m]) ** 2, "d": float(curve.d_M[m]), "gold": gold[m].stated,
            "proxy": float(means[m]), "gap": gap[m].stated,
        }
        for m, n in enumerate(curve.labels)
    ]  # fmt: skip
    table: Json = {"points": points, "gold_drop_after_its_best": curve.drop()}
    try:
        fitted = fit_curve(curve, form="best-of-n", d_min=0.0, draws=draws, seed=seed)
    except UserError as error:
        return table | {"fit": None, "fit_reason": str(error)}
    peak = None if fitted.peak is None else fitted.peak.stated | {"beyond_the_curve": fitted.peak_beyond}
    return table | {
        "fit": {"form": "R(d) = d (alpha - beta d)", "alpha": fitted.alpha.stated, "beta": fitted.beta.stated,
                "peak": peak, "points": fitted.points},
    }  # fmt: skip
