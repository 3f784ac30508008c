"""Stages of the attribution benchmark: the exact split of every planted policy of a seed, and the split from samples.

Both judge a policy at the weights that it was trained for, which its one point names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.runs import Metrics, Run, Workspace, stage, write_json

if TYPE_CHECKING:
    from align.policies.base import ModelPolicy
    from align.preferences import Weights
    from align.testbed.answers import ReferenceTables
    from align.testbed.exact import ExactPolicy
    from align.testbed.world import Prompt, World

SHIFTED = ("heldout_topics", "cipher", "compliance", "cipher_compliance", "control")
HOME = "none"
Parts = dict[str, dict[str, dict[str, float]]]  # policy -> shift -> part -> value


def _asked(policies: Mapping[str, Run], weights: Mapping[str, Weights]) -> dict[str, tuple[ModelPolicy, Weights]]:
    """name -> (policy, weights), of policies that are one model."""
    from align.policies.base import ModelPolicy
    from align.policies.load import load_family

    found = {name: (load_family(run.path).policy(weights[name]), weights[name]) for name, run in policies.items()}
    return {name: (policy, w) for name, (policy, w) in found.items() if isinstance(policy, ModelPolicy)}


@stage(name="exact split")
def exact(
    work: Workspace, *, world: World, reference: Run, policies: Mapping[str, Run], weights: Mapping[str, Weights],
    shifts: tuple[str, ...] = SHIFTED,
) -> Metrics:  # fmt: skip
    """`split.json`: policy -> shift -> drop, loss of the optimum, rise of regret, by enumeration; prompts outermost."""
    from align.models import load_model
    from align.testbed.answers import ReferenceTables
    from align.testbed.exact import ExactModel, ExactPolicy

    asked, model = _asked(policies, weights), load_model(f"{reference.path}/model")
    sums: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in asked}
    for shift in (HOME, *shifts):
        for prompt in world.test_prompts(shift):
            tables = ReferenceTables(world, ExactModel(model, name="reference"))  # one prompt's table at a time
            for name, (policy, w) in asked.items():
                sums[name].setdefault(shift, []).append(_optimum_and_regret(ExactPolicy(policy), prompt, w, tables))
    write_json(work.folder / "split.json", {name: _split(found) for name, found in sums.items()})
    return {"policies": len(asked), "shifts": len(shifts)}


def _optimum_and_regret(
    policy: ExactPolicy, prompt: Prompt, weights: Weights, tables: ReferenceTables
) -> tuple[float, float]:
    from align.testbed.answers import Measured, answers_of, outcomes

    (result,) = outcomes(policy, prompts=[prompt], tables=tables)
    answer = next(
        iter(answers_of({prompt: Measured(result)}, row="", shift=prompt.split, weights=weights, tables=tables))
    )
    return answer.J_star, answer.regret


def _split(shifts: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, dict[str, float]]:
    import numpy as np

    means = {shift: np.mean(values, axis=0) for shift, values in shifts.items()}
    home = means[HOME]
    parts = {s: (float(home[0] - m[0]), float(m[1] - home[1])) for s, m in means.items() if s != HOME}
    return {s: {"optimum": o, "regret_rise": r, "drop": o + r} for s, (o, r) in parts.items()}


@stage(name="sampled split")
def sampled(
    work: Workspace, *, world: World, reference: Run, policies: Mapping[str, Run], weights: Mapping[str, Weights],
    count: int, seed: int, shifts: tuple[str, ...] = SHIFTED,
) -> Metrics:  # fmt: skip
    """`split.json` in the same form, from `count` judged samples per prompt of policy and of reference."""
    from align.models import load_model
    from evals.attribution.sampled_split import split
    from evals.attribution.testbed_sampling import estimates

    model = load_model(f"{reference.path}/model").eval()
    result = {}
    for name, (policy, w) in _asked(policies, weights).items():
        own = policy.model.eval()
        found = {
            s: estimates(world, own, model, world.test_prompts(s), weights=w.values, count=count, seed=seed)
            for s in (HOME, *shifts)
        }
        result[name] = {s: split(found[HOME], found[s]) for s in shifts}
        work.ledger.add(samples_drawn=2 * count * sum(map(len, found.values())))
    write_json(work.folder / "split.json", result)
    return {"policies": len(result), "shifts": len(shifts)}


def read_split(folder: Path) -> Parts:
    """What `exact` or `sampled` wrote."""
    found: Parts = json.loads((folder / "split.json").read_text(encoding="utf-8"))
    return found
