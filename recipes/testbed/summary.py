"""The demo's summary.json: cells, ledgers and facts on disk -> the tables that the report reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.data.answers import ExactAnswer
from align.runs import RUN_FILE, Run, open_run
from recipes.pipeline.conflict_summary import gradient_cosines, training_conflict
from recipes.pipeline.inputs import joined_claims
from recipes.pipeline.provenance import ledger_table, provenance

if TYPE_CHECKING:
    from recipes.testbed.plan import Config, Plan

CONTROL_NOTES = {
    "kl_overspender": "the exact optimum of beta / {overspend:g}: the best reward money can buy, at the wrong price",
    "length_only": "the exact optimum for a reward model that only counts tokens",
    "best_of_n": "soft best-of-n of the gold sum: {n} reference samples and {n} gold scores for every response",
}
NOTES = {
    "morlhf": "on-policy (RLOO), gold rewards, the sequence's KL in the reward: the J of the world itself",
    "dpo": "offline pairs, labels of an annotator who sees the weighted gold sum",
    "dpo/mle": "dpo with a maximum-likelihood term on the chosen responses, against the alignment tax",
    "modpo": "offline pairs labelled for the objective of the largest weight; the other enters as a margin",
    "rewarded_soups": "weights interpolated between the two morlhf specialists; no training of its own",
    "morlhf@learned": "morlhf on reward models learned from the annotator's labels, never on gold",
}


def answers_in(folders: Iterable[Path]) -> list[ExactAnswer]:
    """All answers of some evaluation runs, read through the checked reader."""
    from evals.measure.answers import read_exact

    return [answer for folder in folders for answer in read_exact(folder / "cells.jsonl")]


def summarise(config: Config, *, plan: Plan, out: Path) -> dict[str, Any]:
    """summary.json of a finished demo."""
    from align.testbed.responses import level_starts
    from align.testbed.world import load_world
    from evals.tables.generalization import shifts_table
    from evals.tables.tradeoffs import controls_table, exact_table
    from recipes.testbed.plan import CONTROLS

    world = load_world(config.world)
    facts = json.loads((out / "optimum" / "optimum.json").read_text(encoding="utf-8"))
    cells = {row: answers_in(folders) for row, folders in plan.cells.items()}
    ranked = [c for row, found in cells.items() if row not in ("optimum", "perturbed") for c in found]
    point = [world.config.reference_point] * len(world.objectives)
    table = exact_table(
        ranked,
        objectives=world.objectives,
        reference_point=point,
        front_at_kl=_front_at_kl(facts, world=world, dense=config.dense),
        info=_row_info(config, plan=plan, out=out),
    )
    controls = controls_table(table, controls={"reference": "reference", **{name: name for name in CONTROLS}})
    details = {
        **{f: getattr(world.config, f) for f in ("name", "beta", "tau", "malformed_reward", "conflict")},
        "objectives": list(world.objectives),
        "reference_point": point,
        "prompts": len(world.test_prompts("none")),
        "train_prompts": len(world.train_prompts),
        "responses": level_starts(world.config.max_tokens)[-1],
        "reward_range": [0.0, 1.0],
        "preferences": [list(w.values) for w in plan.preferences],
        "conflict_dial": {
            "front_span": facts["dial"],
            "is": "span of the exact front over the weights, in units of the reward range: 0 agreeing, 1 opposed",
        },
    }
    return {
        "title": f"Demo: the {world.config.name} world, seed {config.seed}",
        "kind": "testbed",
        "world": world.hash,
        "world_details": details,
        "methods": table,
        "optimum": _optimum(facts, cells),
        "shifts": shifts_table(
            [c for c in ranked if c.row not in CONTROLS],
            objectives=world.objectives,
            headline="harmless",
            reference_point=point,
        ),
        "controls": controls,
        "conflict": {
            **_conflict(out / "comparisons" / "rows.jsonl", names=world.objectives),
            **gradient_cosines(open_run(out / "gradient-cosines")),
            "training": training_conflict(plan.policies),
        },
        "reward_models": _reward_models(out, world=world),
        "notes": _notes(config, responses=details["responses"]),
        "provenance": provenance(
            config, seed=config.seed, runs=[open_run(task.arguments["out"]) for task in plan.tasks]
        ),
        "ledger": ledger_table(_costs(plan)),
    }


def _front_at_kl(facts: Mapping[str, Any], *, world: Any, dense: int) -> Any:
    """KL -> the dense exact front whose every point spends it, beta solved again at each of its preferences."""
    import numpy as np

    from align.preferences import simplex_grid
    from align.testbed.optimum import RewardClasses, front_at_kl

    classes = [RewardClasses(np.array(c["rewards"]), np.array(c["log_mass"])) for c in facts["classes"]]
    count = len(world.objectives)
    grid = simplex_grid(count, dense if count == 2 else 20)
    return lambda kl: front_at_kl(classes, grid, kl=kl)


def _optimum(facts: Mapping[str, Any], cells: Mapping[str, Sequence[ExactAnswer]]) -> dict[str, Any]:
    """The dense front, the largest regret of pi*_w through the evaluator, and the perturbed optimum's regret."""
    from evals.tables.surfaces import exact_points

    measured = [p.regret for p in exact_points(cells["perturbed"])]
    predicted = facts["perturbed"]["predicted"]
    return {
        "front": facts["front"],
        "regret": max(abs(answer.regret) for answer in cells["optimum"]),
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


def _row_info(config: Config, *, plan: Plan, out: Path) -> dict[str, dict[str, Any]]:
    """What each row says about itself: objective, rewards, cost, bits per byte, samples per response."""
    before = open_run(plan.cells["reference"][0]).metrics["bits_per_byte"]
    info: dict[str, dict[str, Any]] = {
        "reference": {
            "optimises": "maximum likelihood of the corpus and of the demonstrations",
            "note": "the SFT checkpoint: what every KL is measured against",
            "rewards": "none",
            "bits_per_byte": {"before": before, "after": before, "change": 0.0},
            "ledger": ledger_table({name: open_run(out / name).ledger for name in ("pretrain", "sft")})["total"],
        }
    }
    # What learned rewards are made of: the samples drawn to be compared, and a reward model per objective.
    models = sorted(path for path in out.glob("reward-model-*") if (path / RUN_FILE).is_file())
    learned = {path.name: open_run(path).ledger for path in (out / "comparisons", *models)}
    for row, runs in plan.policies.items():
        spec = config.rows[row]
        points = {label: open_run(path) for label, path in runs.items()}
        after = {folder.name: open_run(folder).metrics["bits_per_byte"] for folder in plan.cells[row]}
        mean = sum(after.values()) / len(after)
        bits = {"before": before, "after": mean, "change": mean - before, "per_preference": after}
        info[row] = {
            "optimises": joined_claims({label: run.metrics["optimises"][label] for label, run in points.items()}),
            "note": NOTES.get(row, ""),
            "rewards": spec["rewards"],
            "bits_per_byte": bits,
            "ledger": _row_ledger(spec, points=points, plan=plan, shared=_shared(spec, learned)),
        }
    for name, words in CONTROL_NOTES.items():
        samples = open_run(plan.cells[name][0]).metrics["samples_per_response"]
        note = words.format(**config.controls)
        rewards = "length" if name == "length_only" else "gold"
        info[name] = {"optimises": note, "note": f"control: {note}", "rewards": rewards, "ledger": {}}
        info[name] |= {"samples_per_response": samples, "bits_per_byte": {"before": before, "after": None}}
    return info


def _shared(spec: Mapping[str, Any], learned: Mapping[str, Any]) -> Mapping[str, Any]:
    """Stages that a row shares with others: its reward models and their comparisons, or the pairs that it trains on."""
    if spec["rewards"] == "learned":
        return learned
    return {"comparisons": learned["comparisons"]} if _trains_on_pairs(spec) else {}


def _trains_on_pairs(spec: Mapping[str, Any]) -> bool:
    """Whether a row's method reads comparisons: its Config then says where their labels or scores come from."""
    from align.methods import METHODS

    known = {f.name: f.default for f in dataclasses.fields(METHODS[spec["method"]].Config)}
    on_policy = {**known, **(spec.get("settings") or {})}.get("data") == "on_policy"
    return bool({"labels", "scores"} & set(known)) and not on_policy


def _row_ledger(
    spec: Mapping[str, Any], *, points: Mapping[str, Run], plan: Plan, shared: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """What the whole row cost: its own points, the specialists of a soup, and what its rewards were made of."""
    ledgers: dict[str, Mapping[str, float]] = {**shared, **{label: run.ledger for label, run in points.items()}}
    source = spec.get("specialists_of")
    if source:
        vertices = [w.label for w in plan.preferences if w.is_vertex]
        ledgers |= {f"specialist {label}": open_run(plan.policies[source][label]).ledger for label in vertices}
    return ledger_table(ledgers)["total"]


def _conflict(rows: Path, *, names: Sequence[str]) -> dict[str, Any]:
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
    disagreement, correlation = label_disagreement(margins), rank_correlation(tables)
    return {
        "names": list(names),
        "disagreement": _plain(disagreement.values_KK),
        "rank_correlation": _plain(correlation.values_KK),
        "n": len(pairs),
        "over": f"{len(pairs)} pairs of unlike reference samples on {len(tables)} fine-tuning prompts, gold scores",
    }


def _plain(values_KK: Any) -> list[list[float | None]]:
    return [[float(v) if v == v else None for v in row] for row in values_KK]


def _reward_models(out: Path, *, world: Any) -> list[dict[str, Any]]:
    """Validation accuracy of the learned reward models on the annotator's noisy labels, with a Wilson interval."""
    from evals.stats.intervals import wilson

    rows = []
    total = open_run(out / "comparisons").metrics["rows"] // 10
    for name in world.objectives:
        accuracy = open_run(out / f"reward-model-{name}").metrics["accuracy"]
        interval = wilson(round(accuracy * total), n=total, over="comparisons not trained on (of the same prompts)")
        rows.append(
            {
                "scorer": "reward model",
                "trained_on": name,
                "tested_on": name,
                "pairs": "all (noisy labels)",
                "accuracy": accuracy,
                "ci": interval.pair,
                "n": total,
                "over": interval.says,
            }
        )
    return rows


def _notes(config: Config, *, responses: int) -> list[str]:
    return [
        f"Every trade-off number is exact: all {responses:,} responses and every malformed ending are enumerated.",
        "Ranking is by regret share. Raw hypervolume is printed and never ranks: it rewards spending KL.",
        f"One training seed ({config.seed}): intervals over seeds are null. Intervals of gaps run over topics.",
    ]


def _costs(plan: Plan) -> dict[str, dict[str, float]]:
    """Ledgers of all stages, those of one row's points or evaluations added up."""
    groups: dict[str, dict[str, dict[str, float]]] = {}
    for task in plan.tasks:
        run = open_run(task.arguments["out"])
        points = {"weights", "preferences"} & set(task.arguments)
        name = f"{task.name.rpartition(' ')[0]} (all points)" if points and " " in task.name else task.name
        group = "closed forms and controls" if run.stage == "closed form" else name
        groups.setdefault(group, {})[task.name] = run.ledger
    return {name: ledger_table(group)["total"] for name, group in groups.items()}
