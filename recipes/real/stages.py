"""The hh recipe's stages, one function each: rows, tokenizer, 5-gram, pretraining, SFT, reward models, pairs, methods.

Every function takes plain arguments, writes one run directory through `run_stage`, and is safe to call again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.runs import Ledger, open_run, run_stage
from recipes.pipeline.inputs import content_key
from recipes.real import data as hh_data

Settings = Mapping[str, Any]


def prepare(*, out: str, data: str, data_key: str, names: Sequence[str], seed: int, rows: Settings) -> None:
    """Comparisons and text -> train.jsonl, judge.jsonl, test.jsonl, text.jsonl, validation.jsonl."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.data import CleanConfig, split_by_prompt

        pairs, drops = hh_data.load_pairs(
            data, names=names, limit=rows["limit"], cleaning=CleanConfig(**rows["cleaning"])
        )
        parts = split_by_prompt(pairs, fractions=rows["parts"], seed=seed)
        texts, text_drops = hh_data.load_texts(
            data, files=rows["text"], piece=rows["piece"], limit=rows["limit"], cleaning=CleanConfig()
        )
        held_out = rows["validation"]
        prose = split_by_prompt(texts, fractions={"text": 1 - held_out, "validation": held_out}, seed=seed, key="text")
        benign = [pair for pair in parts["test"] if pair["objective"] == names[0]]  # what its bits are measured on
        written = {
            **{part: hh_data.capped(parts[part], names=names, each=None) for part in hh_data.PARTS},
            "text": [*prose["text"], *hh_data.dialogues(parts["train"])],
            "validation": [*prose["validation"], *hh_data.dialogues(benign)][: rows["validation_texts"]],
        }
        for name, content in written.items():
            hh_data.write_rows(folder / f"{name}.jsonl", content)
        return {"rows": {n: len(c) for n, c in written.items()}, "dropped": {**drops, "text": text_drops}}

    config = {"names": list(names), "seed": seed, "rows": rows}
    run_stage(out, stage="hh rows", config=config, body=body, inputs={"data": data_key})


def _texts(data: str, part: str) -> list[str]:
    return [row["text"] for row in hh_data.read_rows(Path(data) / f"{part}.jsonl")]


def tokenizer(*, out: str, data: str, vocab_size: int) -> None:
    """A byte-level BPE tokenizer of the pretraining text."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.data import train_tokenizer

        return {
            "vocabulary": len(train_tokenizer(_texts(data, "text"), vocab_size=vocab_size, out=folder / "tokenizer"))
        }

    inputs = {"data": open_run(data).fingerprint}
    run_stage(out, stage="tokenizer", config={"vocab_size": vocab_size}, body=body, inputs=inputs)


def _vocabulary(run: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(f"{run}/tokenizer")


def ngram(*, out: str, data: str, tokenizer: str, order: int) -> None:
    """Back-off n-grams on the pretraining tokens, scored on the same validation text as the model."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from evals.baselines.ngram import SMOOTHING, ngram_bits_per_byte

        vocabulary = _vocabulary(tokenizer)
        texts, held_out = _texts(data, "text"), _texts(data, "validation")
        scores = {s: ngram_bits_per_byte(texts, held_out, vocabulary, order=order, smoothing=s) for s in SMOOTHING}
        ledger.add(tokens=sum(score.train_tokens for score in scores.values()))
        return {smoothing: dataclasses.asdict(score) for smoothing, score in scores.items()}

    inputs = {"data": open_run(data).fingerprint, "tokenizer": open_run(tokenizer).fingerprint}
    run_stage(out, stage="ngram", config={"order": order}, body=body, inputs=inputs)


def pretrain(*, out: str, data: str, tokenizer: str, seed: int, model: Settings, training: Settings) -> None:
    """MLE pretraining from scratch; an interrupted call resumes from its last checkpoint."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.models import ModelConfig
        from align.training.pretrain import PretrainConfig
        from align.training.pretrain import pretrain as train

        config = PretrainConfig(model=ModelConfig(**model), seed=seed, **training)
        rows, held_out = (hh_data.read_rows(Path(data) / f"{part}.jsonl") for part in ("text", "validation"))
        vocabulary = _vocabulary(tokenizer)
        return train(config, rows=rows, validation=held_out, tokenizer=vocabulary, out=folder, ledger=ledger)

    inputs = {"data": open_run(data).fingerprint, "tokenizer": open_run(tokenizer).fingerprint}
    config = {"seed": seed, "model": model, "training": training}
    run_stage(out, stage="pretrain", config=config, body=body, inputs=inputs)


def sft(
    *, out: str, data: str, base: str, names: Sequence[str], seed: int, demonstrations: int, training: Settings
) -> None:
    """SFT on the preferred replies of the training part, objectives in equal numbers: the reference policy."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.training.sft import SFTConfig_
        from align.training.sft import sft as train

        pairs = hh_data.capped(hh_data.read_rows(Path(data) / "train.jsonl"), names=names, each=demonstrations)
        held_out = hh_data.demonstrations_of(hh_data.read_rows(Path(data) / "test.jsonl")[:200])
        rows = hh_data.demonstrations_of(pairs)
        config = SFTConfig_(seed=seed, **training)
        return train(config, model=base, rows=rows, validation=held_out, out=folder, ledger=ledger)

    inputs = {"data": open_run(data).fingerprint, "base": content_key(base)}
    config = {"seed": seed, "demonstrations": demonstrations, "training": training}
    run_stage(out, stage="sft", config=config, body=body, inputs=inputs)


def reward_model(
    *, out: str, data: str, base: str, part: str, objective: str, seed: int, pairs: int | None, training: Settings
) -> None:
    """A Bradley-Terry reward model of one objective on one part of the comparisons; a tenth is for validation."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.data import split_by_prompt
        from align.training.reward_model import RewardModelConfig, train_reward_model

        found = [row for row in hh_data.read_rows(Path(data) / f"{part}.jsonl") if row["objective"] == objective]
        rows = split_by_prompt(found[:pairs], fractions={"train": 0.9, "validation": 0.1}, seed=seed + 1)
        config = RewardModelConfig(seed=seed, **training)
        ledger.add(scores_read=len(rows["train"]))
        return train_reward_model(
            config, model=base, rows=rows["train"], validation=rows["validation"] or None, out=folder, ledger=ledger
        )

    inputs = {"data": open_run(data).fingerprint, "base": content_key(base)}
    config = {"seed": seed, "part": part, "objective": objective, "pairs": pairs, "training": training}
    run_stage(out, stage="reward model", config=config, body=body, inputs=inputs)


def pairs(
    *, out: str, data: str, reference: str, reward_models: Mapping[str, str], prompts: int, max_new_tokens: int,
    batch_size: int, seed: int,
) -> None:  # fmt: skip
    """Two samples of the reference per training prompt, scored by the reward models in z units of all these samples."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.objectives import RewardModelObjective, ZScore, save_normalizer
        from align.policies.base import ModelPolicy

        found = hh_data.unique_prompts(hh_data.read_rows(Path(data) / "train.jsonl"))[:prompts]
        texts, policy = [row["prompt"] for row in found], ModelPolicy(reference)
        options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
        first, second = (policy.generate(texts, seed=seed + side, **options) for side in (0, 1))
        ledger.add(samples_drawn=2 * len(texts), scores_read=2 * len(texts) * len(reward_models))
        columns = []
        for name, path in reward_models.items():
            scores = RewardModelObjective(path, name=name)(texts + texts, first + second)
            normalizer = ZScore.fit(scores)
            save_normalizer(normalizer, folder / f"normalizer-{name}.json")
            columns.append(normalizer(scores))
        rows = []
        for i, row in enumerate(found):
            a, b = [c[i] for c in columns], [c[len(found) + i] for c in columns]
            if first[i].strip() != second[i].strip():
                rows.append({**row, "a": first[i], "b": second[i], "scores_a": a, "scores_b": b})
        hh_data.write_rows(folder / "rows.jsonl", rows)
        return {"rows": len(rows), "same completion twice": len(found) - len(rows)}

    inputs = {"data": open_run(data).fingerprint, "reference": content_key(reference)}
    inputs |= {f"reward model {name}": content_key(path) for name, path in reward_models.items()}
    config = {"prompts": prompts, "max_new_tokens": max_new_tokens, "batch_size": batch_size, "seed": seed}
    run_stage(out, stage="pairs", config=config, body=body, inputs=inputs)


class Scored:
    """A reward model in the z units of a pairs run, which looks up the scores that the run holds already."""

    def __init__(self, pairs: str, *, rows: Sequence[Mapping[str, Any]], index: int, name: str, model: str) -> None:
        from align.objectives import RewardModelObjective, load_normalizer

        self.__name__ = name
        self.model = RewardModelObjective(model, name=name)
        self.normalizer = load_normalizer(Path(pairs) / f"normalizer-{name}.json")
        sides = (("a", "scores_a"), ("b", "scores_b"))
        self.known = {(r["prompt"], r[text]): r[scores][index] for r in rows for text, scores in sides}

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        asked = list(zip(prompts, completions, strict=True))
        new = list(dict.fromkeys(pair for pair in asked if pair not in self.known))
        if new:
            scores = self.normalizer(self.model([p for p, _ in new], [c for _, c in new]))
            fresh = dict(zip(new, scores, strict=True))
        return [self.known[pair] if pair in self.known else fresh[pair] for pair in asked]


def objectives_of(pairs: str, *, reward_models: Mapping[str, str]) -> dict[str, Scored]:
    """What the methods are trained on, by name: the reward models in the units of the pairs run."""
    rows = hh_data.read_rows(Path(pairs) / "rows.jsonl")
    return {
        name: Scored(pairs, rows=rows, index=k, name=name, model=path)
        for k, (name, path) in enumerate(reward_models.items())
    }


def finetune(
    *, out: str, method: str, settings: Settings, preferences: Sequence[str], reference: str, pairs: str,
    reward_models: Mapping[str, str], specialists: Sequence[str] = (),
) -> None:  # fmt: skip
    """A row at the preferences of these labels: one training run. `specialists` are the runs that a row is made of."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.engines.problem import Problem
        from align.methods import METHODS
        from align.policies.load import load_family
        from align.preferences import parse_preference
        from align.runs import Workspace, model_dir
        from recipes.pipeline.specialists import with_specialists

        options = dict(settings)
        if specialists:
            options["specialists"] = tuple(next(iter(load_family(run).points.values())) for run in specialists)
        rows = hh_data.read_rows(Path(pairs) / "rows.jsonl")
        asked = [parse_preference(label) for label in preferences]
        problem = Problem(
            reference=model_dir(reference),
            objectives=objectives_of(pairs, reward_models=reward_models),
            preferences=asked,
            comparisons=rows,
            prompts=[{"id": row["id"], "prompt": row["prompt"]} for row in rows],
        )
        training, run = METHODS[method].Config(**options), Workspace(folder, ledger)
        family = METHODS[method].fit(training, with_specialists(training, problem, run), run)
        for preference in asked:
            family.policy(preference)  # a soup is merged here, not at its first evaluation
        family.save(folder)
        return {"optimises": {label: family.optimises[label] for label in preferences}}

    inputs = {"reference": content_key(reference), "pairs": open_run(pairs).fingerprint}
    inputs |= {f"reward model {name}": content_key(path) for name, path in reward_models.items()}
    inputs |= {path: open_run(path).fingerprint for path in specialists}
    config = {"method": method, "settings": settings, "preferences": list(preferences)}
    run_stage(out, stage=f"finetune {method}", config=config, body=body, inputs=inputs)
