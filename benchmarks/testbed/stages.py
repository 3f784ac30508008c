"""The testbed benchmark's own stage: the exact cells of what a row's expected update converges to."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from align.runs import Metrics, Run, Workspace, stage
from recipes.testbed.stages import Judged, reference_tables, write_cells

if TYPE_CHECKING:
    from align.testbed.exact import TreePolicy
    from align.testbed.learned_rewards import LearnedTable
    from align.testbed.world import World


@stage
def prediction(
    work: Workspace, *, world: World, kind: str, reference: Run, judged: Judged, n: int,
    reward_models: Mapping[str, Run] | None = None,
) -> Metrics:  # fmt: skip
    """Were every distribution free: the exact cells of a row's fixed point at one preference.

    `n` samples are drawn for each prompt: best-of-n's n, or the size of a group (0: the limit of large groups). Kind
    "learned" is the optimum under these reward models in place of gold.
    """
    from align.testbed.tabular import HardBestOfN, Tilted, gold_table
    from align.testbed.theory.predictions import Predicted

    tables, (weights,) = reference_tables(world, reference), judged.weights
    tree: TreePolicy
    if kind == "best_of_n":
        tree = HardBestOfN(tables, partial(gold_table, weights=weights), n, kind)
    elif kind == "learned":
        table = _learned_table(tuple(run.path for run in (reward_models or {}).values()), world.config.tau)
        tree = Tilted(tables, partial(table, weights=weights), world.config.beta, kind)
    else:
        prompts = world.test_prompts(judged.home)
        tree = Predicted(kind, tables, weights, kind, group=n or None, population=prompts)
    return {"cells": write_cells(work.folder, tree, row=kind, tables=tables, judged=judged)}


@lru_cache(maxsize=1)
def _learned_table(reward_models: tuple[Path, ...], tau: float) -> LearnedTable:
    """The reward models' scores of all responses, in gold units, kept by a worker for all preferences."""
    from align.objectives import RewardModelObjective
    from align.testbed.learned_rewards import LearnedTable

    return LearnedTable([RewardModelObjective(path, scale=tau, batch_size=2048) for path in reward_models])
