"""The demo's summary: the plan's own tables, and beside them the exact optimum, its closed forms and the conflict."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.data.answers import ExactAnswer
from align.runs import Call, open_run
from align.testbed.world import World
from evals.items import Fields
from evals.tables.tradeoffs import Front
from recipes.pipeline.conflict_summary import gradient_cosines
from recipes.pipeline.plan import Plan
from recipes.pipeline.setting import REFERENCE
from recipes.pipeline.summary import About, Summary, Table, answers_of, preferences, summary
from recipes.testbed.demo import Config, Demo

if TYPE_CHECKING:
    import numpy as np

CONTROL_NOTES = {
    "kl_overspender": "the exact optimum of beta / {overspend:g}: the best reward money can buy, at the wrong price",
    "length_only": "the exact optimum for a reward model that only counts tokens",
    "best_of_n": "soft best-of-n of the gold sum: {n} reference samples and {n} gold scores for every response",
}
ABOUT_REFERENCE = {
    "optimises": "maximum likelihood of the corpus and of the demonstrations",
    "note": "the SFT checkpoint: what every KL is measured against",
}


def demo_summary(config: Config, plan: Plan, setting: Demo) -> Summary:
    """The summary of a finished demo."""
    from align.testbed.responses import level_starts

    world = setting.world
    facts = json.loads((setting.folder("optimum") / "optimum.json").read_text(encoding="utf-8"))
    controls = {name: words.format(**dataclasses.asdict(setting.closed)) for name, words in CONTROL_NOTES.items()}
    info: dict[str, Table] = {
        name: {"optimises": note, "note": f"control: {note}", "rewards": "length" if name == "length_only" else "gold"}
        for name, note in controls.items()
    }
    about = About(
        title=f"Demo: the {world.config.name} world, seed {config.seed}", headline="harmless",
        point=[world.config.reference_point] * len(world.objectives),
        front_at_kl=front_at_kl(facts["classes"], count=len(world.objectives), dense=config.dense),
        apart=("optimum", "perturbed"), info=info | {REFERENCE: ABOUT_REFERENCE},
    )  # fmt: skip
    made = summary(plan, about=about, config=config, seed=config.seed)
    responses = level_starts(world.config.max_tokens)[-1]
    details = {
        **{name: getattr(world.config, name) for name in ("name", "beta", "tau", "malformed_reward", "conflict")},
        "train_prompts": len(world.train_prompts),
        "responses": responses,
        "reward_range": [0.0, 1.0],
        "preferences": preferences(setting.preferences),
        "conflict_dial": {
            "front_span": facts["dial"],
            "is": "span of the exact front over the weights, in units of the reward range: 0 agreeing, 1 opposed",
        },
    }
    cosines = gradient_cosines(open_run(setting.folder("gradient-cosines")))
    return dataclasses.replace(
        made,
        world=world.hash,
        world_details={**made.world_details, **details},
        optimum=_optimum(facts, plan),
        conflict={**made.conflict, **_conflict(setting.folder("comparisons") / "rows.jsonl", world), **cosines},
        reward_models=_reward_models(setting, plan),
        notes=[
            f"Every trade-off number is exact: all {responses:,} responses and every malformed ending are enumerated.",
            "Ranking is by regret share. Raw hypervolume is printed and never ranks: it rewards spending KL.",
            f"One training seed ({config.seed}): intervals over seeds are null. Intervals of gaps run over topics.",
        ],
    )


def exact_of(calls: Sequence[Call]) -> list[ExactAnswer]:
    """The exact answers of some evaluation runs."""
    return [answer for answer in answers_of(calls) if isinstance(answer, ExactAnswer)]


def front_at_kl(classes: Sequence[Mapping[str, list[float]]], *, count: int, dense: int, coarse: int = 20) -> Front:
    """KL -> the dense exact front whose every point spends it, beta solved again at each of its preferences.

    `classes`: of each prompt the reward vectors and the reference's mass on them; `coarse` steps for more than two
    objectives.
    """
    import numpy as np

    from align.preferences import simplex_grid
    from align.testbed.optimum import RewardClasses
    from align.testbed.optimum import front_at_kl as front

    found = [RewardClasses(np.array(c["rewards"]), np.array(c["log_mass"])) for c in classes]
    grid = simplex_grid(count, dense if count == 2 else coarse)
    return lambda kl: front(found, grid, kl=kl)


def _optimum(facts: Fields, plan: Plan) -> Table:
    """The dense front, the largest regret of pi*_w through the evaluator, and the perturbed optimum's regret."""
    from evals.tables.surfaces import exact_points

    measured = [point.regret for point in exact_points(exact_of(plan.cells["perturbed"]))]
    predicted = facts["perturbed"]["predicted"]
    return {
        "front": facts["front"],
        "regret": max(abs(answer.regret) for answer in exact_of(plan.cells["optimum"])),
        "regret_is": "largest absolute regret of pi*_w on any prompt, through the evaluator that judges every model",
        "perturbed": {
            "temperature": facts["perturbed"]["temperature"],
            "regret": sum(measured) / len(measured),
            "predicted": sum(predicted) / len(predicted),
            "regret_per_preference": measured,
            "predicted_per_preference": predicted,
            "is": "pi*_w at another temperature: J* - J as measured, and beta KL to pi*_w; means over preferences",
        },
    }


def _conflict(rows: Path, world: World) -> Table:
    """How far the gold objectives disagree on pairs of the reference's own responses to one prompt."""
    import numpy as np

    from align.functional.conflict import label_disagreement, rank_correlation

    with open(rows, encoding="utf-8") as handle:
        pairs = [json.loads(line) for line in handle]
    by_prompt: dict[str, list[list[float]]] = {}
    for row in pairs:
        by_prompt.setdefault(row["prompt"], []).extend((row["scores_a"], row["scores_b"]))
    tables = [np.array(values) for values in by_prompt.values() if len(values) > 1]
    margins = np.array([np.subtract(row["scores_a"], row["scores_b"]) for row in pairs])
    return {
        "names": list(world.objectives),
        "disagreement": _plain(label_disagreement(margins).values_KK),
        "rank_correlation": _plain(rank_correlation(tables).values_KK),
        "n": len(pairs),
        "over": f"{len(pairs)} pairs of unlike reference samples on {len(tables)} fine-tuning prompts, gold scores",
    }


def _plain(values_KK: np.ndarray) -> list[list[float | None]]:
    return [[float(v) if v == v else None for v in row] for row in values_KK]


def _reward_models(setting: Demo, plan: Plan) -> list[Table]:
    """Validation accuracy of the learned reward models on the annotator's noisy labels, with a Wilson interval."""
    from evals.stats.intervals import wilson

    rows: list[Table] = []
    total = open_run(setting.folder("comparisons")).metrics["rows"] // 10
    for name, call in setting.reward_models().items():
        if call.out not in {made.out for made in plan.calls}:
            continue
        accuracy = open_run(call.out).metrics["accuracy"]
        interval = wilson(round(accuracy * total), n=total, over="comparisons not trained on (of the same prompts)")
        about = {"scorer": "reward model", "trained_on": name, "tested_on": name, "pairs": "all (noisy labels)"}
        rows.append({**about, "accuracy": accuracy, "ci": interval.pair, "n": total, "over": interval.says})
    return rows
