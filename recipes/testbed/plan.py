"""The demo's configuration and plan: which stages it has, what each needs, and where its runs lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align import checks
from align.errors import UserError
from align.preferences import Weights, simplex_grid
from align.runs import jsonable
from align.testbed.world import SHIFTS
from recipes.config import option
from recipes.pipeline.inputs import section
from recipes.pipeline.tasks import Task
from recipes.testbed import stages as stages

CONTROLS = ("kl_overspender", "length_only", "best_of_n")
ROW_KEYS = ("method", "rewards", "settings", "specialists_of", "shifts")
CLOSED_FORM = ("optimum", "perturbed", *CONTROLS)


@dataclass(frozen=True, kw_only=True)
class Config:
    seed: int = option(0, help="training seed; every seed has its own directory")
    world: str = option("default", help="default, or another of align.testbed.world.WORLDS")
    out: str | None = option(None, help="run directory (default: runs/demo, or runs/demo-seed-N for another seed)")
    workers: int = option(2, help="worker processes of one thread each; 0 runs everything in this process")
    model: dict[str, Any] = option({}, help="keys of align.models.ModelConfig")
    pretrain: dict[str, Any] = option({}, help="documents, and keys of PretrainConfig")
    sft: dict[str, Any] = option({}, help="documents, and keys of SFTConfig_")
    comparisons: int = option(3000, help="pairs of reference samples that the annotator judges")
    reward_model: dict[str, Any] = option({}, help="keys of RewardModelConfig")
    rows: dict[str, Any] = option({}, help="row -> {method, rewards: gold or learned, settings: keys of its Config}")
    preference_steps: int = option(4, help="preferences are the simplex grid with this many steps per edge")
    shift_steps: int = option(2, help="the coarser grid at which rows are evaluated under shift")
    dense: int = option(200, help="steps of the dense exact front")
    controls: dict[str, Any] = option({}, help="temperature, overspend and n of the closed-form rows")


def destination(config: Config) -> Path:
    """Where the run is written: each seed and world has its own directory unless `out` is given."""
    if config.out:
        return Path(config.out)
    world = "" if config.world == "default" else f"-{config.world}"
    seed = "" if config.seed == 0 else f"-seed-{config.seed}"
    return Path("runs") / f"demo{world}{seed}"


def row_folder(row: str) -> str:
    """A row's name as a folder name."""
    return row.replace("/", "_")


@dataclass(frozen=True, kw_only=True)
class Controls:
    """Of the closed-form rows: pi* at another temperature, beta / `overspend`, best of `n`."""

    temperature: float
    overspend: float
    n: int


@dataclass(frozen=True)
class Plan:
    """The demo's tasks and where each row's runs lie."""

    tasks: list[Task]
    preferences: list[Weights]
    policies: dict[str, dict[str, Path]]  # row -> label -> fine-tuning run
    cells: dict[str, list[Path]]  # row -> evaluation runs


def check(config: Config, *, where: str) -> None:
    """UserError on a row or section that no stage could run, before anything is started."""
    from align.models import ModelConfig
    from align.training.pretrain import PretrainConfig
    from align.training.reward_model import RewardModelConfig
    from align.training.sft import SFTConfig_

    check_rows(config, where=where)
    section(ModelConfig, config.model, where=where, name="model")
    section(RewardModelConfig, config.reward_model, where=where, name="reward_model")
    for name, cls in (("pretrain", PretrainConfig), ("sft", SFTConfig_)):
        values = dict(getattr(config, name))
        documents = values.pop("documents", None)
        if not isinstance(documents, int) or documents < 1:
            raise UserError(f"{where}: {name}: documents is {documents!r}; give a number of at least 1")
        section(cls, values, where=where, name=name)
    checks.above_zero(section(Controls, config.controls, where=where, name="controls"), "temperature", "overspend", "n")
    checks.at_least(1, config, "comparisons", "preference_steps", "shift_steps", "dense", place=f"{where}: ")
    checks.at_least(0, config, "seed", "workers", place=f"{where}: ")
    if config.preference_steps % config.shift_steps:
        raise UserError(f"{where}: preference_steps must be a multiple of shift_steps")


def check_rows(config: Config, *, where: str) -> None:
    """UserError on a row without method and rewards, or with settings that its method does not have."""
    from align.methods import METHODS

    for row, spec in config.rows.items():
        place = f"{where}: rows: {row}"
        if not isinstance(spec, Mapping) or not {"method", "rewards"} <= set(spec):
            raise UserError(f"{place} needs a method and rewards (gold or learned)")
        unknown = sorted(set(spec) - set(ROW_KEYS))
        if unknown:
            raise UserError(f"{place}: unknown key {unknown[0]!r}; a row has {', '.join(ROW_KEYS)}")
        shifts = spec.get("shifts", True)
        if not isinstance(shifts, bool) and not (isinstance(shifts, list) and set(map(str, shifts)) <= set(SHIFTS)):
            raise UserError(f"{place}: shifts must be true, false or a list of {', '.join(SHIFTS)}")
        if str(spec["method"]) not in METHODS:
            raise UserError(f"{place}: method {spec['method']!r} is not one of {', '.join(METHODS)}")
        if spec["rewards"] not in ("gold", "learned"):
            raise UserError(f"{place}: rewards must be gold or learned, not {spec['rewards']!r}")
        source = spec.get("specialists_of")
        if source is not None and source not in list(config.rows)[: list(config.rows).index(row)]:
            raise UserError(f"{place}: specialists_of names {source!r}, which is no row above it")
        if source is not None and (spec["method"] != "rewarded_soups" or spec.get("settings")):
            raise UserError(f"{place}: specialists_of is for rewarded_soups, and stands without settings")
        section(METHODS[spec["method"]].Config, spec.get("settings", {}), where=where, name=f"rows: {row}: settings")


def row_shifts(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The shifts a row is evaluated under: every true one by default; seen prompts are no shift and must be named."""
    given = spec.get("shifts", True)
    if isinstance(given, bool):
        return tuple(s for s in SHIFTS if s != "seen_prompts") if given else ()
    return tuple(given)


def make_plan(config: Config, out: Path) -> Plan:
    """Every stage of the demo in order, longest chains first."""
    from align.testbed.world import load_world

    world = load_world(config.world)
    objectives = len(world.objectives)
    common: dict[str, Any] = {"world": jsonable(world.config)}
    preferences = simplex_grid(objectives, config.preference_steps)
    shift_weights = [list(w.values) for w in simplex_grid(objectives, config.shift_steps)]
    reference, pairs = str(out / "sft"), str(out / "comparisons")
    models = [str(out / f"reward-model-{name}") for name in world.objectives]
    tasks = _shared_tasks(config, out, common=common, reference=reference, pairs=pairs, models=models)
    policies: dict[str, dict[str, Path]] = {}
    cells: dict[str, list[Path]] = {}
    evaluation = {"seed": config.seed, "reference": reference, "shift_weights": shift_weights}

    def add_evaluation(row: str, policy: str, weights: Sequence[Weights], need: str, shifts: Sequence[str]) -> None:
        name = weights[0].label if len(weights) == 1 else "all"
        folder = out / "cells" / row_folder(row) / name
        cells.setdefault(row, []).append(folder)
        arguments = {**common, **evaluation, "row": row, "policy": policy, "out": str(folder)}
        arguments |= {"weights": [list(w.values) for w in weights], "shifts": list(shifts)}
        tasks.append(Task(f"evaluate {row} {name}", stages.evaluate, arguments, (need,)))

    add_evaluation("reference", reference, preferences, "sft", SHIFTS)
    for row, spec in config.rows.items():
        for w in preferences:
            folder = out / "methods" / row_folder(row) / w.label
            policies.setdefault(row, {})[w.label] = folder
            task = _finetune_task(config, row, spec, w, folder, common=common, reference=reference, pairs=pairs,
                                  models=models, policies=policies)  # fmt: skip
            tasks.append(task)
            add_evaluation(row, str(folder), [w], task.name, row_shifts(spec))
    for kind in CLOSED_FORM:
        folder = out / "cells" / kind / "all"
        cells[kind] = [folder]
        arguments = {**common, "out": str(folder), "row": kind, "kind": kind, "reference": reference}
        arguments |= {"weights": [list(w.values) for w in preferences], "options": config.controls}
        tasks.append(Task(f"closed form {kind}", stages.closed_form, arguments, ("sft",)))
    arguments = {**common, "out": str(out / "optimum"), "reference": reference, "dense": config.dense}
    arguments |= {"weights": [list(w.values) for w in preferences], "temperature": config.controls["temperature"]}
    tasks.append(Task("optimum", stages.optimum, arguments, ("sft",)))
    return Plan(tasks, preferences, policies, cells)


def _shared_tasks(
    config: Config, out: Path, *, common: Mapping[str, Any], reference: str, pairs: str, models: Sequence[str]
) -> list[Task]:
    base = {**common, "seed": config.seed}
    pretrain, sft = dict(config.pretrain), dict(config.sft)
    start = {**base, "out": str(out / "pretrain"), "documents": pretrain.pop("documents"), "training": pretrain}
    tune = {**base, "out": reference, "source": str(out / "pretrain"), "documents": sft.pop("documents")}
    draw = {**base, "out": pairs, "reference": reference, "count": config.comparisons}
    tasks = [
        Task("pretrain", stages.pretrain, {**start, "model": config.model}),
        Task("sft", stages.sft, {**tune, "training": sft}, ("pretrain",)),
        Task("comparisons", stages.comparisons, draw, ("sft",)),
    ]
    cosines = {**base, "out": str(out / "gradient-cosines"), "reference": reference, "pairs": pairs}
    tasks.append(Task("gradient cosines", stages.gradient_cosines, cosines, ("comparisons",)))
    for index, path in enumerate(models):
        arguments = {**base, "out": path, "reference": reference, "pairs": pairs, "objective": index}
        arguments["training"] = config.reward_model
        tasks.append(Task(Path(path).name, stages.reward_model, arguments, ("comparisons",)))
    return tasks


def _finetune_task(
    config: Config, row: str, spec: Mapping[str, Any], weights: Weights, folder: Path, *, common: Mapping[str, Any],
    reference: str, pairs: str, models: Sequence[str], policies: Mapping[str, Mapping[str, Path]],
) -> Task:  # fmt: skip
    """One point of one row; a soup waits for its specialists at the vertices of the row named in `specialists_of`."""
    arguments: dict[str, Any] = {
        **common,
        "out": str(folder),
        "method": spec["method"],
        "preferences": [weights.label],
    }
    arguments |= {"reference": reference, "pairs": pairs}
    needs = ["comparisons"]
    source = spec.get("specialists_of")
    if source:
        vertices = [Weights.vertex(k, len(weights)).label for k in range(len(weights))]
        arguments["specialists"] = [str(policies[source][label]) for label in vertices]
        arguments["settings"] = {}
        needs += [f"{source} {label}" for label in vertices]
    else:
        arguments["settings"] = {"seed": config.seed, **_world_settings(config, spec), **spec.get("settings", {})}
    if spec["rewards"] == "learned":
        arguments["reward_models"] = list(models)
        needs += [Path(path).name for path in models]
    return Task(f"{row} {weights.label}", stages.finetune, arguments, tuple(needs))


def _world_settings(config: Config, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What the world fixes for every method: beta, the annotator's temperature, the longest response."""
    from align.methods import METHODS
    from align.testbed.world import load_world

    world = load_world(config.world).config
    offered = {"beta": world.beta, "tau": world.tau, "max_completion_length": world.max_tokens + 1}
    known = {f.name for f in dataclasses.fields(METHODS[spec["method"]].Config)}
    return {name: value for name, value in offered.items() if name in known}
