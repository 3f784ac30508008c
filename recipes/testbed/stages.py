"""The testbed's stages: corpus, reference, comparisons, reward models, methods, exact evaluation, closed forms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from align.preferences import Preference, Thresholds, Weights
from align.runs import Metrics, Run, Workspace, stage, write_json
from align.testbed.world import World
from recipes.pipeline.rows import Fit
from recipes.testbed.spellings import respelt, spelt

if TYPE_CHECKING:
    from align.objectives.base import Objective
    from align.policies.base import Policy, TokenPolicy
    from align.testbed.answers import ReferenceTables
    from align.testbed.controls import Controls
    from align.testbed.corpus import WriterConfig
    from align.testbed.exact import TreePolicy
    from align.testbed.optimum import RewardClasses
    from align.testbed.world import Prompt
    from align.training.pretrain import PretrainConfig
    from align.training.reward_model import RewardModelConfig
    from align.training.sft import SFTConfig_

GOLD = ("scores_a", "scores_b")  # columns of the comparisons


@dataclass(frozen=True)
class Corpus:
    """A world as its text alone, which worlds that differ in rewards share; known by the text."""

    world: World

    @property
    def fingerprint(self) -> str:
        return self.world.corpus_key


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The preferences and prompts that a policy is judged at; `away`: those of the shifts (None: all of `weights`).

    home: the held-out prompts in distribution. bits: the seed of the text for bits per byte (None: not measured).
    """

    weights: tuple[Weights, ...]
    home: str = "none"
    shifts: tuple[str, ...] = ()
    away: tuple[Weights, ...] | None = None
    bits: int | None = None


@stage
def pretrain(
    work: Workspace, *, world: Corpus, documents: int, training: PretrainConfig,
    writer: WriterConfig | None = None,
) -> Metrics:  # fmt: skip
    """MLE pretraining on the world's corpus; `writer` replaces its usual one."""
    from align.testbed.corpus import WriterConfig, sample_documents
    from align.testbed.vocabulary import build_tokenizer
    from align.training.pretrain import pretrain as train

    draw = partial(sample_documents, world.world, writer=writer or WriterConfig(), seed=training.seed)
    rows, held_out = draw(count=documents), draw(count=500, held_out=True)
    words = build_tokenizer(world.world.config.spellings)
    return train(training, rows=rows, validation=held_out, out=work.folder, ledger=work.ledger, tokenizer=words)


@stage
def sft(
    work: Workspace, *, world: Corpus, source: Run, documents: int, training: SFTConfig_,
    writer: WriterConfig | None = None,
) -> Metrics:  # fmt: skip
    """SFT on demonstrations of the same writer: the result is the reference, which must read all spellings alike.

    Its generation settings end a response at every token outside the alphabet.
    """
    from transformers import GenerationConfig

    from align.testbed.corpus import WriterConfig, sample_documents
    from align.testbed.vocabulary import PAD_ID, ending_ids
    from align.training.sft import sft as train

    writer = writer or WriterConfig()
    rows = sample_documents(world.world, count=documents, seed=training.seed + 1_000_003, writer=writer)
    metrics = train(training, model=source.path, rows=rows, out=work.folder, ledger=work.ledger)
    ends = list(ending_ids(world.world.config.spellings))
    GenerationConfig(eos_token_id=ends, pad_token_id=PAD_ID).save_pretrained(work.folder / "model")
    return metrics


@stage
def comparisons(work: Workspace, *, world: World, reference: Run, count: int, seed: int) -> Metrics:
    """Pairs of reference samples on the fine-tuning prompts, with gold scores and the annotator's draws."""
    from align.models import load_model, load_tokenizer
    from align.testbed.gold import draw_comparisons

    path = f"{reference.path}/model"
    rows = draw_comparisons(
        world, load_model(path), load_tokenizer(path), world.train_prompts, count=count, seed=seed, ledger=work.ledger
    )
    (work.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"rows": len(rows)}


def read_rows(run: Run) -> list[dict[str, object]]:
    """The rows of `comparisons`."""
    with open(run.path / "rows.jsonl", encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


@stage(name="gradient cosines")
def gradient_cosines(
    work: Workspace, *, world: World, reference: Run, pairs: Run, seed: int, samples: int = 16, count: int = 1024
) -> Metrics:
    """How the gold objectives' gradients lie at the reference: on its own samples, and on the first comparisons."""
    from align.engines.gradient_conflict import Settings, gradient_conflict
    from align.engines.problem import Problem
    from align.testbed.gold import gold_objectives

    problem = Problem[Preference](
        reference=f"{reference.path}/model", objectives=gold_objectives(world), preferences=(),
        comparisons=read_rows(pairs)[:count], prompts=prompt_rows(world.train_prompts),
    )  # fmt: skip
    settings = Settings(
        samples=samples, max_completion_length=world.config.max_tokens + 1, tau=world.config.tau, batch_size=512,
        seed=seed,
    )  # fmt: skip
    return gradient_conflict(problem, settings, ledger=work.ledger).metrics()


def prompt_rows(prompts: Sequence[Prompt]) -> list[dict[str, str]]:
    """Prompts as the rows that methods take."""
    return [{"id": p.text, "prompt": p.text} for p in prompts]


@stage(name="reward model")
def reward_model(
    work: Workspace, *, world: World, reference: Run, pairs: Run, objective: int, training: RewardModelConfig
) -> Metrics:
    """A Bradley-Terry reward model of one objective on the annotator's labels; a tenth of the rows validates it."""
    from align.testbed.gold import label_comparisons
    from align.training.reward_model import train_reward_model

    name = world.objectives[objective]
    rows = label_comparisons(read_rows(pairs), index=objective, objective=name, tau=world.config.tau)
    cut = len(rows) // 10
    work.ledger.add(scores_read=len(rows))
    return train_reward_model(
        training, model=reference.path, rows=rows[cut:], validation=rows[:cut], out=work.folder, ledger=work.ledger
    )


@stage
def finetune(
    work: Workspace, *, world: World, reference: Run, fit: Fit, pairs: Run | None = None,
    reward_models: Mapping[str, Run] | None = None, specialists: Mapping[str, Run] | None = None,
    facts: Run | None = None,
) -> Metrics:  # fmt: skip
    """One method at some preferences. Learned reward models return to gold units (times tau).

    With `facts` it is asked at thresholds, those of the exact optimum, and beta is divided by the main weight: the
    constrained problem max r_main + ... - (beta / w_main) KL has pi*_w as its solution.
    """
    from align.engines.problem import Problem
    from align.objectives import learned_reward
    from align.testbed.gold import gold_objectives
    from recipes.pipeline.fitting import fitted

    learned: dict[str, Objective] = {
        name: learned_reward(run.path, name=name, scale=world.config.tau, batch_size=512)
        for name, run in (reward_models or {}).items()
    }
    rows = read_rows(pairs) if pairs is not None else None
    if learned and rows is not None:  # who learns from reward models never sees a gold score
        rows = [{k: v for k, v in row.items() if k not in GOLD} for row in rows]
    first, *others = fit.spellings or (0,)
    prompts = spelt(world, first) + [p for s in others for p in spelt(world, s, covers=fit.covers)]
    if rows is not None and fit.spellings:
        rows = respelt(rows, spellings=fit.spellings, prompts=prompts)
    asked: list[Preference] = list(fit.preferences)
    if facts is not None:
        asked = [asked_at(w, facts=facts) for w in fit.preferences]
        divided = world.config.beta / max(fit.preferences[0].values)
        fit = replace(fit, settings={**fit.settings, "beta": divided})
    problem = Problem(
        reference=f"{reference.path}/model", objectives=learned or gold_objectives(world), preferences=asked,
        comparisons=rows, prompts=prompt_rows(prompts),
    )  # fmt: skip
    return fitted(work, fit, problem, specialists=specialists or {})


@lru_cache(maxsize=2)
def _tables(world: World, path: Path, key: str) -> ReferenceTables:
    from align.models import load_model
    from align.testbed.answers import ReferenceTables
    from align.testbed.exact import ExactModel

    return ReferenceTables(world, ExactModel(load_model(f"{path}/model"), name="reference"))


def reference_tables(world: World, reference: Run) -> ReferenceTables:
    """The reference's leaf tables, kept by a worker for all its evaluations."""
    return _tables(world, reference.path, reference.fingerprint)


def classes_of(tables: ReferenceTables, prompts: Sequence[Prompt]) -> list[RewardClasses]:
    """The reward classes of prompts whose leaf tables are not kept: there are many fine-tuning prompts."""
    from align.testbed.optimum import reward_classes

    return [reward_classes(tables.world, p, tables.reference.leaf_logprobs(tables.world, p)) for p in prompts]


def tree_policy(answer: Policy | TokenPolicy, *, tables: ReferenceTables, weights: Weights, name: str) -> TreePolicy:
    """What the exact evaluation asks of a policy: its next-token rule, or for best-of-n its leaves in closed form."""
    from align.policies.base import TokenPolicy
    from align.testbed.exact import ExactPolicy
    from align.testbed.tabular import HardBestOfN, gold_table

    if isinstance(answer, TokenPolicy):
        return ExactPolicy(answer, name=name)
    return HardBestOfN(tables, partial(gold_table, weights=weights), answer.samples_per_response, name)


def write_cells(
    folder: Path, policy: TreePolicy, *, row: str, tables: ReferenceTables, judged: Judged, more: bool = False
) -> int:
    """Append the policy's cells, or write them over what an interrupted call has left; returns how many there are."""
    from align.testbed.answers import exact_answers
    from align.testbed.transport import Remembered
    from evals.measure.answers import append_answers

    if not more:
        (folder / "cells.jsonl").unlink(missing_ok=True)
    policy = Remembered(policy)
    cells = exact_answers(policy, row=row, weights=judged.weights, shifts=(judged.home,), tables=tables)
    away = judged.weights if judged.away is None else [w for w in judged.weights if w in judged.away]
    if away and judged.shifts:
        cells += exact_answers(policy, row=row, weights=away, shifts=judged.shifts, tables=tables)
    append_answers(folder / "cells.jsonl", cells)
    return len(cells)


def _bits(answer: Policy | TokenPolicy, world: World, seed: int) -> float | None:
    """Bits per byte of the writer's held-out responses given their prompts, both spellings and all prefixes."""
    from align.policies.base import ModelPolicy
    from align.testbed.corpus import sample_documents
    from align.training.bits import completion_bits

    if not isinstance(answer, ModelPolicy):
        return None
    rows = sample_documents(world, count=1000, seed=seed, held_out=True)
    return completion_bits(answer.model, answer.tokenizer, rows).per_byte


@stage
def evaluate(
    work: Workspace, *, world: World, row: str, reference: Run, policy: Run, judged: Judged, facts: Run | None = None
) -> Metrics:
    """Exact cells of one trained policy (or of the reference) and, where asked for, its bits per byte on held-out text.

    `policy` holds a family, asked at the weights that judge it, or at the thresholds of `facts` that stand for them.
    """
    from align.policies.base import ModelPolicy
    from align.policies.load import load_family

    tables = reference_tables(world, reference)
    if policy.path == reference.path:
        answer: Policy = ModelPolicy(f"{reference.path}/model")
        tree: TreePolicy = tables
    else:
        only = judged.weights[0]
        answer = load_family(policy.path).policy(only if facts is None else asked_at(only, facts=facts))
        tree = tree_policy(answer, tables=tables, weights=only, name=row)
    count = write_cells(work.folder, tree, row=row, tables=tables, judged=judged)
    bits = None if judged.bits is None else _bits(answer, world, judged.bits)
    return {"bits_per_byte": bits, "cells": count, "samples_per_response": tree.samples_per_response}


@stage(name="closed form")
def closed_form(
    work: Workspace, *, world: World, row: str, kind: str, reference: Run, judged: Judged, options: Controls
) -> Metrics:
    """Exact cells of a policy given in closed form: the reference, the optimum, its perturbation, or a control."""
    from align.testbed.controls import closed_form_policy

    tables = reference_tables(world, reference)
    everywhere = kind in ("reference", "length_only")  # one policy for all preferences
    groups = [judged.weights] if everywhere else [(w,) for w in judged.weights]
    count = 0
    for number, group in enumerate(groups):
        policy = closed_form_policy(kind, reference=tables, weights=group[0], options=options)
        part = replace(judged, weights=group)
        count += write_cells(work.folder, policy, row=row, tables=tables, judged=part, more=number > 0)
    return {"cells": count, "samples_per_response": policy.samples_per_response}


@stage
def optimum(
    work: Workspace, *, world: World, reference: Run, weights: tuple[Weights, ...], dense: int, temperature: float
) -> Metrics:
    """The exact optimum: dense front, reward classes per prompt, the perturbed optimum's predicted regret, the dial."""
    from align.testbed.controls import optimum_facts

    tables = reference_tables(world, reference)
    facts = optimum_facts(tables, weights=weights, dense=dense, temperature=temperature)
    (work.folder / "optimum.json").write_text(json.dumps(facts), encoding="utf-8")
    return {"prompts": len(world.test_prompts("none"))}


@stage
def facts(
    work: Workspace, *, world: World, reference: Run, weights: tuple[Weights, ...], home: str = "none"
) -> Metrics:
    """Reward classes of the judged prompts (for fronts at a matched KL), and thresholds at which families are asked.

    A threshold is the optimum's mean reward over the fine-tuning prompts (see `finetune`).
    """
    from align.testbed.optimum import optimum as best_of

    tables = reference_tables(world, reference)
    held_out = [tables.classes(prompt) for prompt in world.test_prompts(home)]
    training = classes_of(tables, world.train_prompts)
    thresholds = {}
    for w in weights:
        best, main = best_of(training, w, beta=world.config.beta), max(range(len(w)), key=lambda k: w.values[k])
        slack = world.config.malformed_reward  # an objective of weight 0 is bound by nothing
        thresholds[w.label] = [
            None if k == main else best.values[k] if w.values[k] > 0 else slack for k in range(len(w))
        ]
    classes = [{"rewards": c.rewards_CK.tolist(), "log_mass": c.log_mass_C.tolist()} for c in held_out]
    write_json(work.folder / "facts.json", {"classes": classes, "thresholds": thresholds})
    return {"prompts": len(held_out), "training_prompts": len(training)}


def asked_at(weights: Weights, *, facts: Run) -> Thresholds:
    """The thresholds at which a family is asked for the point that `weights` judge."""
    found = json.loads((facts.path / "facts.json").read_text(encoding="utf-8"))
    return Thresholds(tuple(found["thresholds"][weights.label]))
