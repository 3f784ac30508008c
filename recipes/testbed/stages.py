"""The demo's stages, one function each: corpus, reference, comparisons, reward models, methods, exact evaluation.

Every function takes plain arguments, writes one run directory through `run_stage`, and is safe to call again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from align.data.answers import ExactAnswer
from align.runs import Ledger, Workspace, open_run, run_stage
from align.testbed.world import WorldConfig, load_world
from recipes.pipeline.inputs import section

Settings = Mapping[str, Any]
GOLD = ("scores_a", "scores_b")  # columns of the comparisons


def world_of(world: Mapping[str, Any]) -> Any:
    """The world of a stage's plain arguments."""
    return load_world(WorldConfig(**world))


def pretrain(
    *, out: str, world: Settings, seed: int, documents: int, training: Settings, model: Settings, ciphered: bool = True
) -> None:
    """MLE pretraining on the world's corpus, every spelling, or the plain one alone where `ciphered` is False."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.models import ModelConfig
        from align.testbed.corpus import sample_documents
        from align.testbed.vocabulary import build_tokenizer
        from align.training.pretrain import PretrainConfig
        from align.training.pretrain import pretrain as train

        place = world_of(world)
        rows = sample_documents(place, count=documents, seed=seed, ciphered=ciphered)
        held_out = sample_documents(place, count=500, seed=seed, held_out=True, ciphered=ciphered)
        shape = ModelConfig(**model)
        config = section(PretrainConfig, {**training, "model": shape}, where="demo", name="pretrain", seed=seed)
        words = build_tokenizer(place.config.spellings)
        return train(config, rows=rows, validation=held_out, out=folder, ledger=ledger, tokenizer=words)

    config = {"seed": seed, "documents": documents, "training": training, "model": model} | _one_spelling(ciphered)
    run_stage(out, stage="pretrain", config=config, body=body, inputs={"corpus": world_of(world).corpus_key})


def _one_spelling(ciphered: bool) -> dict[str, Any]:
    """What the configuration says of text in the plain spelling alone; nothing of the usual text in all."""
    return {} if ciphered else {"ciphered": False}


def sft(
    *, out: str, world: Settings, seed: int, source: str, documents: int, training: Settings, ciphered: bool = True
) -> None:
    """SFT on demonstrations in every spelling: the result is the reference, which must read all alike.

    Its generation settings end a response at every token outside the alphabet.
    """

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from transformers import GenerationConfig

        from align.testbed.corpus import sample_documents
        from align.testbed.vocabulary import PAD_ID, ending_ids
        from align.training.sft import SFTConfig_
        from align.training.sft import sft as train

        place = world_of(world)
        rows = sample_documents(place, count=documents, seed=seed + 1_000_003, ciphered=ciphered)
        config = section(SFTConfig_, training, where="demo", name="sft", seed=seed)
        metrics = train(config, model=source, rows=rows, out=folder, ledger=ledger)
        ends = list(ending_ids(place.config.spellings))
        GenerationConfig(eos_token_id=ends, pad_token_id=PAD_ID).save_pretrained(folder / "model")
        return metrics

    inputs = {"model": open_run(source).fingerprint, "corpus": world_of(world).corpus_key}
    config = {"seed": seed, "documents": documents, "training": training} | _one_spelling(ciphered)
    run_stage(out, stage="sft", config=config, body=body, inputs=inputs)


def comparisons(*, out: str, world: Settings, seed: int, reference: str, count: int) -> None:
    """Pairs of reference samples on the fine-tuning prompts, with gold scores and the annotator's draws."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.models import load_model, load_tokenizer
        from align.testbed.gold import draw_comparisons

        place = world_of(world)
        path = f"{reference}/model"
        rows = draw_comparisons(
            place, load_model(path), load_tokenizer(path), place.train_prompts, count=count, seed=seed, ledger=ledger
        )
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return {"rows": len(rows)}

    inputs = {"reference": open_run(reference).fingerprint, "world": world_of(world).hash}
    run_stage(out, stage="comparisons", config={"seed": seed, "count": count}, body=body, inputs=inputs)


def gradient_cosines(
    *, out: str, world: Settings, seed: int, reference: str, pairs: str, samples: int = 16, count: int = 1024
) -> None:
    """How the gold objectives' gradients lie at the reference: on its own samples, and on the first comparisons."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.engines.gradient_conflict import gradient_conflict
        from align.testbed.gold import gold_objectives

        place = world_of(world)
        found = gradient_conflict(
            f"{reference}/model",
            objectives=gold_objectives(place),
            prompts=[{"id": p.text, "prompt": p.text} for p in place.train_prompts],
            comparisons=_rows(pairs)[:count],
            samples=samples,
            max_completion_length=place.config.max_tokens + 1,
            tau=place.config.tau,
            batch_size=512,
            seed=seed,
            ledger=ledger,
        )
        return found.metrics()

    inputs = {"reference": open_run(reference).fingerprint, "pairs": open_run(pairs).fingerprint}
    inputs |= {"world": world_of(world).hash}
    config = {"seed": seed, "samples": samples, "count": count}
    run_stage(out, stage="gradient cosines", config=config, body=body, inputs=inputs)


def _rows(folder: str) -> list[dict[str, Any]]:
    with open(Path(folder) / "rows.jsonl", encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def reward_model(
    *, out: str, world: Settings, seed: int, reference: str, pairs: str, objective: int, training: Settings
) -> None:
    """A Bradley-Terry reward model of one objective on the annotator's labels.

    A tenth of the rows is for validation.
    """

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.testbed.gold import label_comparisons
        from align.training.reward_model import RewardModelConfig, train_reward_model

        place = world_of(world)
        name = place.objectives[objective]
        rows = label_comparisons(_rows(pairs), index=objective, objective=name, tau=place.config.tau)
        cut = len(rows) // 10
        config = section(RewardModelConfig, training, where="demo", name="reward_model", seed=seed)
        ledger.add(scores_read=len(rows))
        return train_reward_model(
            config, model=reference, rows=rows[cut:], validation=rows[:cut], out=folder, ledger=ledger
        )

    inputs = {"reference": open_run(reference).fingerprint, "pairs": open_run(pairs).fingerprint}
    config = {"seed": seed, "objective": objective, "training": training}
    run_stage(out, stage="reward model", config=config, body=body, inputs=inputs)


def finetune(
    *,
    out: str,
    world: Settings,
    method: str,
    settings: Settings,
    reference: str,
    pairs: str,
    preferences: Sequence[str],
    reward_models: Sequence[str] = (),
    specialists: Sequence[str] = (),
    cover_cipher: bool = False,
) -> None:
    """One method at the preferences of these labels. Learned reward models return to gold units (times tau).

    `cover_cipher` adds the fine-tuning prompts in the second spelling: then it is no shift any more.
    """

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.engines.problem import Problem
        from align.methods import METHODS
        from align.objectives import RewardModelObjective
        from align.preferences import parse_preference
        from align.testbed.gold import gold_objectives
        from recipes.pipeline.specialists import with_specialists

        place = world_of(world)
        objectives: dict[str, Any] = dict(gold_objectives(place))
        if reward_models:
            objectives = {
                name: RewardModelObjective(path, name=name, scale=place.config.tau, batch_size=512)
                for name, path in zip(place.objectives, reward_models, strict=True)
            }
        extra = {"specialists": tuple(_policy_dirs(specialists))} if specialists else {}
        asked = [parse_preference(label) for label in preferences]
        prompts = place.train_prompts + (place.train_prompts_in_cipher if cover_cipher else [])
        problem = Problem(
            reference=f"{reference}/model",
            objectives=objectives,
            preferences=asked,
            # Who learns from reward models never sees a gold score.
            comparisons=[{k: v for k, v in row.items() if not (reward_models and k in GOLD)} for row in _rows(pairs)],
            prompts=[{"id": p.text, "prompt": p.text} for p in prompts],
        )
        training, run = METHODS[method].Config(**settings, **extra), Workspace(folder, ledger)
        family = METHODS[method].fit(training, with_specialists(training, problem, run), run)
        for preference in asked:
            family.policy(preference)  # a soup is merged here, not at its first evaluation
        family.save(folder)
        return {"optimises": {label: family.optimises[label] for label in preferences}}

    inputs = {"reference": open_run(reference).fingerprint, "pairs": open_run(pairs).fingerprint}
    # Known by their place relative to this one, so that a moved run directory stays finished.
    inputs |= {os.path.relpath(p, out): open_run(p).fingerprint for p in (*reward_models, *specialists)}
    inputs |= {"world": world_of(world).hash}
    config = {"method": method, "settings": settings, "preferences": list(preferences)}
    config |= {"cover_cipher": True} if cover_cipher else {}
    run_stage(out, stage=f"finetune {method}", config=config, body=body, inputs=inputs)


def _policy_dirs(runs: Sequence[str]) -> list[str]:
    from align.policies.load import load_family

    return [next(iter(load_family(run).points.values())) for run in runs]


@lru_cache(maxsize=2)
def reference_tables(world: WorldConfig, reference: str, key: str) -> Any:
    """The reference's leaf tables, kept by a worker for all its evaluations; `key` is the reference's fingerprint."""
    from align.models import load_model
    from align.testbed.answers import ReferenceTables
    from align.testbed.exact import ExactModel

    return ReferenceTables(load_world(world), ExactModel(load_model(f"{reference}/model"), name="reference"))


def classes_once(tables: Any, prompt: Any) -> Any:
    """The reward classes of a prompt, its leaf table forgotten: there are many fine-tuning prompts."""
    from align.testbed.optimum import reward_classes

    return reward_classes(tables.world, prompt, tables.reference.leaf_logprobs(tables.world, prompt))


def tree_policy(answer: Any, *, tables: Any, weights: Any, name: str) -> Any:
    """What the exact evaluation asks of a policy: its next-token rule, or for best-of-n its leaf law in closed form."""
    from functools import partial

    from align.testbed.exact import ExactPolicy
    from align.testbed.tabular import HardBestOfN, gold_table

    if hasattr(answer, "components"):
        return ExactPolicy(answer, name=name)
    return HardBestOfN(tables, partial(gold_table, weights=weights), answer.samples_per_response, name)


def _bits(model: Any, tokenizer: Any, world: Any, seed: int) -> float:
    """Bits per byte of the writer's held-out responses given their prompts, both spellings and all prefixes."""
    from align.testbed.corpus import sample_documents
    from align.training.bits import completion_bits

    rows = sample_documents(world, count=1000, seed=seed, held_out=True)
    return completion_bits(model, tokenizer, rows).per_byte


def _fresh(path: Path, answers: Sequence[ExactAnswer]) -> None:
    """Write all answers again: an interrupted call may have left some of them there."""
    from evals.measure.answers import append_answers

    path.unlink(missing_ok=True)
    append_answers(path, answers)


def evaluate(
    *, out: str, world: Settings, seed: int, row: str, reference: str, policy: str, weights: Sequence[Sequence[float]],
    shifts: Sequence[str] = (), shift_weights: Sequence[Sequence[float]] = (), ask: str | None = None,
    bits: bool = True,
) -> None:  # fmt: skip
    """Exact cells of one trained policy (or of the reference) and, with `bits`, its bits per byte on held-out text.

    `policy` is a run that holds a family, asked by the label `ask`, or by the weights that judge it. `shifts` are
    evaluated at those of `weights` that are among `shift_weights`.
    """

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.policies.base import ModelPolicy
        from align.policies.load import load_family
        from align.preferences import Weights, parse_preference
        from align.testbed.answers import exact_answers

        place = world_of(world)
        tables = reference_tables(place.config, reference, open_run(reference).fingerprint)
        asked = [Weights(tuple(w)) for w in weights]
        if policy == reference:
            answer, tree = ModelPolicy(f"{reference}/model"), tables
        else:
            answer = load_family(policy).policy(parse_preference(ask or asked[0].label))
            tree = tree_policy(answer, tables=tables, weights=asked[0], name=row)
        cells = exact_answers(tree, row=row, weights=asked, shifts=("none",), tables=tables)
        away = [w for w in asked if list(w.values) in [list(s) for s in shift_weights]]
        if away:
            cells += exact_answers(tree, row=row, weights=away, shifts=shifts, tables=tables)
        _fresh(folder / "cells.jsonl", cells)
        found = _bits(answer.model, answer.tokenizer, place, seed) if bits else None
        return {"bits_per_byte": found, "cells": len(cells), "samples_per_response": tree.samples_per_response}

    inputs = {"reference": open_run(reference).fingerprint, "policy": open_run(policy).fingerprint}
    inputs |= {"world": world_of(world).hash}
    config = {"row": row, "weights": weights, "shifts": shifts, "shift_weights": shift_weights, "seed": seed}
    config |= {"ask": ask, "bits": bits}
    run_stage(out, stage="evaluate", config=config, body=body, inputs=inputs)


def closed_form(
    *, out: str, world: Settings, row: str, kind: str, reference: str, weights: Sequence[Sequence[float]],
    options: Settings,
) -> None:  # fmt: skip
    """Exact cells of a policy given in closed form: the optimum, its perturbation, or a control."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.preferences import Weights
        from align.testbed.answers import exact_answers
        from recipes.testbed.controls import closed_form_policy

        place = world_of(world)
        tables = reference_tables(place.config, reference, open_run(reference).fingerprint)
        cells: list[ExactAnswer] = []
        for w in weights:
            preference = Weights(tuple(w))
            policy = closed_form_policy(kind, reference=tables, weights=preference, options=options)
            cells += exact_answers(policy, row=row, weights=[preference], shifts=("none",), tables=tables)
        _fresh(folder / "cells.jsonl", cells)
        return {"samples_per_response": policy.samples_per_response}

    inputs = {"reference": open_run(reference).fingerprint, "world": world_of(world).hash}
    config = {"row": row, "kind": kind, "weights": weights, "options": options}
    run_stage(out, stage="closed form", config=config, body=body, inputs=inputs)


def optimum(
    *, out: str, world: Settings, reference: str, weights: Sequence[Sequence[float]], dense: int, temperature: float
) -> None:
    """The exact optimum: dense front, reward classes per prompt, the perturbed optimum's predicted regret, the dial."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from recipes.testbed.controls import optimum_facts

        place = world_of(world)
        tables = reference_tables(place.config, reference, open_run(reference).fingerprint)
        facts = optimum_facts(tables, weights=weights, dense=dense, temperature=temperature)
        (folder / "optimum.json").write_text(json.dumps(facts), encoding="utf-8")
        return {"points": len(facts["front"])}

    inputs = {"reference": open_run(reference).fingerprint, "world": world_of(world).hash}
    config = {"weights": weights, "dense": dense, "temperature": temperature}
    run_stage(out, stage="optimum", config=config, body=body, inputs=inputs)
