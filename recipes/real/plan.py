"""The configuration and plan of real preference data: its stages, what each needs, and where its runs lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.preferences import Weights, simplex_grid
from recipes.config import option
from recipes.pipeline.tasks import Task
from recipes.real import judging as hh_evaluate
from recipes.real import stages as hh_stages

NAMES = ("helpful", "harmless")


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str = option(
        help="folder with hh_rlhf/ or helpful-base/ and harmless-base/, or any source with objective rows"
    )
    model: str | None = option(None, help="start from this Hugging Face folder or hub id instead of pretraining")
    seed: int = option(0, help="seed of the split, of training and of sampling")
    out: str = option("runs/hh", help="run directory")
    workers: int = option(2, help="worker processes of one thread each; 0 runs everything in this process")
    vocab_size: int = option(2048, help="size of the BPE vocabulary trained from the text")
    ngram_order: int = option(5, help="n of the back-off model that pretraining is compared with")
    rows: dict[str, Any] = option({}, help="limit, text files, cleaning, parts of the split, validation text")
    architecture: dict[str, Any] = option({}, help="keys of align.models.ModelConfig")
    pretrain: dict[str, Any] = option({}, help="keys of PretrainConfig")
    sft: dict[str, Any] = option({}, help="demonstrations per objective (0: no SFT), and keys of SFTConfig_")
    reward_model: dict[str, Any] = option({}, help="pairs per objective, and keys of RewardModelConfig")
    pairs: dict[str, Any] = option({}, help="prompts, max_new_tokens, batch_size of the reference samples to compare")
    methods: dict[str, Any] = option({}, help="row -> {method, settings, or specialists_of: another row}")
    preference_steps: int = option(4, help="preferences are the simplex grid with this many steps")
    prompts: int = option(100, help="held-out prompts that every policy answers")
    sampling: dict[str, Any] = option({}, help="keys of recipes.pipeline.sampling.Sampling")
    controls: dict[str, Any] = option({}, help="n of best-of-n, overspend, the row that overspends, preferences asked")
    texts: int = option(60, help="held-out texts for bits per byte before and after fine-tuning")


@dataclass(frozen=True)
class Plan:
    """The tasks, and where the runs lie that the summary reads."""

    tasks: list[Task]
    preferences: list[Weights]
    reference: str
    points: dict[str, dict[str, Path]] = field(default_factory=dict)  # row -> label -> fine-tuning run
    cells: dict[str, list[Path]] = field(default_factory=dict)  # row -> evaluation runs
    stages: dict[str, Path] = field(default_factory=dict)  # stages that serve all rows


def make_plan(config: Config, out: Path) -> Plan:
    """Every stage in order; UserError on a row that names an unknown row or method."""
    preferences = simplex_grid(len(NAMES), config.preference_steps)
    tasks, base, stages = _start(config, out)
    reference, tuned = base, (("pretrain",) if config.model is None else ("rows",))
    sft = dict(config.sft)
    each = sft.pop("demonstrations")
    shared = {"data": str(out / "rows"), "seed": config.seed}
    if each:
        reference = str(out / "sft")
        arguments = {**shared, "out": reference, "base": base, "names": NAMES, "demonstrations": each, "training": sft}
        tasks.append(Task("sft", hh_stages.sft, arguments, tuned))
        stages["sft"] = out / "sft"
    models = _reward_models(config, out, tasks, base=base, needs=tuned, stages=stages)
    plan = Plan(tasks, preferences, reference, stages=stages)
    own = models["ours"]
    drawn = {**shared, **config.pairs, "out": str(out / "pairs"), "reference": reference, "reward_models": own}
    needs = (*(("sft",) if each else tuned), *(f"reward model {name}" for name in NAMES))
    tasks.append(Task("pairs", hh_stages.pairs, drawn, needs))
    stages["pairs"] = out / "pairs"
    arguments = {**shared, "out": str(out / "reward-table"), "names": NAMES, "models": models}
    judged = tuple(f"{kind} {name}" for kind in ("reward model", "judge") for name in NAMES)
    tasks.append(Task("reward table", hh_evaluate.reward_table, arguments, judged))
    stages["reward table"] = out / "reward-table"
    _methods(config, out, plan, reward_models=own)
    _evaluations(config, out, plan, models=models)
    return plan


def _start(config: Config, out: Path) -> tuple[list[Task], str, dict[str, Path]]:
    """Rows, and with a model of our own tokenizer, pretraining and 5-gram: (tasks, base model, their runs)."""
    from recipes.real.data import data_key

    rows = {"out": str(out / "rows"), "data": config.data, "names": NAMES, "seed": config.seed, "rows": config.rows}
    rows["data_key"] = data_key(config.data, files=config.rows["text"], names=NAMES)
    tasks = [Task("rows", hh_stages.prepare, rows)]
    stages = {"rows": out / "rows"}
    if config.model is not None:
        return tasks, config.model, stages
    read = {"data": str(out / "rows")}
    vocabulary = {**read, "out": str(out / "tokenizer"), "vocab_size": config.vocab_size}
    tasks.append(Task("tokenizer", hh_stages.tokenizer, vocabulary, ("rows",)))
    read["tokenizer"] = str(out / "tokenizer")
    training = {**read, "out": str(out / "pretrain"), "seed": config.seed, "model": config.architecture}
    tasks.append(Task("pretrain", hh_stages.pretrain, {**training, "training": config.pretrain}, ("tokenizer",)))
    counted = {**read, "out": str(out / "ngram"), "order": config.ngram_order}
    tasks.append(Task("ngram", hh_stages.ngram, counted, ("tokenizer",)))
    stages |= {name: out / name for name in ("tokenizer", "pretrain", "ngram")}
    return tasks, str(out / "pretrain"), stages


def _reward_models(
    config: Config, out: Path, tasks: list[Task], *, base: str, needs: tuple[str, ...], stages: dict[str, Path]
) -> dict[str, dict[str, str]]:
    """Tasks of our reward models (training part) and of the judges (their own part): scorer -> objective -> run."""
    training = dict(config.reward_model)
    pairs = training.pop("pairs")
    models: dict[str, dict[str, str]] = {}
    for scorer, part, kind in (("ours", "train", "reward model"), ("judge", "judge", "judge")):
        for name in NAMES:
            folder = out / f"{kind.replace(' ', '-')}-{name}"
            models.setdefault(scorer, {})[name] = str(folder)
            arguments = {"out": str(folder), "data": str(out / "rows"), "base": base, "part": part, "objective": name}
            arguments |= {"seed": config.seed, "pairs": pairs, "training": training}
            tasks.append(Task(f"{kind} {name}", hh_stages.reward_model, arguments, needs))
            stages[f"{kind} {name}"] = folder
    return models


def _methods(config: Config, out: Path, plan: Plan, *, reward_models: Mapping[str, str]) -> None:
    """Fine-tuning tasks of every row: one per preference, or one for all; specialists are waited for."""
    from align.methods import METHODS

    common = {"reference": plan.reference, "pairs": str(out / "pairs"), "reward_models": reward_models}
    vertices = [Weights.vertex(k, len(NAMES)).label for k in range(len(NAMES))]
    for row, spec in config.methods.items():
        if spec.get("method") not in METHODS:
            raise UserError(
                f"methods: row {row!r} asks for method {spec.get('method')!r}; choose from {', '.join(METHODS)}"
            )
        source = spec.get("specialists_of")
        if source is not None and source not in plan.points:
            raise UserError(f"methods: row {row!r} takes specialists of {source!r}, which is not a row above it")
        labels = [w.label for w in plan.preferences]
        folder = out / "methods" / row.replace("/", "_")
        family = spec.get("runs", "points") == "family"
        plan.points[row] = {label: folder / ("all" if family else label) for label in labels}
        for place, asked in ((folder / "all", labels),) if family else ((folder / w, [w]) for w in labels):
            arguments = {**common, "out": str(place), "method": spec["method"], "preferences": asked}
            needs: tuple[str, ...] = ("pairs",)
            arguments["settings"] = dict(spec.get("settings", {}))
            if source is None:
                arguments["settings"] = _seeded(spec["method"], config.seed) | arguments["settings"]
            else:
                arguments["specialists"] = [str(plan.points[source][v]) for v in vertices]
                needs = tuple(f"{source} {v}" for v in vertices)
            plan.tasks.append(Task(f"{row} {place.name}", hh_stages.finetune, arguments, needs))


def _seeded(method: str, seed: int) -> dict[str, int]:
    """The run's seed, for methods that have one (best-of-n has none: it draws at decoding)."""
    import dataclasses

    from align.methods import METHODS

    return {"seed": seed} if "seed" in {f.name for f in dataclasses.fields(METHODS[method].Config)} else {}


def _evaluations(config: Config, out: Path, plan: Plan, *, models: Mapping[str, Mapping[str, str]]) -> None:
    """An evaluation task per policy: reference, every point of every row, controls."""
    options = {key: config.controls[key] for key in ("n", "overspend")}
    common = {
        "data": str(out / "rows"), "reference": plan.reference, "pairs": str(out / "pairs"), "options": options,
        "reward_models": models["ours"], "judges": models["judge"], "prompts": {"none": config.prompts},
        "sampling": {"seed": config.seed, **config.sampling}, "texts": config.texts,
    }  # fmt: skip
    ready = ("pairs", *(f"judge {name}" for name in NAMES))

    def add(row: str, weights: Weights, policy: str, needs: tuple[str, ...]) -> None:
        folder = out / "cells" / row / weights.label
        plan.cells.setdefault(row, []).append(folder)
        arguments = {**common, "out": str(folder), "row": row, "policy": policy, "weights": list(weights.values)}
        plan.tasks.append(Task(f"evaluate {row} {weights.label}", hh_evaluate.evaluate, arguments, needs))

    add("reference", plan.preferences[0], plan.reference, ready)
    for row, points in plan.points.items():
        for weights in plan.preferences:
            place = points[weights.label]
            add(row, weights, str(place), (f"{row} {place.name}", *ready))
    spender = config.controls["overspender_of"]
    if spender not in plan.points:
        raise UserError(
            f"controls: overspender_of {spender!r} is not a row of methods; name one of {', '.join(plan.points)}"
        )
    asked = [w for w in plan.preferences if w.label in config.controls["preferences"]]
    if not asked:
        labels = "; ".join(w.label for w in plan.preferences)
        raise UserError(f"controls: none of preferences {config.controls['preferences']} is asked for; use {labels}")
    for weights in asked:
        add("kl_overspender", weights, str(plan.points[spender][weights.label]), (f"{spender} {weights.label}", *ready))
        add("best_of_n", weights, plan.reference, ready)
    add("length_only", asked[0], plan.reference, ready)
