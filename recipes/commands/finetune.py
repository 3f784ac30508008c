"""Multi-objective fine-tuning: METHOD + the reference + objectives + weights -> a policy family.

    align finetune dpo --model runs/sft --data helpful=a.jsonl harmless=b.jsonl --weights 1,0 0,1 \\
        --objectives helpful=runs/rm-helpful harmless=runs/rm-harmless --out runs/dpo
    align finetune --config recipes/configs/finetune_morlhf.yaml --weights 0.5,0.5 --out runs/morlhf
    align finetune dpo ... --augment leetspeak typos            # and on copies of the rows under these shifts
"""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align.data.sources import load_training_rows
from align.errors import UserError
from align.preferences import Preference, parse_preference, simplex_grid
from align.runs import Ledger, Metrics, Workspace, model_dir, run_stage
from recipes.config import option, parse
from recipes.pipeline.inputs import closing_line, content_key, named, section
from recipes.pipeline.objectives import answers_beside, load_objectives, objective_keys, with_columns

if TYPE_CHECKING:
    from align.engines.problem import Problem
    from align.methods import Method

READS_MODELS = ("specialists", "margin_models", "start")  # fields of methods' Configs that name model directories


@dataclass(frozen=True, kw_only=True)
class Config:
    method: str = option(help="a method's name: docs/methods.md lists them (dpo, morlhf, rewarded_soups, ...)")
    model: str = option(help="the reference policy (the SFT checkpoint): run, Hugging Face directory or hub id")
    data: tuple[str, ...] = option(
        help="comparisons (or, for on-policy methods, prompts): SOURCE, or OBJECTIVE=SOURCE for each objective"
    )
    objectives: tuple[str | Mapping[str, object], ...] = option(
        help="NAME=RUN of a reward model, NAME=KIND of a rule, or NAME=KIND:... (docs/objectives.md), in weights' order"
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
    template: str | None = option(None, help="prompt format of a model that carries none yet: auto, chat, hh or plain")
    chat_template_kwargs: Mapping[str, object] | None = option(None, help="JSON for the chat template")
    training: Mapping[str, object] = option({}, help="keys of the method's Config (align/methods/METHOD.py)")


def preferences_of(config: Config, names: Collection[str], *, where: str) -> list[Preference]:
    """The preferences to train at; UserError where one does not fit the objectives or is given twice."""
    preferences: list[Preference] = [parse_preference(text) for text in config.weights]
    preferences = preferences or list(simplex_grid(len(names), 4))
    for one in preferences:
        count, kind = len(one.values), type(one).__name__.lower()
        if count != len(names):
            listed = f"{len(names)} objectives ({', '.join(names)})"
            raise UserError(f"{where}: {kind} {one.label} are {count} numbers for {listed}; give one for each")
        if preferences.count(one) > 1:
            raise UserError(f"{where}: {kind} {one.label} are given twice; give each once")
    return preferences


def method_of(config: Config, *, where: str) -> Method:
    """The method's module; UserError with the nearest name for an unknown one."""
    from align.methods import METHODS

    if config.method not in METHODS:
        near = difflib.get_close_matches(config.method, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else "choose one of these"
        raise UserError(f"{where}: method {config.method!r} is not one of {', '.join(METHODS)}; {hint}")
    return METHODS[config.method]


def settings_of(config: Config, *, where: str) -> object:
    """The method's Config with the flags in it; where it trains another method's specialists, the flags go to those."""
    from align.methods import METHODS

    cls, values, name = method_of(config, where=where).Config, dict(config.training), "training"
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if "method_config" not in fields:
        return section(cls, values, where=where, name=name, **step_flags(config, cls))
    inner = METHODS.get(str(values.get("method", fields["method"].default)))
    if inner is not None:
        given = values.get("method_config") or {}
        if not isinstance(given, Mapping):
            raise UserError(f"{where}: training.method_config is {given!r}; give a section of keys")
        name = "training.method_config"
        settings = section(inner.Config, given, where=where, name=name, **step_flags(config, inner.Config))
        values["method_config"] = dataclasses.asdict(settings)
    return section(cls, values, where=where, name="training")


def step_flags(config: Config, cls: type) -> dict[str, int | None]:
    """--seed and --max-steps under the names that the method's Config gives them."""
    counted = {f.name for f in dataclasses.fields(cls)} & {"steps", "max_steps"}
    return {"seed": config.seed, next(iter(counted), "max_steps"): config.max_steps}


def models_read(settings: object, *, where: str) -> dict[str, str]:
    """What else a run depends on: the policies that the settings name, by field. UserError for a reward model."""
    from evals.backends.reward_model import is_reward_model

    sources = {}
    for name in READS_MODELS:
        given = getattr(settings, name, ())
        for i, source in enumerate((given,) if isinstance(given, str) else given):
            if name != "margin_models" and source and is_reward_model(source):
                raise UserError(f"{where}: {name}: {source} is a reward model; give a policy that one was trained with")
            sources[f"{name} {i}"] = source
    return sources


def augmented_problem(problem: Problem[Preference], config: Config, *, drops: Counter[str]) -> Problem[Preference]:
    """The problem with shifted copies of its rows, which are judged on their plain prompts."""
    from evals.shifts.augment import OnPlainPrompts, augmented

    seed, rows, pairs = config.seed or 0, problem.prompts or (), problem.comparisons
    prompts = augmented(rows, shifts=config.augment, seed=seed, drops=drops)
    return dataclasses.replace(
        problem,
        objectives={name: OnPlainPrompts(objective, prompts) for name, objective in problem.objectives.items()},
        comparisons=None if pairs is None else augmented(pairs, shifts=config.augment, seed=seed),
        prompts=[{name: row[name] for name in ("id", "prompt")} for row in prompts],
    )


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align finetune", about=__doc__ or "", positional=("method",))
    training = settings_of(config, where=where)
    policies = models_read(training, where=where)
    objectives = load_objectives(config.objectives, folder=answers_beside(config.out))
    preferences = preferences_of(config, objectives, where=where)
    from align.engines.problem import Problem
    from align.models.tokenizers import choose_format

    drops, sources = Counter[str](), named(config.data, what="data")
    reference = model_dir(config.model)
    comparisons, prompts = load_training_rows(sources, limit=config.limit, drops=drops)
    objectives = with_columns(objectives, sources=sources, limit=config.limit)
    asked = [row["prompt"] for row in (*(comparisons or ()), *(prompts or ()))]
    choose_format(reference, config.template or "auto", config.chat_template_kwargs, prompts=asked)
    problem: Problem[Preference] = Problem(
        reference=reference, objectives=objectives, preferences=preferences, comparisons=comparisons, prompts=prompts
    )
    if config.augment:
        problem = augmented_problem(problem, config, drops=drops)

    def body(folder: Path, ledger: Ledger) -> Metrics:
        from recipes.pipeline.specialists import with_specialists

        run = Workspace(folder, ledger)
        family = method_of(config, where=where).fit(training, with_specialists(training, problem, run), run)
        family.save(folder)
        return {
            "method": config.method, "reference": config.model, "objectives": list(config.objectives),
            "domain": family.domain, "point_cost": family.point_cost, "comparisons": len(problem.comparisons or ()),
            "prompts": len(problem.prompts or ()), "dropped": dict(drops),
        }  # fmt: skip

    inputs = {"model": content_key(config.model), **objective_keys(config.objectives)}
    inputs |= {f"data {name}": content_key(source) for name, source in sources.items()}
    inputs |= {name: content_key(source) if source else "" for name, source in policies.items()}
    keyed = {"method": config.method, "training": training, "preferences": preferences, "limit": config.limit}
    optional = ("augment", "template", "chat_template_kwargs")
    keyed |= {name: value for name in optional if (value := getattr(config, name))}
    print(closing_line(run_stage(config.out, stage="finetune", config=keyed, body=body, inputs=inputs)))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("finetune")
