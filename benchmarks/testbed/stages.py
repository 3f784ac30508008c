"""The testbed benchmark's own stages: facts of a world, fitting a row, its exact cells, controls in closed form.

Every function takes plain arguments, writes one run directory through `run_stage`, and is safe to call again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import UserError
from align.runs import Ledger, open_run, run_stage, write_json
from recipes.testbed import stages as stages
from recipes.testbed.stages import Settings

if TYPE_CHECKING:
    from evals.tables.surfaces import ExactPoint

ASKS = ("weights", "thresholds")


def facts(
    *, out: str, world: Settings, reference: str, weights: Sequence[Sequence[float]], split: str = "none"
) -> None:
    """Reward classes of a split's prompts (for fronts at a matched KL), and thresholds at which families are asked.

    A threshold is the optimum's mean reward over the fine-tuning prompts: asked there, with beta over the weight of the
    maximised objective, the constrained problem has pi*_w itself as its solution.
    """

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.preferences import Weights
        from align.testbed.optimum import optimum

        place = stages.world_of(world)
        tables = stages.reference_tables(place.config, reference, open_run(reference).fingerprint)
        held_out = [tables.classes(prompt) for prompt in place.test_prompts(split)]
        training = [stages.classes_once(tables, prompt) for prompt in place.train_prompts]
        asked = {}
        for w in weights:
            best = optimum(training, Weights(tuple(w)), beta=place.config.beta)
            main = max(range(len(w)), key=lambda k: w[k])
            slack = place.config.malformed_reward  # an objective of weight 0 is bound by nothing
            asked[Weights(tuple(w)).label] = [
                None if k == main else best.values[k] if w[k] > 0 else slack for k in range(len(w))
            ]
        classes = [{"rewards": c.rewards_CK.tolist(), "log_mass": c.log_mass_C.tolist()} for c in held_out]
        write_json(folder / "facts.json", {"classes": classes, "thresholds": asked})
        return {"prompts": len(held_out), "training_prompts": len(training)}

    inputs = {"reference": open_run(reference).fingerprint, "world": stages.world_of(world).hash}
    run_stage(out, stage="facts", config={"weights": weights, **_of(split)}, body=body, inputs=inputs)


def _of(split: str) -> dict[str, str]:
    """The split as part of a stage's configuration; runs from before there was a choice stay valid."""
    return {} if split == "none" else {"split": split}


def read_facts(folder: str | Path) -> dict[str, Any]:
    """What `facts` wrote."""
    return json.loads((Path(folder) / "facts.json").read_text(encoding="utf-8"))


def asked_label(weights: Sequence[float], *, asks: str, facts: str) -> str:
    """The label of the preference by which a family is asked for the point that `weights` judge."""
    from align.preferences import Thresholds, Weights

    label = Weights(tuple(weights)).label
    return label if asks == "weights" else Thresholds(tuple(read_facts(facts)["thresholds"][label])).label


def fit(
    *, out: str, world: Settings, method: str, settings: Settings, reference: str, pairs: str, facts: str,
    weights: Sequence[Sequence[float]], asks: str, reward_models: Sequence[str] = (), specialists: Sequence[str] = (),
) -> None:  # fmt: skip
    """One training run of a row: at one preference, or for a family at all of them."""
    given = dict(settings)
    if asks == "thresholds":  # max r_main + ... - (beta / w_main) KL is the problem whose solution is pi*_w
        given["beta"] = given["beta"] / max(weights[0])
    stages.finetune(
        out=out, world=world, method=method, settings=given, reference=reference, pairs=pairs,
        preferences=[asked_label(w, asks=asks, facts=facts) for w in weights], reward_models=reward_models,
        specialists=specialists,
    )  # fmt: skip


def evaluate(
    *, out: str, world: Settings, row: str, reference: str, policy: str, weights: Sequence[float], asks: str,
    facts: str, split: str = "none",
) -> None:  # fmt: skip
    """The exact point of one preference: means over the held-out prompts."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.policies.load import load_family
        from align.preferences import Weights, parse_preference

        place, asked = stages.world_of(world), Weights(tuple(weights))
        tables = stages.reference_tables(place.config, reference, open_run(reference).fingerprint)
        answer = load_family(policy).policy(parse_preference(asked_label(weights, asks=asks, facts=facts)))
        tree = stages.tree_policy(answer, tables=tables, weights=asked, name=row)
        _write_point(folder, tree, row=row, weights=asked, tables=tables, split=split)
        return {"samples_per_response": tree.samples_per_response}

    inputs = {"reference": open_run(reference).fingerprint, "policy": open_run(policy).fingerprint}
    inputs |= {"world": stages.world_of(world).hash}
    config = {"row": row, "weights": weights, "asks": asks, **_of(split)}
    run_stage(out, stage="evaluate", config=config, body=body, inputs=inputs)


def _write_point(folder: Path, tree: Any, *, row: str, weights: Any, tables: Any, split: str) -> None:
    """`cell.json`: the means over a split's prompts, which weigh equally as in every table."""
    from align.testbed.answers import exact_answers
    from evals.tables.surfaces import exact_points

    answers = exact_answers(tree, row=row, weights=[weights], shifts=(split,), tables=tables)
    (point,) = exact_points(answers)
    write_json(folder / "cell.json", {**point.jsonable(), "row": row, "split": split})


def read_point(folder: str | Path) -> ExactPoint:
    """The means that a stage wrote; UserError naming the file where they cannot be read."""
    from evals.tables.surfaces import ExactPoint

    file = Path(folder) / "cell.json"
    try:
        return ExactPoint.parse(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {error}; run the stage again") from error


def prediction(
    *, out: str, world: Settings, kind: str, reference: str, weights: Sequence[float], n: int,
    split: str = "none", reward_models: Sequence[str] = (),
) -> None:  # fmt: skip
    """The exact cell of what a row's expected update converges to, were every distribution free.

    `n` samples are drawn for each prompt: best-of-n's n, or the size of a group (0: the limit of large groups). Kind
    "learned" is the optimum under these reward models in place of gold.
    """

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from functools import partial

        from align.preferences import Weights
        from align.testbed.tabular import HardBestOfN, Tilted, gold_table
        from align.testbed.theory.predictions import Predicted

        place, asked = stages.world_of(world), Weights(tuple(weights))
        tables = stages.reference_tables(place.config, reference, open_run(reference).fingerprint)
        if kind == "best_of_n":
            tree: Any = HardBestOfN(tables, partial(gold_table, weights=asked), n, kind)
        elif kind == "learned":
            table = _learned_table(tuple(reward_models), place.config.tau)
            tree = Tilted(tables, partial(table, weights=asked), place.config.beta, kind)
        else:
            tree = Predicted(kind, tables, asked, kind, group=n or None, population=place.test_prompts(split))
        _write_point(folder, tree, row=kind, weights=asked, tables=tables, split=split)
        return {"kind": kind}

    inputs = {"reference": open_run(reference).fingerprint, "world": stages.world_of(world).hash}
    inputs |= {f"reward model {k}": open_run(path).fingerprint for k, path in enumerate(reward_models)}
    config = {"kind": kind, "weights": weights, "n": n, **_of(split)}
    run_stage(out, stage="prediction", config=config, body=body, inputs=inputs)


@lru_cache(maxsize=1)
def _learned_table(reward_models: tuple[str, ...], tau: float) -> Any:
    """The reward models' scores of all responses, in gold units, kept by a worker for all preferences."""
    from align.objectives import RewardModelObjective
    from align.testbed.learned_rewards import LearnedTable

    return LearnedTable([RewardModelObjective(path, scale=tau, batch_size=2048) for path in reward_models])


def closed_form(
    *, out: str, world: Settings, row: str, kind: str, reference: str, weights: Sequence[Sequence[float]],
    options: Settings, split: str = "none",
) -> None:  # fmt: skip
    """The exact cell of a control at one preference."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.preferences import Weights
        from recipes.testbed.controls import closed_form_policy

        place, asked = stages.world_of(world), Weights(tuple(weights[0]))
        tables = stages.reference_tables(place.config, reference, open_run(reference).fingerprint)
        name = "best_of_n" if kind.startswith("best_of") else kind
        tree = tables if kind == "reference" else closed_form_policy(
            name, reference=tables, weights=asked, options=options
        )  # fmt: skip
        _write_point(folder, tree, row=row, weights=asked, tables=tables, split=split)
        return {"samples_per_response": tree.samples_per_response}

    inputs = {"reference": open_run(reference).fingerprint, "world": stages.world_of(world).hash}
    config = {"row": row, "kind": kind, "weights": weights, "options": options, **_of(split)}
    run_stage(out, stage="closed form", config=config, body=body, inputs=inputs)
