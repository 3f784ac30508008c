"""Multi-objective fine-tuning: METHOD + the reference + objectives + weights -> a policy family.

    align finetune dpo --model runs/sft --data helpful=a.jsonl harmless=b.jsonl --weights 1,0 0,1 \\
        --objectives helpful=runs/rm-helpful harmless=runs/rm-harmless --out runs/dpo
    python -m recipes.commands.finetune --config recipes/configs/finetune_morlhf.yaml --weights 0.5,0.5 --out
        runs/morlhf
    align finetune dpo ... --augment leetspeak typos            # and on copies of the rows under these shifts
"""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.preferences import Preference, parse_preference, simplex_grid
from align.runs import Ledger, Workspace, run_stage
from recipes.config import option, parse
from recipes.pipeline.inputs import (
    closing_line,
    content_key,
    load_objectives,
    load_training_rows,
    named,
    objective_keys,
    section,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    method: str = option(help="a method's name: docs/methods.md lists them (dpo, morlhf, rewarded_soups, ...)")
    model: str = option(help="the reference policy (the SFT checkpoint): run, Hugging Face directory or hub id")
    data: tuple[str, ...] = option(
        help="comparisons (or, for on-policy methods, prompts): SOURCE, or OBJECTIVE=SOURCE for each objective"
    )
    objectives: tuple[str | dict[str, Any], ...] = option(
        help="NAME=RUN of a reward model or NAME=KIND of a rule, one per objective, in the order of the weights"
    )
    weights: tuple[str, ...] = option(
        (), help="preferences like 0.25,0.75 or thresholds=none,0.5, one or more (default: 5 weights over the simplex)"
    )
    out: str = option("runs/finetune", help="run directory to write")
    limit: int | None = option(None, help="read only the first rows of each source")
    max_steps: int | None = option(None, help="optimizer steps per trained policy, for methods that count steps")
    seed: int | None = option(None, help="seed of sampling, the order of rows and dropout")
    augment: tuple[str, ...] = option(
        (), help="also train on copies of the rows under these shifts of evals/shifts (names or families)"
    )
    training: dict[str, Any] = option({}, help="keys of the method's Config (align/methods/METHOD.py)")


def resolve(config: Config, *, where: str) -> dict[str, Any]:
    """The method's Config and the preferences, checked."""
    preferences: list[Preference] = [parse_preference(text) for text in config.weights]
    preferences = preferences or list(simplex_grid(len(config.objectives), 4))
    for asked in preferences:
        count, kind = len(asked.values), type(asked).__name__.lower()
        if count != len(config.objectives):
            names = f"{len(config.objectives)} objectives"
            raise UserError(f"{where}: {kind} {asked.label} are {count} numbers for {names}; give one for each")
        if preferences.count(asked) > 1:
            raise UserError(f"{where}: {kind} {asked.label} are given twice; give each once")
    from align.methods import METHODS

    if config.method not in METHODS:
        near = difflib.get_close_matches(config.method, METHODS, n=1)
        mend = f"did you mean {near[0]}?" if near else "choose one of these"
        raise UserError(f"{where}: method {config.method!r} is not one of {', '.join(METHODS)}; {mend}")
    return {"method": config.method, "training": method_config(config, where=where), "preferences": preferences}


def method_config(config: Config, *, where: str) -> Any:
    """The method's Config with the flags in it; where it trains another method's specialists, the flags go to those."""
    from align.methods import METHODS

    cls, values, name = METHODS[config.method].Config, dict(config.training), "training"
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if "method_config" not in fields:
        return section(cls, values, where=where, name=name, **step_flags(config, cls))
    inner = METHODS.get(str(values.get("method", fields["method"].default)))
    if inner is not None:
        given = values.get("method_config") or {}
        name = "training.method_config"
        settings = section(inner.Config, given, where=where, name=name, **step_flags(config, inner.Config))
        values["method_config"] = dataclasses.asdict(settings)
    return section(cls, values, where=where, name="training")


def step_flags(config: Config, cls: type) -> dict[str, int | None]:
    """--seed and --max-steps under the names that the method's Config gives them."""
    counted = {f.name for f in dataclasses.fields(cls)} & {"steps", "max_steps"}
    return {"seed": config.seed, next(iter(counted), "max_steps"): config.max_steps}


def augment(
    config: Config, comparisons: Any, prompts: Any, objectives: Mapping[str, Any], *, drops: Counter[str]
) -> tuple[Any, Any, dict[str, Any]]:
    """Comparisons, prompts and objectives with shifted copies of the rows, which are judged on their plain prompts."""
    from evals.shifts.augment import OnPlainPrompts, augmented

    made = augmented(prompts, shifts=config.augment, seed=config.seed or 0, drops=drops)
    judged = {name: OnPlainPrompts(objective, made) for name, objective in objectives.items()}
    if comparisons is not None:
        comparisons = augmented(comparisons, shifts=config.augment, seed=config.seed or 0)
    return comparisons, [{name: row[name] for name in ("id", "prompt")} for row in made], judged


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align finetune", about=__doc__ or "", positional=("method",))
    settings = resolve(config, where=where)
    from align.runs import model_dir

    model, drops, sources = model_dir(config.model), Counter[str](), named(config.data, what="data")
    objectives = load_objectives(config.objectives)
    comparisons, prompts = load_training_rows(sources, limit=config.limit, drops=drops)
    if config.augment:
        comparisons, prompts, objectives = augment(config, comparisons, prompts, objectives, drops=drops)

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.engines.problem import Problem
        from align.methods import METHODS
        from recipes.pipeline.specialists import with_specialists

        problem = Problem(
            reference=model,
            objectives=objectives,
            preferences=settings["preferences"],
            comparisons=comparisons,
            prompts=prompts,
        )
        training, run = settings["training"], Workspace(folder, ledger)
        family = METHODS[config.method].fit(training, with_specialists(training, problem, run), run)
        family.save(folder)
        return {
            "method": config.method,
            "reference": config.model,
            "objectives": list(config.objectives),
            "domain": family.domain,
            "point_cost": family.point_cost,
            "comparisons": len(comparisons or ()),
            "prompts": len(prompts),
            "dropped": dict(drops),
        }

    inputs = {"model": content_key(config.model), **objective_keys(config.objectives)}
    inputs |= {f"data {name}": content_key(source) for name, source in sources.items()}
    for name in ("specialists", "margin_models", "start"):
        given = getattr(settings["training"], name, ())
        for i, source in enumerate((given,) if isinstance(given, str) else given):
            inputs[f"{name} {i}"] = content_key(source) if source else ""
    asked = {**settings, "limit": config.limit} | ({"augment": config.augment} if config.augment else {})
    run = run_stage(config.out, stage="finetune", config=asked, body=body, inputs=inputs)
    print(closing_line(run))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("finetune")
