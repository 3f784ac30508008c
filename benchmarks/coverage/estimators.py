"""Estimators of the tables on simulated evaluations, each with the exact value that its interval is for.

They are the functions that tables call, not copies. Legend: G clusters (base items), V prompts of one base item, D
bootstrap draws, W policies of a front, K objectives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from align.testbed.theory.populations import VERBS, WEIGHTS, Population, Testbed
from evals.judges import rates
from evals.stats import bootstrap, shares
from evals.stats import intervals as stats
from evals.stats.intervals import Interval
from evals.tables.under_shift import generalization

DRAWS = 500  # bootstrap draws per evaluation here; the tables take 1,000 and more
SENSITIVITY, SPECIFICITY, VALIDATED = 0.9, 0.95, 200  # the simulated judge, and its labelled responses of each kind
REF_POINT = (-0.5, -0.5)
EQUAL, CAUTIOUS = (0.5, 0.5), (0.1, 0.9)  # weights of the scalar gold reward; the second is skewed over topics


@dataclass(frozen=True)
class Evaluation:
    """One simulated evaluation: which topics its base items are, and the stream that its responses come from."""

    testbed: Testbed
    groups: int
    rng: np.random.Generator
    index: int

    def topics(self, among: np.ndarray | None = None) -> np.ndarray:
        """(G,) topics drawn with replacement, from those where `among` is true."""
        count = len(self.testbed.world.topics)
        pool = np.arange(count) if among is None else np.flatnonzero(among)
        return self.rng.choice(pool, size=self.groups)

    def scores(self, population: Population, topics_G: np.ndarray, weights: Sequence[float]) -> np.ndarray:
        """(G, V) mean scalar gold reward `w . r` of each prompt's fresh samples."""
        return self.values(population, topics_G, population.rewards_TVCK @ np.asarray(weights))

    def values(self, population: Population, topics_G: np.ndarray, values_TVC: np.ndarray) -> np.ndarray:
        drawn = population.draw(topics_G, rng=self.rng)
        return population.at(values_TVC, topics_G=topics_G, classes_GVS=drawn)


def labels(groups: int) -> list[int]:
    """The cluster of each of G x V prompts, row by row."""
    return [g for g in range(groups) for _ in VERBS]


def keyed(values_GV: np.ndarray) -> dict[str, float]:
    return {f"{g} {v}": float(value) for g, row in enumerate(values_GV) for v, value in enumerate(row)}


def clusters_of(values: Mapping[str, float]) -> dict[str, str]:
    return {key: key.split()[0] for key in values}


@dataclass(frozen=True)
class Estimate:
    """An estimator's interval, and the exact value that it is for."""

    interval: Interval
    truth: float


Estimator = Callable[[Evaluation], Estimate]


def _score_truth(population: Population, weights: Sequence[float], among: np.ndarray | None = None) -> float:
    exact_T = population.expected(population.rewards_TVCK @ np.asarray(weights))
    return float(exact_T.mean() if among is None else exact_T[among].mean())


def mean_score(run: Evaluation, *, policy: int = 1, weights: Sequence[float] = EQUAL, method: str = "t") -> Estimate:
    """Mean scalar gold reward of a policy on plain prompts; the method "naive" takes every prompt for a base item."""
    population = run.testbed.family["none"][policy]
    values = run.scores(population, run.topics(), weights).ravel()
    clusters = range(len(values)) if method == "naive" else labels(run.groups)
    if method == "bootstrap t":
        interval = bootstrap.studentised_mean(values, clusters_N=clusters, draws=DRAWS, seed=run.index)
    else:
        interval = stats.clustered_mean(values, clusters_N=clusters)
    return Estimate(interval, _score_truth(population, weights))


def paired(run: Evaluation) -> Estimate:
    """The balanced policy's lead over the reference in the scalar gold reward, on the same prompts."""
    first, second = run.testbed.family["none"][1], run.testbed.reference["none"]
    topics = run.topics()
    sides = [keyed(run.scores(side, topics, EQUAL)) for side in (first, second)]
    clusters = clusters_of(sides[0])
    truth = _score_truth(first, EQUAL) - _score_truth(second, EQUAL)
    return Estimate(stats.paired_difference(sides[0], second=sides[1], clusters=clusters), truth)


def unpaired(run: Evaluation) -> Estimate:
    """The cautious policy on training topics against held-out topics: other base items on each side."""
    population, weights = run.testbed.family["none"][0], WEIGHTS[0]
    heldout = np.array([topic.heldout for topic in run.testbed.world.topics])
    sides = [run.scores(population, run.topics(part), weights).ravel() for part in (~heldout, heldout)]
    marks = labels(run.groups)
    difference = stats.unpaired_difference(sides[0], second_M=sides[1], clusters_N=marks, clusters_M=marks)
    truths = [_score_truth(population, weights, part) for part in (~heldout, heldout)]
    return Estimate(difference, truths[0] - truths[1])


def _harmful(run: Evaluation) -> np.ndarray:
    return run.testbed.reference["none"].harm_T > 0


def failure_share(run: Evaluation) -> Estimate:
    """ASR of the balanced policy on harmful topics in cipher: the share of responses that state a correct fact."""
    population = run.testbed.family["cipher"][1]
    bad_GV = run.values(population, run.topics(_harmful(run)), population.bad_TVC)
    interval = shares.share(bad_GV.sum(axis=1), cells_G=np.full(run.groups, bad_GV.shape[1]))
    return Estimate(interval, float(population.expected(population.bad_TVC)[_harmful(run)].mean()))


def failure_change(run: Evaluation) -> Estimate:
    """The same policy's ASR in cipher minus ASR on plain prompts, paired by base item."""
    plain, away = run.testbed.family["none"][1], run.testbed.family["cipher"][1]
    topics, harmful = run.topics(_harmful(run)), _harmful(run)
    sides = [run.values(side, topics, side.bad_TVC).mean(axis=1) for side in (plain, away)]
    before, after = ({str(g): float(value) for g, value in enumerate(side)} for side in sides)
    truths = [float(side.expected(side.bad_TVC)[harmful].mean()) for side in (plain, away)]
    interval = shares.paired_change(after, before=before)
    if interval is None:
        raise ValueError("a simulated evaluation has base items on both sides")
    return Estimate(interval, truths[1] - truths[0])


def given_good(run: Evaluation) -> Estimate:
    """P(BAD in cipher | GOOD on the plain prompt) of the cautious policy, harmful topics."""
    plain, away = run.testbed.family["none"][0], run.testbed.family["cipher"][0]
    topics, harmful = run.topics(_harmful(run)), _harmful(run)
    given = keyed(run.values(plain, topics, plain.good_TVC))
    event = keyed(run.values(away, topics, away.bad_TVC))
    good_TV = (plain.mass_TVC * plain.good_TVC).sum(axis=-1)[harmful]
    bad_TV = (away.mass_TVC * away.bad_TVC).sum(axis=-1)[harmful]
    truth = float((good_TV * bad_TV).sum() / good_TV.sum())
    interval = shares.conditional_share(event, given=given, clusters=clusters_of(given))
    return Estimate(interval or Interval(math.nan, None, None, "base items", 0, "nothing was GOOD"), truth)


def corrected(run: Evaluation) -> Estimate:
    """ASR of the balanced policy on plain prompts, read by an erring judge and corrected for its errors."""
    population = run.testbed.family["none"][1]
    drawn = run.topics(_harmful(run))
    classes_GVS = population.draw(drawn, rng=run.rng)[:, :, :1]  # one response per prompt
    truth_GV = population.at(population.bad_TVC, topics_G=drawn, classes_GVS=classes_GVS) > 0
    flagged = run.rng.random(truth_GV.shape) < np.where(truth_GV, SENSITIVITY, 1 - SPECIFICITY)
    true = np.arange(2 * VALIDATED) < VALIDATED
    flags = run.rng.random(2 * VALIDATED) < np.where(true, SENSITIVITY, 1 - SPECIFICITY)
    labelled = rates.Labelled(flags.tolist(), true.tolist(), list(range(2 * VALIDATED)))
    rate = rates.corrected_rate(
        flagged.ravel().tolist(), clusters=labels(run.groups), validation=labelled, draws=DRAWS, seed=run.index
    )
    return Estimate(rate.corrected, float(population.expected(population.bad_TVC)[_harmful(run)].mean()))


# --- hypervolumes of a family's front --------------------------------------------------------------------------------


def _points(populations: Sequence[Population]) -> np.ndarray:
    """(W, K) exact mean rewards of each policy."""
    return np.array([[p.expected(p.rewards_TVCK[..., k]).mean() for k in range(2)] for p in populations])


def _sampled_points(run: Evaluation, populations: Sequence[Population], topics: np.ndarray) -> np.ndarray:
    """(G, W, K) mean rewards of each policy on each base item."""
    return np.stack([run.values(p, topics, p.rewards_TVCK).mean(axis=1) for p in populations], axis=1)


def _volume(points_GWK: np.ndarray, counts_DG: np.ndarray) -> np.ndarray:
    """(D,) hypervolume of the mean points of each resample."""
    flat = counts_DG @ points_GWK.reshape(len(points_GWK), -1) / counts_DG.sum(axis=1, keepdims=True)
    return bootstrap.hypervolumes(flat.reshape(len(counts_DG), *points_GWK.shape[1:]), ref_point=REF_POINT)


def _resampled(
    run: Evaluation, statistic: Callable[[np.ndarray], np.ndarray], *, truth: float, method: str
) -> Estimate:
    if method == "jackknife":
        return Estimate(bootstrap.jackknife_interval(statistic, groups=run.groups), truth)
    counts = stats.cluster_counts([str(g) for g in range(run.groups)], draws=DRAWS, seed=run.index)
    estimate = float(statistic(np.ones((1, run.groups)))[0])
    expanded = method == "expanded"
    interval = stats.bootstrap_interval(statistic(counts), estimate=estimate, n=run.groups, expanded=expanded)
    return Estimate(interval, truth)


def hypervolume(run: Evaluation, *, method: str) -> Estimate:
    """Hypervolume of the family's front on plain prompts."""
    family = run.testbed.family["none"]
    points = _sampled_points(run, family, run.topics())
    truth = float(bootstrap.hypervolumes(_points(family)[None], ref_point=REF_POINT)[0])
    return _resampled(run, partial(_volume, points), truth=truth, method=method)


def gain_retained(run: Evaluation, *, method: str) -> Estimate:
    """`(HV_cipher(family) - HV_cipher(ref)) / (HV_plain(family) - HV_plain(ref))` on shared base items.

    The method "percentile" is `generalization.gain_retained` itself.
    """
    topics = run.topics()
    sides = [(run.testbed.family[s], (run.testbed.reference[s],)) for s in ("none", "cipher")]
    drawn = [[_sampled_points(run, part, topics) for part in side] for side in sides]
    exact = [[bootstrap.hypervolumes(_points(part)[None], ref_point=REF_POINT)[0] for part in side] for side in sides]
    home, away = (float(family - reference) for family, reference in exact)

    def gains(counts_DG: np.ndarray) -> list[np.ndarray]:
        return [_volume(family, counts_DG) - _volume(reference, counts_DG) for family, reference in drawn]

    def ratio(counts_DG: np.ndarray) -> np.ndarray:
        below, above = gains(counts_DG)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(below > 0, above / below, np.nan))

    if method != "percentile":
        return _resampled(run, ratio, truth=away / home, method=method)
    counts = stats.cluster_counts([str(g) for g in range(run.groups)], draws=DRAWS, seed=run.index)
    below, above = gains(np.concatenate([np.ones((1, run.groups)), counts]))
    table = generalization.gain_retained(below, above, home=run.groups, away=run.groups, paired=True)
    low, high = table["gain_retained_ci"] or (None, None)
    return Estimate(Interval(table["gain_retained"], low, high, "base items", run.groups), away / home)


ESTIMATORS: dict[str, Estimator] = {
    "clustered mean": mean_score,
    "paired difference": paired,
    "unpaired difference": unpaired,
    "ASR (share)": failure_share,
    "ASR difference, paired": failure_change,
    "P(BAD | GOOD)": given_good,
    "corrected rate": corrected,
    "hypervolume, expanded percentiles": partial(hypervolume, method="expanded"),
    "hypervolume, jackknife t": partial(hypervolume, method="jackknife"),
    "gain retained, expanded percentiles": partial(gain_retained, method="expanded"),
    "gain retained, jackknife t": partial(gain_retained, method="jackknife"),
}
HARD: dict[str, Estimator] = {  # what falls short, or is known to strain: printed beside the others, held to no bar
    "skewed score, clustered mean": partial(mean_score, policy=0, weights=CAUTIOUS),
    "skewed score, bootstrap t": partial(mean_score, policy=0, weights=CAUTIOUS, method="bootstrap t"),
    "skewed score, prompts as base items": partial(mean_score, policy=0, weights=CAUTIOUS, method="naive"),
    "hypervolume, plain percentiles": partial(hypervolume, method="percentile"),
    "gain retained, plain percentiles": partial(gain_retained, method="percentile"),
}
