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
from evals.stats import intervals as stats
from evals.stats import shares
from evals.stats.intervals import Interval
from evals.stats.paired_shares import paired_change
from evals.tables.surfaces import hypervolumes
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


def mean_score(run: Evaluation, *, policy: int = 1, weights: Sequence[float] = EQUAL, naive: bool = False) -> Estimate:
    """Mean scalar gold reward of a policy on plain prompts; `naive` takes every prompt for a base item."""
    population = run.testbed.family["none"][policy]
    values = run.scores(population, run.topics(), weights).ravel()
    clusters = range(len(values)) if naive else labels(run.groups)
    return Estimate(stats.clustered_mean(values, clusters_N=clusters), _score_truth(population, weights))


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
    interval = paired_change(after, before=before)
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
    return hypervolumes(flat.reshape(len(counts_DG), *points_GWK.shape[1:]), ref_point=REF_POINT)


def _resamples(run: Evaluation) -> np.ndarray:
    """(1 + D, G) the base items themselves, then each resample's."""
    drawn = stats.cluster_counts([str(g) for g in range(run.groups)], draws=DRAWS, seed=run.index)
    return np.concatenate([np.ones((1, run.groups)), drawn])


def _plain(values_D: np.ndarray, run: Evaluation) -> Interval:
    low, high = np.nanquantile(values_D[1:], [0.025, 0.975])
    return Interval(float(values_D[0]), float(low), float(high), "base items", run.groups)


def hypervolume(run: Evaluation, *, plain: bool = False) -> Estimate:
    """Hypervolume of the family's front on plain prompts; `plain`: with percentiles that are not expanded."""
    family = run.testbed.family["none"]
    values_D = _volume(_sampled_points(run, family, run.topics()), _resamples(run))
    truth = float(hypervolumes(_points(family)[None], ref_point=REF_POINT)[0])
    made = stats.bootstrap_interval(values_D[1:], estimate=float(values_D[0]), n=run.groups)
    return Estimate(_plain(values_D, run) if plain else made, truth)


def gain_retained(run: Evaluation, *, plain: bool = False) -> Estimate:
    """`(HV_cipher(family) - HV_cipher(ref)) / (HV_plain(family) - HV_plain(ref))` on shared base items."""
    topics, counts_DG = run.topics(), _resamples(run)
    gains_D, exact = [], []
    for shift in ("none", "cipher"):
        family, reference = run.testbed.family[shift], (run.testbed.reference[shift],)
        drawn = [_volume(_sampled_points(run, part, topics), counts_DG) for part in (family, reference)]
        volumes = [hypervolumes(_points(part)[None], ref_point=REF_POINT)[0] for part in (family, reference)]
        gains_D.append(drawn[0] - drawn[1])
        exact.append(float(volumes[0] - volumes[1]))
    truth = exact[1] / exact[0]
    if plain:
        with np.errstate(divide="ignore", invalid="ignore"):
            return Estimate(_plain(np.where(gains_D[0] > 0, gains_D[1] / gains_D[0], np.nan), run), truth)
    table = generalization.gain_retained(*gains_D, home=run.groups, away=run.groups, paired=True)
    low, high = table["gain_retained_ci"] or (None, None)
    degrees = run.groups - 1 if low is not None else None
    return Estimate(Interval(table["gain_retained"], low, high, "base items", run.groups, degrees=degrees), truth)


ESTIMATORS: dict[str, Estimator] = {
    "clustered mean": mean_score,
    "paired difference": paired,
    "unpaired difference": unpaired,
    "ASR (share)": failure_share,
    "ASR difference, paired": failure_change,
    "P(BAD | GOOD)": given_good,
    "corrected rate": corrected,
    "hypervolume": hypervolume,
    "gain retained": gain_retained,
}
HARD: dict[str, Estimator] = {  # what falls short: printed beside the others, held to no bar
    "skewed score, clustered mean": partial(mean_score, policy=0, weights=CAUTIOUS),
    "skewed score, prompts as base items": partial(mean_score, policy=0, weights=CAUTIOUS, naive=True),
    "hypervolume, plain percentiles": partial(hypervolume, plain=True),
    "gain retained, plain percentiles": partial(gain_retained, plain=True),
}
