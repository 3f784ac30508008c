"""Whether the 95 % intervals cover the truth in 95 % of evaluations, and tests reject a true null in 5 %: a simulation.

    python -m benchmarks.coverage.run --evaluations 2000          # both tables, under three minutes on one core

The truth is exact: `align.testbed.theory.populations` defines the population and what is random. Estimators are the
functions that tables call, not copies. Legend: G clusters (base items), V prompts of one base item, D bootstrap draws.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from align import checks
from align.errors import guarded
from align.runs.threads import set_threads
from align.testbed.theory.populations import Testbed, build_testbed
from benchmarks.coverage.estimators import (
    CAUTIOUS,
    DRAWS,
    ESTIMATORS,
    HARD,
    Estimator,
    Evaluation,
    clusters_of,
    keyed,
)
from evals.stats import paired_tests
from evals.stats.intervals import Interval
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


def simulate(*, evaluations: int, seed: int, sizes: Sequence[int] = SIZES) -> dict[str, list[Line]]:
    """Every row of both tables, and of the hard cases."""
    asked = {"evaluations": evaluations, "seed": seed}
    rows = {
        part: [coverage_of(name, one, groups=size, **asked) for name, one in table.items() for size in sizes]
        for part, table in (("coverage", ESTIMATORS), ("hard", HARD))
    }
    cases = [(name, "") for name in TESTS] + [("paired t", "naive")] + [(name, "skewed") for name in TESTS]
    rows["type_one"] = [type_one_error(name, case=case, groups=size, **asked) for name, case in cases for size in sizes]
    return rows


TITLES = {
    "coverage": "coverage of 95 % intervals",
    "hard": "coverage, naive intervals and hard cases",
    "type_one": "rejections at 5 % under a true null",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    evaluations: int = option(2000, help="simulated evaluations per row")
    seed: int = option(0, help="of the evaluations")
    out: Path | None = option(None, help="file for the rows as JSON")


def main(argv: Sequence[str] | None = None) -> int:
    config, _ = parse(Config, argv, program="python -m benchmarks.coverage.run", about=__doc__ or "")
    checks.at_least(1, config, "evaluations")
    checks.at_least(0, config, "seed")
    start = time.monotonic()
    parts = simulate(evaluations=config.evaluations, seed=config.seed)
    for part, rows in parts.items():
        print(f"{TITLES[part]:38} clusters degrees  percent   s.e.    width")
        print("\n".join(row.text for row in rows), end="\n\n")
    print(f"{config.evaluations} evaluations per row, seed {config.seed}, {time.monotonic() - start:.0f} s")
    if config.out:
        content = {part: [asdict(row) for row in rows] for part, rows in parts.items()}
        config.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    set_threads()
    raise SystemExit(guarded(main))
