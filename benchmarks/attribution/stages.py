"""Stages of the attribution benchmark: the four parts of planted policies' drops, by enumeration and from samples.

Both judge a policy at the weights that it was trained for, which its one point names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from align.runs import Metrics, Run, Workspace, stage, write_json
from evals.items import Json
from recipes.testbed.planted_stages import SPLITS

if TYPE_CHECKING:
    from align.policies.base import ModelPolicy
    from align.preferences import Weights
    from align.testbed.world import World

Parts = dict[str, dict[str, Json]]  # policy -> shift -> part -> {value, ci, ...}


def _asked(policies: Mapping[str, Run], weights: Mapping[str, Weights]) -> dict[str, tuple[ModelPolicy, Weights]]:
    """name -> (policy, weights), of policies that are one model."""
    from align.policies.base import ModelPolicy
    from align.policies.load import load_family

    found = {name: (load_family(run.path).policy(weights[name]), weights[name]) for name, run in policies.items()}
    return {name: (policy, w) for name, (policy, w) in found.items() if isinstance(policy, ModelPolicy)}


@stage(name="exact parts")
def exact(
    work: Workspace, *, world: World, reference: Run, policies: Mapping[str, Run], weights: Mapping[str, Weights],
    shifts: tuple[str, ...] = SPLITS,
) -> Metrics:  # fmt: skip
    """`parts.json` by enumeration, with intervals over base items."""
    from align.testbed.answers import exact_answers
    from align.testbed.exact import ExactPolicy
    from align.testbed.transport import Remembered
    from evals.tables.under_shift.parts import PARTS, WHOLE, drop_parts
    from recipes.testbed.stages import reference_tables

    tables, result = reference_tables(world, reference), Parts()
    for name, (policy, w) in _asked(policies, weights).items():
        tree = Remembered(ExactPolicy(policy))
        answers = {s: exact_answers(tree, row=name, weights=[w], shifts=(s,), tables=tables) for s in ("none", *shifts)}
        for shift in shifts:
            found = drop_parts(answers["none"], answers[shift])
            parts = {part: {"value": found[part], "ci": found[f"{part}_ci"]} for part in (*WHOLE[:2], *PARTS)}
            result.setdefault(name, {})[shift] = parts
    write_json(work.folder / "parts.json", result)
    return {"policies": len(result), "shifts": len(shifts)}


@stage(name="sampled parts")
def sampled(
    work: Workspace, *, world: World, reference: Run, policies: Mapping[str, Run], weights: Mapping[str, Weights],
    count: int, seed: int, shifts: tuple[str, ...] = SPLITS,
) -> Metrics:  # fmt: skip
    """`parts.json` in the same form from `count` judged samples of each source, with effective sample sizes."""
    from align.models import load_model
    from evals.attribution.testbed_sampling import parts_from_samples

    model, result = load_model(f"{reference.path}/model").eval(), Parts()
    for name, (policy, w) in _asked(policies, weights).items():
        result[name] = {
            shift: parts_from_samples(
                world, policy.model.eval(), model, shift=shift, weights=w.values, count=count, seed=seed
            )
            for shift in shifts
        }
    write_json(work.folder / "parts.json", result)
    return {"policies": len(result), "shifts": len(shifts)}


def read_parts(folder: Path) -> Parts:
    """What `exact` or `sampled` wrote; empty where it is not finished."""
    file = folder / "parts.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
