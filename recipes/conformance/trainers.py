"""Trainers by name: TRL's at their own defaults but for what has to be said, this repository's methods, adapters."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias, cast

from align.errors import UserError
from align.objectives.base import Objective
from recipes.conformance.case import Case, Policy, Trainer

BATCH = 200  # replies of one optimisation step
Maker: TypeAlias = "Callable[[Mapping[str, object]], Trainer]"  # options -> a trainer


def _said(case: Case, options: Mapping[str, object], **values: object) -> dict[str, object]:
    """Arguments of a TRL config: what has to be said, and over it what was asked for."""
    return {
        "output_dir": str(case.folder), "beta": case.beta, "seed": case.seed, "max_steps": max(case.budget // BATCH, 1),
        "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": [], "save_strategy": "no",
        "disable_tqdm": True, "logging_strategy": "no", **values, **options,
    }  # fmt: skip


def _built(name: str, said: Mapping[str, object], **arguments: object) -> Policy:
    """TRL's trainer with its config, trained; UserError naming an option that its config has not."""
    import datasets
    import trl
    from transformers.trainer_callback import PrinterCallback

    config = getattr(trl, f"{name}Config")
    unknown = sorted(set(said) - set(inspect.signature(config).parameters))
    if unknown:
        raise UserError(f"trl.{name}Config has no option {unknown[0]!r}; see its documentation")
    datasets.disable_progress_bars()
    trainer = getattr(trl, f"{name}Trainer")(args=config(**said), **arguments)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.model


def on_policy(name: str) -> Maker:
    """TRL's RLOOTrainer or GRPOTrainer: every step draws, scores and uses BATCH replies once."""

    def make(options: Mapping[str, object]) -> Trainer:
        def train(case: Case) -> Policy:
            from datasets import Dataset

            said = _said(
                case, options, learning_rate=5e-3, per_device_train_batch_size=BATCH,
                reward_weights=list(case.weights), max_completion_length=case.longest,
            )  # fmt: skip
            prompts = Dataset.from_dict({"prompt": list(case.prompts) * 50})
            rewards = list(case.objectives.values())
            return _built(name, said, model=case.reference, reward_funcs=rewards, train_dataset=prompts)

        return train

    return make


def on_pairs(name: str) -> Maker:
    """TRL's DPOTrainer or KTOTrainer, on pairs of the reference's replies, over TRL's number of epochs.

    KTO is given the sides of the pairs one by one and shuffled: TRL reads its rows in their order, and takes pairs
    apart into a thousand winners, then a thousand losers, so that a whole batch would be of one kind.
    """

    def make(options: Mapping[str, object]) -> Trainer:
        def train(case: Case) -> Policy:
            from datasets import Dataset

            apart = name == "KTO"
            rows = case.labelled(case.budget) if apart else case.pairs(case.budget // 2)
            said = _said(
                case, options, learning_rate=5e-3, per_device_train_batch_size=BATCH if apart else BATCH // 2,
                beta=case.beta / case.tau, max_steps=-1,
            )  # fmt: skip
            return _built(name, said, model=case.reference, train_dataset=Dataset.from_list(rows))

        return train

    return make


TRL: dict[str, tuple[Maker, str | None]] = {  # name -> how it is built, and the fixed point that it should have
    "RLOOTrainer": (on_policy("RLOO"), "right"),
    "GRPOTrainer": (on_policy("GRPO"), "group scaling, KL per token"),
    "DPOTrainer": (on_pairs("DPO"), "right"),
    "KTOTrainer": (on_pairs("KTO"), "KTO"),
}


def predicted(name: str, options: Mapping[str, object]) -> str | None:
    """The hypothesis that a TRL trainer with these options should end at."""
    if name != "GRPOTrainer":
        return None if options or name not in TRL else TRL[name][1]
    if not set(options) <= {"multi_objective_aggregation", "scale_rewards"}:
        return None
    if options.get("multi_objective_aggregation") == "normalize_then_sum":
        return "GDPO, KL per token"
    scale = str(options.get("scale_rewards", "group"))
    return {"none": "KL per token", "batch": "batch scaling, KL per token"}.get(scale, TRL[name][1])


def trl_trainer(name: str, options: Mapping[str, object]) -> Trainer:
    """`trl:NAME` with options of its own config."""
    if name not in TRL:
        raise UserError(f"no trainer {name!r} of TRL here; choose {', '.join(TRL)}, or write an adapter")
    return TRL[name][0](options)


def check_target(name: str) -> None:
    """UserError on a target that is none, before anything is trained."""
    kind, _, rest = name.partition(":")
    if kind == "trl":
        trl_trainer(rest, {})
    elif kind == "ours":
        ours(rest)
    elif kind != "rule":
        adapter(name)


def ours(name: str) -> Maker:
    """A method of this repository, at its own defaults but for what has to be said."""
    from align.methods import METHODS

    if name not in METHODS:
        raise UserError(f"no method {name!r}; choose {', '.join(METHODS)}")
    method = METHODS[name]

    def make(options: Mapping[str, object]) -> Trainer:
        def train(case: Case) -> Policy:
            from align.engines.problem import Problem
            from align.policies.base import TokenPolicy
            from align.preferences import Weights
            from align.runs import Ledger, Workspace

            known = {field.name for field in dataclasses.fields(method.Config)}
            said: dict[str, object] = {
                "beta": case.beta, "seed": case.seed, "batch_size": BATCH, "steps": max(case.budget // BATCH, 1),
                "num_generations": 8, "max_completion_length": case.longest, "learning_rate": 5e-3, "tau": case.tau,
                "labels": "scalarised",
            }  # fmt: skip
            on_pairs = "steps" not in known
            if on_pairs:
                said["batch_size"] = BATCH // 2
            unknown = sorted(set(options) - known)
            if unknown:
                raise UserError(f"method {name} has no option {unknown[0]!r}; choose {', '.join(sorted(known))}")
            config = method.Config(**{key: value for key, value in {**said, **options}.items() if key in known})
            problem = Problem(
                reference=case.reference,
                objectives=cast("dict[str, Objective]", dict(case.objectives)),
                preferences=[Weights(case.weights)],
                prompts=[{"id": str(i), "prompt": prompt} for i, prompt in enumerate(case.prompts)],
                comparisons=case.comparisons(case.budget // 2) if on_pairs else (),
            )
            family = method.fit(config, problem, Workspace(case.folder, Ledger()))
            policy = cast(TokenPolicy, family.policy(Weights(case.weights)))
            return policy.components()[0].model

        return train

    return make


def adapter(place: str) -> Trainer:
    """`path/to/file.py:function`, imported; UserError naming what is missing."""
    file, _, name = place.rpartition(":")
    path = Path(file)
    if not file or not name:
        raise UserError(f"{place!r} is no trainer; write trl:NAME, ours:METHOD, rule:NAME or path/to/file.py:function")
    if not path.is_file():
        raise UserError(f"{file} is not a file; check the path before the colon")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # of a file that exists
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise UserError(f"{file} has no function {name!r}; define `def {name}(case): ...`")
    function: Trainer = getattr(module, name)
    return function
