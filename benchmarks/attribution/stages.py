"""Stages of the attribution benchmark: the exact split of every planted policy of a seed, and the split from samples.

Both judge a policy at the weights that it was trained for. Every function is safe to call again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.runs import Ledger, open_run, run_stage, write_json
from recipes.testbed.stages import Settings, world_of

SHIFTED = ("heldout_topics", "cipher", "compliance", "cipher_compliance", "control")
HOME = "none"


def _policies(policies: Mapping[str, Sequence[str]]) -> dict[str, tuple[Any, tuple[float, ...]]]:
    """name -> (policy, weights) of (run, label)."""
    from align.policies.load import load_family
    from align.preferences import Weights, parse_preference

    return {
        name: (load_family(run).policy(parse_preference(label)), Weights.parse(label).values)
        for name, (run, label) in policies.items()
    }


def exact(*, out: str, world: Settings, reference: str, policies: Mapping[str, Sequence[str]]) -> None:
    """`split.json`: policy -> shift -> drop, competing and mismatched part, by enumeration; prompts outermost."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.models import load_model
        from align.preferences import Weights
        from align.testbed.answers import ReferenceTables
        from align.testbed.exact import ExactModel, ExactPolicy

        place, found = world_of(world), _policies(policies)
        model = load_model(f"{reference}/model")
        sums: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in found}
        for shift in (HOME, *SHIFTED):
            for prompt in place.test_prompts(shift):
                tables = ReferenceTables(place, ExactModel(model, name="reference"))  # one prompt's table at a time
                for name, (policy, w) in found.items():
                    answer = _answer(ExactPolicy(policy), prompt, Weights(w), tables)
                    sums[name].setdefault(shift, []).append((answer.J_star, answer.regret))
        write_json(folder / "split.json", {name: _split(shifts) for name, shifts in sums.items()})
        return {"policies": len(found), "shifts": len(SHIFTED)}

    inputs = {"reference": open_run(reference).fingerprint, "world": world_of(world).hash}
    inputs |= {name: open_run(run).fingerprint for name, (run, _) in policies.items()}
    config = {"shifts": list(SHIFTED), "weights": {name: label for name, (_, label) in policies.items()}}
    run_stage(out, stage="exact split", config=config, body=body, inputs=inputs)


def _answer(policy: Any, prompt: Any, weights: Any, tables: Any) -> Any:
    from align.testbed.answers import answers_of, outcomes

    (result,) = outcomes(policy, prompts=[prompt], tables=tables)
    return next(iter(answers_of({prompt: result}, row="", shift=prompt.split, weights=weights, tables=tables)))


def _split(shifts: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, dict[str, float]]:
    import numpy as np

    means = {shift: np.mean(values, axis=0) for shift, values in shifts.items()}
    home = means[HOME]
    parts = {s: (float(home[0] - m[0]), float(m[1] - home[1])) for s, m in means.items() if s != HOME}
    return {s: {"competing": c, "mismatched": m, "drop": c + m} for s, (c, m) in parts.items()}


def sampled(
    *, out: str, world: Settings, reference: str, policies: Mapping[str, Sequence[str]], count: int, seed: int
) -> None:
    """`split.json` in the same form, from `count` judged samples per prompt of policy and of reference."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.models import load_model
        from evals.attribution.sampled_split import split
        from evals.attribution.testbed_sampling import estimates

        place = world_of(world)
        model = load_model(f"{reference}/model").eval()
        result = {}
        for name, (policy, w) in _policies(policies).items():
            own = policy.model.eval()
            found = {
                s: estimates(place, own, model, place.test_prompts(s), weights=w, count=count, seed=seed)
                for s in (HOME, *SHIFTED)
            }
            result[name] = {s: split(found[HOME], found[s]) for s in SHIFTED}
            ledger.add(samples_drawn=2 * count * sum(map(len, found.values())))
        write_json(folder / "split.json", result)
        return {"policies": len(result), "shifts": len(SHIFTED)}

    inputs = {"reference": open_run(reference).fingerprint, "world": world_of(world).hash}
    inputs |= {name: open_run(run).fingerprint for name, (run, _) in policies.items()}
    config = {"shifts": list(SHIFTED), "count": count, "seed": seed}
    config |= {"weights": {name: label for name, (_, label) in policies.items()}}
    run_stage(out, stage="sampled split", config=config, body=body, inputs=inputs)


def read_split(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """What `exact` or `sampled` wrote."""
    return json.loads((folder / "split.json").read_text(encoding="utf-8"))
