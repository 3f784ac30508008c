"""The stages of real preference data: rows, tokenizer, 5-gram, pretraining, SFT, reward models, pairs, methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from align.data import CleanConfig
from align.data import real as source
from align.runs import Metrics, Run, Workspace, fingerprint, is_gguf, model_dir, stage
from recipes.pipeline.inputs import content_key
from recipes.pipeline.rows import Fit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.training.pretrain import PretrainConfig
    from align.training.reward_model import RewardModelConfig
    from align.training.sft import SFTConfig_


@dataclass(frozen=True)
class Data:
    """What `--data` names, known by the bytes of the files that are read: comparisons, text, replies to imitate."""

    path: str
    files: tuple[str, ...]
    names: tuple[str, ...]
    demonstrations: tuple[str, ...] = ()  # a file for each of `names`

    @property
    def fingerprint(self) -> str:
        read = [*source.comparison_sources(self.path, names=self.names).values()]
        read += source.text_sources(self.path, files=self.files)
        read += [f"{self.path}/{name}" for name in self.demonstrations]
        return fingerprint({"files": [content_key(one) for one in read], "names": self.names})


@dataclass(frozen=True)
class Given:
    """A model that the user gives: a folder, known by its bytes, or a hub id."""

    path: str

    @property
    def fingerprint(self) -> str:
        return content_key(self.path)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """`limit` rows per source; `text` files relative to --data, cut into pieces of `piece` characters.

    `demonstrations`: objective -> a file there with replies to imitate, of which comparisons are made.
    """

    limit: int | None
    text: tuple[str, ...]
    piece: int
    validation: float
    validation_texts: int
    parts: dict[str, float]
    cleaning: CleanConfig = field(default_factory=CleanConfig)
    demonstrations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Reference samples: two for each of `prompts` training prompts.

    `demonstrations`: so many are compared with other replies for the reward models, as many for judges and for pairs.
    """

    prompts: int
    max_new_tokens: int
    batch_size: int
    demonstrations: int = 0


@stage(name="hh rows")
def prepare(work: Workspace, *, data: Data, seed: int, rows: Texts) -> Metrics:
    """Comparisons and text -> train.jsonl, judge.jsonl, test.jsonl, text.jsonl, validation.jsonl."""
    from align.data import split_by_prompt

    names, cleaning = data.names, rows.cleaning
    pairs, drops = source.load_pairs(data.path, names=names, limit=rows.limit, cleaning=cleaning)
    parts = split_by_prompt(pairs, fractions=rows.parts, seed=seed)
    texts, text_drops = source.load_texts(
        data.path, files=data.files, piece=rows.piece, limit=rows.limit, cleaning=CleanConfig()
    )
    held_out = rows.validation
    prose = split_by_prompt(texts, fractions={"text": 1 - held_out, "validation": held_out}, seed=seed, key="text")
    benign = [pair for pair in parts["test"] if pair["objective"] == names[0]]  # what its bits are measured on
    written = {
        **{part: source.capped(parts[part], names=names, each=None) for part in source.PARTS},
        "text": [*prose["text"], *source.dialogues(parts["train"])],
        "validation": [*prose["validation"], *source.dialogues(benign)][: rows.validation_texts],
    }
    for name, content in written.items():
        source.write_rows(work.folder / f"{name}.jsonl", content)
    counts, dropped = {part: len(content) for part, content in written.items()}, {**drops, "text": text_drops}
    if data.demonstrations:
        shown, dropped["demonstrations"] = source.load_demonstrations(
            data.path, files=rows.demonstrations, limit=rows.limit, max_characters=cleaning.max_characters
        )
        source.write_rows(work.folder / "demonstrations.jsonl", shown)
        counts["demonstrations"] = len(shown)
    return {"names": list(names), "rows": counts, "dropped": dropped}


@stage
def given(work: Workspace, *, model: Given) -> Metrics:
    """The model that everything starts from where it is not pretrained here; a .gguf file is unpacked into the run."""
    from align.models import gguf_to_folder

    if is_gguf(model.path):
        gguf_to_folder(model.path, work.folder / "model")
    return {"model": model_dir(model.path)}


def checkpoint(run: Run) -> str:
    """The model directory, or hub id, of a run that trained a model or stands for a given one."""
    unpacked = (run.path / "model").is_dir()
    return str(run.metrics["model"]) if run.stage == "given" and not unpacked else model_dir(run.path)


def part_of(data: Run, part: str) -> source.Rows:
    """One part of the rows: train, judge, test, text or validation."""
    return source.read_rows(data.path / f"{part}.jsonl")


@stage
def tokenizer(work: Workspace, *, data: Run, vocab_size: int) -> Metrics:
    """A byte-level BPE tokenizer of the pretraining text."""
    from align.data import train_tokenizer

    texts = [row["text"] for row in part_of(data, "text")]
    return {"vocabulary": len(train_tokenizer(texts, vocab_size=vocab_size, out=work.folder / "tokenizer"))}


def _vocabulary(run: Run) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(f"{run.path}/tokenizer")


@stage
def ngram(work: Workspace, *, data: Run, tokenizer: Run, order: int) -> Metrics:
    """Back-off n-grams on the pretraining tokens, scored on the same validation text as the model."""
    from evals.baselines.ngram import SMOOTHING, ngram_bits_per_byte

    vocabulary = _vocabulary(tokenizer)
    texts, held_out = ([row["text"] for row in part_of(data, part)] for part in ("text", "validation"))
    scores = {s: ngram_bits_per_byte(texts, held_out, vocabulary, order=order, smoothing=s) for s in SMOOTHING}
    work.ledger.add(tokens=sum(score.train_tokens for score in scores.values()))
    return {smoothing: dataclasses.asdict(score) for smoothing, score in scores.items()}


@stage
def pretrain(work: Workspace, *, data: Run, tokenizer: Run, training: PretrainConfig) -> Metrics:
    """MLE pretraining from scratch; an interrupted call resumes from its last checkpoint."""
    from align.training.pretrain import pretrain as train

    rows, held_out = (part_of(data, part) for part in ("text", "validation"))
    vocabulary = _vocabulary(tokenizer)
    return train(training, rows=rows, validation=held_out, tokenizer=vocabulary, out=work.folder, ledger=work.ledger)


@stage
def sft(
    work: Workspace, *, data: Run, base: Run, names: tuple[str, ...], demonstrations: int, training: SFTConfig_
) -> Metrics:
    """SFT on the preferred replies of the training part, objectives in equal numbers: the reference policy."""
    from align.training.sft import sft as train

    rows = source.demonstrations_of(source.capped(part_of(data, "train"), names=names, each=demonstrations))
    held_out = source.demonstrations_of(part_of(data, "test")[:200])
    return train(training, model=checkpoint(base), rows=rows, validation=held_out, out=work.folder, ledger=work.ledger)


@stage
def contrasts(work: Workspace, *, data: Run, reference: Run, drawn: Pairs, seed: int) -> Metrics:
    """Comparisons of demonstrations -> train.jsonl, judge.jsonl, pairs.jsonl.

    A reply against the reference's own, up to its last full sentence, or, every second round, against the reply that
    demonstrates the next objective.
    """
    from align.policies.base import ModelPolicy

    rows, count = part_of(data, "demonstrations")[: 3 * drawn.demonstrations], len(data.metrics["names"])
    asked = [row for i, row in enumerate(rows) if i // count % 2 == 0]
    replies = ModelPolicy(checkpoint(reference)).draw(
        [row["prompt"] for row in asked], max_new_tokens=drawn.max_new_tokens, seed=seed, batch_size=drawn.batch_size
    )
    work.ledger.add(samples_drawn=len(asked))
    own = {row["id"]: source.full_sentences(reply.text) for row, reply in zip(asked, replies, strict=True)}
    block, counts = 2 * count, {}
    for k, part in enumerate(("train", "judge", "pairs")):
        mine = [row for i, row in enumerate(rows) if i // block % 3 == k]
        made = source.contrasts_of(mine, own=own)
        counts[part] = len(made)
        source.write_rows(work.folder / f"{part}.jsonl", made)
    return counts


@stage(name="reward model")
def reward_model(
    work: Workspace, *, data: Run, base: Run, part: str, objective: str, pairs: int | None, training: RewardModelConfig,
    contrasts: Run | None = None,
) -> Metrics:  # fmt: skip
    """A Bradley-Terry reward model of one objective on one part of the comparisons; a tenth is for validation.

    `pairs` is how many there are at most, beside those made of demonstrations.
    """
    from align.data import split_by_prompt
    from align.training.reward_model import train_reward_model

    found = [row for row in part_of(data, part) if row["objective"] == objective]
    shown = [] if contrasts is None else part_of(contrasts, part)
    found = [*found[:pairs], *(row for row in shown if row["objective"] == objective)]
    rows = split_by_prompt(found, fractions={"train": 0.9, "validation": 0.1}, seed=training.seed + 1)
    work.ledger.add(scores_read=len(rows["train"]))
    return train_reward_model(
        training, model=checkpoint(base), rows=rows["train"], validation=rows["validation"] or None, out=work.folder,
        ledger=work.ledger,
    )  # fmt: skip


@stage
def pairs(
    work: Workspace, *, data: Run, reference: Run, reward_models: Mapping[str, Run], drawn: Pairs, seed: int,
    contrasts: Run | None = None,
) -> Metrics:  # fmt: skip
    """Two samples of the reference per training prompt, and comparisons of demonstrations, scored by the reward models
    in z units of all these replies. Samples keep their ids: one that was cut is scored and trained without an end.
    """
    from align.models.sampling import Drawn, told
    from align.objectives import RewardModelObjective, ZScore, save_normalizer
    from align.policies.base import ModelPolicy

    asked = source.unique_prompts(part_of(data, "train"))[: drawn.prompts]
    shown = [] if contrasts is None else part_of(contrasts, "pairs")
    policy, found = ModelPolicy(checkpoint(reference)), [*asked, *shown]
    texts, prompts = [row["prompt"] for row in found], [row["prompt"] for row in asked]
    options = {"max_new_tokens": drawn.max_new_tokens, "batch_size": drawn.batch_size}
    replies: list[Drawn] = []
    for seed_of_side, side in ((seed, "chosen"), (seed + 1, "rejected")):
        replies += policy.draw(prompts, seed=seed_of_side, **options)
        replies += [Drawn((), True, row[side]) for row in shown]
    ids = [list(reply.ids) for reply in replies]
    work.ledger.add(samples_drawn=2 * len(asked), scores_read=len(replies) * len(reward_models))
    columns, names = [], data.metrics["names"]  # whose order is in the data's key, where a mapping's is in none
    for name in names:
        objective = RewardModelObjective(reward_models[name].path, name=name)
        scores = objective(texts + texts, [reply.text for reply in replies], **told(replies))
        normalizer = ZScore.fit(scores)
        save_normalizer(normalizer, work.folder / f"normalizer-{name}.json")
        columns.append(normalizer(scores))
    rows = []
    for i, row in enumerate(found):
        j = len(found) + i
        a, b = replies[i].text, replies[j].text
        if a.strip() != b.strip():
            kept = {"id": row["id"], "prompt": row["prompt"], "a": a, "b": b}
            kept |= {"a_ids": ids[i] or None, "b_ids": ids[j] or None}
            rows.append({**kept, "scores_a": [c[i] for c in columns], "scores_b": [c[j] for c in columns]})
    source.write_rows(work.folder / "rows.jsonl", rows)
    cut = sum(not reply.ended for reply in replies)
    return {"names": names, "rows": len(rows), "same completion twice": len(found) - len(rows), "cut samples": cut}


class Scored:
    """A reward model in the z units of a pairs run, which looks up the scores that the run holds already.

    A reply is known by its text and the ids that were drawn: the same text cut and finished are two replies.
    """

    def __init__(self, pairs: Run, *, rows: source.Rows, index: int, name: str, model: Run) -> None:
        from align.objectives import RewardModelObjective, load_normalizer

        self.__name__ = name
        self.model = RewardModelObjective(model.path, name=name)
        self.normalizer = load_normalizer(pairs.path / f"normalizer-{name}.json")
        self.known = {
            (row["prompt"], row[side], tuple(row.get(f"{side}_ids") or ())): row[f"scores_{side}"][index]
            for row in rows
            for side in ("a", "b")
        }

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], *,
        completion_ids: Sequence[Sequence[int]] | None = None, **columns: object,
    ) -> list[float | None]:  # fmt: skip
        ids = [()] * len(prompts) if completion_ids is None else [tuple(one) for one in completion_ids]
        wanted = list(zip(prompts, completions, ids, strict=True))
        new = list(dict.fromkeys(one for one in wanted if one not in self.known))
        if new:
            asked, texts, drawn = zip(*new, strict=True)
            scores = self.normalizer(self.model(asked, texts, completion_ids=drawn))
            fresh = dict(zip(new, scores, strict=True))
        return [self.known[one] if one in self.known else fresh[one] for one in wanted]


@stage
def finetune(
    work: Workspace, *, reference: Run, pairs: Run, fit: Fit, reward_models: Mapping[str, Run],
    specialists: Mapping[str, Run] | None = None,
) -> Metrics:  # fmt: skip
    """A row at some preferences: one training run on the reward models in the units of the pairs run."""
    from align.engines.problem import Problem
    from recipes.pipeline.fitting import fitted

    rows = source.read_rows(pairs.path / "rows.jsonl")
    objectives = {
        name: Scored(pairs, rows=rows, index=k, name=name, model=reward_models[name])
        for k, name in enumerate(pairs.metrics["names"])
    }
    problem = Problem(
        reference=checkpoint(reference), objectives=objectives, preferences=fit.preferences, comparisons=rows,
        prompts=[{"id": row["id"], "prompt": row["prompt"]} for row in rows],
    )  # fmt: skip
    return fitted(work, fit, problem, specialists=specialists or {})
