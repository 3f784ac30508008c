"""Seconds to evaluate one policy exactly on every in-distribution prompt of the default world.

python -m benchmarks.cost.exact_evaluation [--repeats 5]

The policy is a random-weights model of the demo's shape: the time does not depend on the weights. Counted: the tree
pass over 16,105 prefixes of each prompt, the leaf table, expected rewards and KL against the reference's table (which
the demo computes once and keeps), and the cells at five preferences. Not counted: start-up and loading.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from align import checks
from align.errors import guarded
from align.runs.threads import set_threads
from recipes.config import option, parse

if TYPE_CHECKING:
    from align.testbed.answers import ReferenceTables
    from align.testbed.exact import ExactModel
    from align.testbed.world import World


@dataclass(frozen=True)
class Ready:
    """What one process evaluates with."""

    world: World
    policy: ExactModel
    tables: ReferenceTables


@lru_cache
def ready(threads: int) -> Ready:
    """The policy, and the reference's tables on all prompts, built once in each process."""
    set_threads(threads)
    from align.models import ModelConfig, build_model
    from align.testbed.answers import ReferenceTables
    from align.testbed.exact import ExactModel
    from align.testbed.vocabulary import build_tokenizer
    from align.testbed.world import load_world

    set_threads(threads)  # now that torch is imported
    world = load_world("default")
    shape = ModelConfig(hidden=48, layers=2, heads=4, intermediate=96, context=64, init_std=0.15)
    models = [build_model(shape, build_tokenizer(), seed=seed) for seed in (0, 1)]
    reference, policy = (ExactModel(m, name=n) for m, n in zip(models, ("reference", "policy"), strict=True))
    tables = ReferenceTables(world, reference)
    for prompt in world.test_prompts("none"):
        tables.classes(prompt)
    return Ready(world, policy, tables)


def evaluate(share: tuple[int, int], threads: int = 1) -> tuple[float, int, float]:
    """Every `share[1]`-th prompt from `share[0]` on: (seconds, prompts, sum of J, to see that all agree)."""
    start, made = time.perf_counter(), ready(threads)
    from align.preferences import simplex_grid
    from align.testbed.answers import Measured, answers_of, outcomes

    prompts = made.world.test_prompts("none")[share[0] :: share[1]]
    found = outcomes(made.policy, prompts=prompts, tables=made.tables)
    results = {prompt: Measured(outcome) for prompt, outcome in zip(prompts, found, strict=True)}
    total = 0.0
    for weights in simplex_grid(2, 4):
        answers = answers_of(results, row="policy", shift="none", weights=weights, tables=made.tables)
        total += sum(answer.J for answer in answers)
    return time.perf_counter() - start, len(prompts), total


def one_process(threads: int, repeats: int) -> tuple[float, int, float]:
    """The best after a first one, which warms up."""
    return min([evaluate((0, 1), threads) for _ in range(repeats + 1)][1:])


def two_processes(repeats: int) -> tuple[float, int, float]:
    """Two workers of one thread each, every one with half of the prompts: wall seconds until both are done."""
    context = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(1, mp_context=context) for _ in range(2)]
    runs = []
    try:
        for _ in range(repeats + 1):  # the first warms up
            start = time.perf_counter()
            waiting = [pool.submit(evaluate, (i, 2)) for i, pool in enumerate(pools)]
            parts = [future.result() for future in waiting]
            runs.append((time.perf_counter() - start, sum(p[1] for p in parts), sum(p[2] for p in parts)))
    finally:
        for pool in pools:
            pool.shutdown()
    return min(runs[1:])


@dataclass(frozen=True, kw_only=True)
class Config:
    repeats: int = option(5, help="the best of so many")


def main(argv: Sequence[str] | None = None) -> int:
    config, _ = parse(Config, argv, program="python -m benchmarks.cost.exact_evaluation", about=__doc__ or "")
    checks.at_least(1, config, "repeats")
    repeats = config.repeats
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.2f}, best of {repeats}")
    ways = {
        "two processes of one thread": lambda: two_processes(repeats),
        "one process of one thread": lambda: one_process(1, repeats),
        "one process of two threads": lambda: one_process(2, repeats),
    }
    for name, measure in ways.items():
        seconds, prompts, total = measure()
        print(f"{name}: {seconds:.2f} s for {prompts} prompts, {1000 * seconds / prompts:.0f} ms each (J {total:.6f})")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
