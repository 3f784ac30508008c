"""Whether the 95 % intervals cover the truth in 95 % of evaluations, and tests reject a true null in 5 %: a simulation.

    python -m benchmarks.coverage.run --evaluations 2000 --publish docs    # a few minutes on one core

The truth is exact: `align.testbed.theory.populations` defines the population and what is random, `rare.py` the yes/no
evaluations with few changes. Estimators are the functions that tables call, not copies. Writes results/coverage.json
and the tables of statistics.md. Legend: G clusters (base items), V prompts of one base item, D bootstrap draws.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from align import checks
from align.errors import guarded
from align.runs.threads import set_threads
from align.testbed.theory.populations import Testbed, build_testbed
from benchmarks.coverage.estimators import CAUTIOUS, ESTIMATORS, HARD, Estimator, Evaluation, clusters_of, keyed
from benchmarks.coverage.page import write_page
from benchmarks.coverage.rare import OTHERS, RARE, Draw
from evals.stats.intervals import Interval, paired_difference
from evals.stats.paired_tests import PairedTest, sign_flip_p, t_test
from recipes.config import option, parse

SIZES = (20, 200)


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


def flips(
    first: Mapping[str, float], *, second: Mapping[str, float], clusters: Mapping[str, str] | None
) -> PairedTest:
    """Sign flips by cluster, as beside a change of shares."""
    sums: dict[str, float] = {}
    for key in first:
        cluster = key if clusters is None else clusters[key]
        sums[cluster] = sums.get(cluster, 0.0) + first[key] - second[key]
    interval = paired_difference(first, second=second, clusters=clusters)
    return PairedTest("sign flips", interval, sign_flip_p(list(sums.values()), draws=499))


TESTS: dict[str, Callable[..., PairedTest]] = {"paired t": t_test, "sign flips": flips}


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

def _line(name: str, groups: int, hits: Sequence[bool], intervals: Sequence[Interval | None]) -> Line:
    n, share = len(hits), sum(hits) / len(hits)
    pairs = [one.pair for one in intervals if one is not None and one.pair is not None]
    degrees = [one.degrees for one in intervals if one is not None and one.degrees is not None]
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
        estimate = estimator(run)
        low, high = estimate.interval.pair or (math.inf, -math.inf)
        hits.append(low <= estimate.truth <= high)
        intervals.append(estimate.interval)
    return _line(name, groups, hits, intervals)


def type_one_error(name: str, *, case: str = "", groups: int, evaluations: int, seed: int, level: float = 0.05) -> Line:
    """How often a test rejects at `level` where the two policies are equally good.

    The case "naive" takes every prompt for a base item, "skewed" has differences that lean to one side.
    """
    hits, intervals = [], []
    for run in _runs(build_testbed(), groups=groups, evaluations=evaluations, seed=seed):
        first, second = null_pair(run, skewed=case == "skewed")
        test = TESTS[name](first, second=second, clusters=None if case == "naive" else clusters_of(first))
        hits.append(test.p <= level)
        intervals.append(test.interval)
    return _line(f"{name}, {case}" if case else name, groups, hits, intervals)


def rare_coverage(name: str, draw: Draw, *, items: int, evaluations: int, seed: int) -> Line:
    """How often the interval of a yes/no evaluation holds the rate that it was drawn from."""
    hits, intervals = [], []
    for index in range(evaluations):
        estimate = draw(np.random.default_rng([seed, items, index]))
        low, high = estimate.interval.pair or (math.inf, -math.inf)
        hits.append(low <= estimate.truth <= high)
        intervals.append(estimate.interval)
    return _line(name, items, hits, intervals)


def simulate(*, evaluations: int, seed: int, sizes: Sequence[int] = SIZES) -> dict[str, list[Line]]:
    """Every row of the tables, by part."""
    asked = {"evaluations": evaluations, "seed": seed}
    rows = {
        part: [rare_coverage(name, draw, items=items, **asked) for (name, items), draw in table.items()]
        for part, table in (("rare", RARE), ("others", OTHERS))
    }
    for part, estimators in (("coverage", ESTIMATORS), ("hard", HARD)):
        named = [(name, one, size) for name, one in estimators.items() for size in sizes]
        rows[part] = [coverage_of(name, one, groups=size, **asked) for name, one, size in named]
    cases = [(name, "") for name in TESTS] + [("paired t", "naive")] + [(name, "skewed") for name in TESTS]
    rows["type_one"] = [type_one_error(name, case=case, groups=size, **asked) for name, case in cases for size in sizes]
    return rows


@dataclass(frozen=True, kw_only=True)
class Config:
    evaluations: int = option(2000, help="simulated evaluations per row")
    seed: int = option(0, help="of the evaluations")
    publish: Path = option(Path("docs"), help="folder of statistics.md and results/")


def main(argv: Sequence[str] | None = None) -> int:
    config, _ = parse(Config, argv, program="python -m benchmarks.coverage.run", about=__doc__ or "")
    checks.at_least(1, config, "evaluations")
    checks.at_least(0, config, "seed")
    start = time.monotonic()
    parts = simulate(evaluations=config.evaluations, seed=config.seed)
    found = {part: [asdict(row) for row in rows] for part, rows in parts.items()}
    write_page({"evaluations": config.evaluations, "seed": config.seed, **found}, folder=config.publish)
    print(f"{config.evaluations} evaluations per row, seed {config.seed}, {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    set_threads()
    raise SystemExit(guarded(main))
