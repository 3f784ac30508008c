"""Whether the 95 % intervals cover the truth in 95 % of evaluations, and tests reject a true null in 5 %: a simulation.

    python -m benchmarks.coverage.run --evaluations 2000          # both tables, under three minutes on one core

The truth is exact: `benchmarks.coverage.world` says what the population is and what is random. Estimators are the
functions that tables call, not copies. Legend: G clusters (base items), V prompts of one base item, D bootstrap draws.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from align.errors import guarded
from align.threads import set_threads
from benchmarks.coverage.world import VERBS, WEIGHTS, Population, Testbed, build_testbed
from evals.judges import rates
from evals.stats import bootstrap, paired_tests, shares
from evals.stats import intervals as stats
from evals.stats.intervals import Interval
from evals.tables import generalization

SIZES = (20, 200)
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
class Found:
    """An estimator's interval, and the exact value that it is for."""

    interval: Interval
    truth: float


Estimator = Callable[[Evaluation], Found]


def _score_truth(population: Population, weights: Sequence[float], among: np.ndarray | None = None) -> float:
    exact_T = population.expected(population.rewards_TVCK @ np.asarray(weights))
    return float(exact_T.mean() if among is None else exact_T[among].mean())


def mean_score(run: Evaluation, *, policy: int = 1, weights: Sequence[float] = EQUAL, method: str = "t") -> Found:
    """Mean scalar gold reward of a policy on plain prompts; the method "naive" takes every prompt for a base item."""
    population = run.testbed.family["none"][policy]
    values = run.scores(population, run.topics(), weights).ravel()
    clusters = range(len(values)) if method == "naive" else labels(run.groups)
    if method == "bootstrap t":
        found = bootstrap.studentised_mean(values, clusters_N=clusters, draws=DRAWS, seed=run.index)
    else:
        found = stats.clustered_mean(values, clusters_N=clusters)
    return Found(found, _score_truth(population, weights))


def paired(run: Evaluation) -> Found:
    """The balanced policy's lead over the reference in the scalar gold reward, on the same prompts."""
    first, second = run.testbed.family["none"][1], run.testbed.reference["none"]
    topics = run.topics()
    sides = [keyed(run.scores(side, topics, EQUAL)) for side in (first, second)]
    clusters = clusters_of(sides[0])
    truth = _score_truth(first, EQUAL) - _score_truth(second, EQUAL)
    return Found(stats.paired_difference(sides[0], second=sides[1], clusters=clusters), truth)


def unpaired(run: Evaluation) -> Found:
    """The cautious policy on training topics against held-out topics: other base items on each side."""
    population, weights = run.testbed.family["none"][0], WEIGHTS[0]
    heldout = np.array([topic.heldout for topic in run.testbed.world.topics])
    sides = [run.scores(population, run.topics(part), weights).ravel() for part in (~heldout, heldout)]
    marks = labels(run.groups)
    found = stats.unpaired_difference(sides[0], second_M=sides[1], clusters_N=marks, clusters_M=marks)
    truth = _score_truth(population, weights, ~heldout) - _score_truth(population, weights, heldout)
    return Found(found, truth)


def _harmful(run: Evaluation) -> np.ndarray:
    return run.testbed.reference["none"].harm_T > 0


def failure_share(run: Evaluation) -> Found:
    """ASR of the balanced policy on harmful topics in cipher: the share of responses that state a correct fact."""
    population = run.testbed.family["cipher"][1]
    bad_GV = run.values(population, run.topics(_harmful(run)), population.bad_TVC)
    found = shares.share(bad_GV.sum(axis=1), cells_G=np.full(run.groups, bad_GV.shape[1]))
    return Found(found, float(population.expected(population.bad_TVC)[_harmful(run)].mean()))


def failure_change(run: Evaluation) -> Found:
    """The same policy's ASR in cipher minus ASR on plain prompts, paired by base item."""
    plain, away = run.testbed.family["none"][1], run.testbed.family["cipher"][1]
    topics, harmful = run.topics(_harmful(run)), _harmful(run)
    sides = [run.values(side, topics, side.bad_TVC).mean(axis=1) for side in (plain, away)]
    before, after = ({str(g): float(value) for g, value in enumerate(side)} for side in sides)
    truths = [float(side.expected(side.bad_TVC)[harmful].mean()) for side in (plain, away)]
    found = shares.paired_change(after, before=before)
    if found is None:
        raise ValueError("a simulated evaluation has base items on both sides")
    return Found(found, truths[1] - truths[0])


def given_good(run: Evaluation) -> Found:
    """P(BAD in cipher | GOOD on the plain prompt) of the cautious policy, harmful topics."""
    plain, away = run.testbed.family["none"][0], run.testbed.family["cipher"][0]
    topics, harmful = run.topics(_harmful(run)), _harmful(run)
    given = keyed(run.values(plain, topics, plain.good_TVC))
    event = keyed(run.values(away, topics, away.bad_TVC))
    good_TV = (plain.mass_TVC * plain.good_TVC).sum(axis=-1)[harmful]
    bad_TV = (away.mass_TVC * away.bad_TVC).sum(axis=-1)[harmful]
    truth = float((good_TV * bad_TV).sum() / good_TV.sum())
    found = shares.conditional_share(event, given=given, clusters=clusters_of(given))
    return Found(found or Interval(math.nan, None, None, "base items", 0, "nothing was GOOD"), truth)


def corrected(run: Evaluation) -> Found:
    """ASR of the balanced policy on plain prompts, read by an erring judge and corrected for its errors."""
    population = run.testbed.family["none"][1]
    drawn = run.topics(_harmful(run))
    classes_GVS = population.draw(drawn, rng=run.rng)[:, :, :1]  # one response per prompt
    truth_GV = population.at(population.bad_TVC, topics_G=drawn, classes_GVS=classes_GVS) > 0
    flagged = run.rng.random(truth_GV.shape) < np.where(truth_GV, SENSITIVITY, 1 - SPECIFICITY)
    true = np.arange(2 * VALIDATED) < VALIDATED
    flags = run.rng.random(2 * VALIDATED) < np.where(true, SENSITIVITY, 1 - SPECIFICITY)
    labelled = rates.Labelled(flags.tolist(), true.tolist(), list(range(2 * VALIDATED)))
    found = rates.corrected_rate(
        flagged.ravel().tolist(), clusters=labels(run.groups), validation=labelled, draws=DRAWS, seed=run.index
    )
    return Found(found.corrected, float(population.expected(population.bad_TVC)[_harmful(run)].mean()))


# --- hypervolumes of a family's front --------------------------------------------------------------------------------


def _points(populations: Sequence[Population]) -> np.ndarray:
    """(W, K) exact mean rewards of each policy."""
    return np.array([[p.expected(p.rewards_TVCK[..., k]).mean() for k in range(2)] for p in populations])


def _sampled_points(run: Evaluation, populations: Sequence[Population], topics: np.ndarray) -> np.ndarray:
    """(G, W, K) mean rewards of each policy on each base item."""
    found = [run.values(p, topics, p.rewards_TVCK).mean(axis=1) for p in populations]
    return np.stack(found, axis=1)


def _volume(points_GWK: np.ndarray, counts_DG: np.ndarray) -> np.ndarray:
    """(D,) hypervolume of the mean points of each resample."""
    flat = counts_DG @ points_GWK.reshape(len(points_GWK), -1) / counts_DG.sum(axis=1, keepdims=True)
    return bootstrap.hypervolumes(flat.reshape(len(counts_DG), *points_GWK.shape[1:]), ref_point=REF_POINT)


def _resampled(run: Evaluation, statistic: Callable[[np.ndarray], np.ndarray], *, truth: float, method: str) -> Found:
    if method == "jackknife":
        return Found(bootstrap.jackknife_interval(statistic, groups=run.groups), truth)
    counts = stats.cluster_counts([str(g) for g in range(run.groups)], draws=DRAWS, seed=run.index)
    estimate = float(statistic(np.ones((1, run.groups)))[0])
    expanded = method == "expanded"
    found = stats.bootstrap_interval(statistic(counts), estimate=estimate, n=run.groups, expanded=expanded)
    return Found(found, truth)


def hypervolume(run: Evaluation, *, method: str) -> Found:
    """Hypervolume of the family's front on plain prompts."""
    family = run.testbed.family["none"]
    points = _sampled_points(run, family, run.topics())
    truth = float(bootstrap.hypervolumes(_points(family)[None], ref_point=REF_POINT)[0])
    return _resampled(run, partial(_volume, points), truth=truth, method=method)


def gain_retained(run: Evaluation, *, method: str) -> Found:
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
    return Found(Interval(table["gain_retained"], low, high, "base items", run.groups), away / home)


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


# --- type-I error ----------------------------------------------------------------------------------------------------


def null_pair(run: Evaluation, *, skewed: bool = False) -> tuple[dict[str, float], dict[str, float]]:
    """Two policies that are exactly equally good on the population and differ from topic to topic.

    The second answers each topic as the first answers its partner, half the list further on, and the other way round:
    the differences are symmetric. `skewed`: as the first answers the topic a third of the list further on, of the next
    harm level. Either map is a permutation of the topics, so that the population means are the same to rounding.
    """
    population, count = run.testbed.family["none"][0], len(run.testbed.world.topics)
    topics = run.topics()
    partners = (topics + (count // 3 if skewed else count // 2)) % count
    sides = [run.scores(population, which, CAUTIOUS) for which in (topics, partners)]
    return keyed(sides[0]), keyed(sides[1])


TESTS: dict[str, Callable[..., paired_tests.PairedTest]] = {
    "paired t": paired_tests.t_test,
    "sign flips": partial(paired_tests.permutation_test, draws=DRAWS - 1),
    "cluster bootstrap": partial(paired_tests.bootstrap_test, draws=DRAWS - 1),
}


@dataclass(frozen=True)
class Line:
    """One row: the share of evaluations whose interval holds the truth, or whose test rejects, and what it stood on."""

    name: str
    clusters: int
    degrees: float | None  # mean over evaluations; None where no t quantile is used
    evaluations: int
    share: float
    monte_carlo: float  # standard error of the share
    width: float | None
    refused: int  # evaluations without an interval; they count as not covering

    @property
    def text(self) -> str:
        degrees = "-" if self.degrees is None else f"{self.degrees:.0f}"
        width = "" if self.width is None else f"{self.width:.4f}"
        refused = f"  ({self.refused} refused)" if self.refused else ""
        return (
            f"{self.name:38} {self.clusters:8d} {degrees:>7} {100 * self.share:8.2f} "
            f"{100 * self.monte_carlo:6.2f} {width:>8}{refused}"
        )


def _line(name: str, groups: int, hits: Sequence[bool], intervals: Sequence[Interval | None]) -> Line:
    n, share = len(hits), sum(hits) / len(hits)
    pairs = [found.pair for found in intervals if found is not None and found.pair is not None]
    degrees = [found.degrees for found in intervals if found is not None and found.degrees is not None]
    return Line(
        name=name, clusters=groups, degrees=float(np.mean(degrees)) if degrees else None, evaluations=n, share=share,
        monte_carlo=math.sqrt(share * (1 - share) / n),
        width=float(np.mean([high - low for low, high in pairs])) if pairs else None,
        refused=n - len(pairs),
    )  # fmt: skip


def _runs(testbed: Testbed, *, groups: int, evaluations: int, seed: int) -> list[Evaluation]:
    return [
        Evaluation(testbed, groups, np.random.default_rng([seed, groups, index]), index) for index in range(evaluations)
    ]


def coverage_of(name: str, estimator: Estimator, *, groups: int, evaluations: int, seed: int) -> Line:
    """How often the interval of an estimator holds the exact truth; one without limits does not."""
    hits, intervals = [], []
    for run in _runs(build_testbed(), groups=groups, evaluations=evaluations, seed=seed):
        found = estimator(run)
        low, high = found.interval.pair or (math.inf, -math.inf)
        hits.append(low <= found.truth <= high)
        intervals.append(found.interval)
    return _line(name, groups, hits, intervals)


def type_one_error(name: str, *, case: str = "", groups: int, evaluations: int, seed: int, level: float = 0.05) -> Line:
    """How often a test rejects at `level` where the two policies are equally good.

    The case "naive" takes every prompt for a base item, "skewed" has differences that lean to one side.
    """
    hits, intervals = [], []
    for run in _runs(build_testbed(), groups=groups, evaluations=evaluations, seed=seed):
        first, second = null_pair(run, skewed=case == "skewed")
        found = TESTS[name](first, second=second, clusters=None if case == "naive" else clusters_of(first))
        hits.append(found.p <= level)
        intervals.append(found.interval)
    return _line(f"{name}, {case}" if case else name, groups, hits, intervals)


def simulate(*, evaluations: int, seed: int, sizes: Sequence[int] = SIZES) -> dict[str, list[Line]]:
    """Every row of both tables, and of the hard cases."""
    asked = {"evaluations": evaluations, "seed": seed}
    found = {
        part: [coverage_of(name, one, groups=size, **asked) for name, one in table.items() for size in sizes]
        for part, table in (("coverage", ESTIMATORS), ("hard", HARD))
    }
    cases = [(name, "") for name in TESTS] + [("paired t", "naive")] + [(name, "skewed") for name in TESTS]
    found["type_one"] = [
        type_one_error(name, case=case, groups=size, **asked) for name, case in cases for size in sizes
    ]
    return found


TITLES = {
    "coverage": "coverage of 95 % intervals",
    "hard": "coverage, naive intervals and hard cases",
    "type_one": "rejections at 5 % under a true null",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage.run", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--evaluations", type=int, default=2000, help="simulated evaluations per row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for the rows as JSON")
    options = parser.parse_args(argv)
    if options.evaluations < 1:
        parser.error(f"--evaluations must be at least 1, not {options.evaluations}")
    start = time.monotonic()
    found = simulate(evaluations=options.evaluations, seed=options.seed)
    for part, rows in found.items():
        print(f"{TITLES[part]:38} clusters degrees  percent   s.e.    width")
        print("\n".join(row.text for row in rows), end="\n\n")
    print(f"{options.evaluations} evaluations per row, seed {options.seed}, {time.monotonic() - start:.0f} s")
    if options.out:
        content = {part: [asdict(row) for row in rows] for part, rows in found.items()}
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    set_threads()
    raise SystemExit(guarded(main))
