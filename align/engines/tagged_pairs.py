"""SFT and DPO on token ids behind tagged prompts; DPO's reference is read at the prompt without its tags.

TRL prepares one stand-in row and is then given the whole data set as ids, in the columns that its collator reads: what
is trained on is what was sampled, and the reference is the checkpoint that J names, not its tagged copy at step 0. With
LoRA, all stays as it was but the adapter and the embeddings of new tag tokens; both are merged at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import checks
from align.engines.pairs import PairTrainingConfig, bare_trainer
from align.engines.settings import TrainingConfig, adapter_config, model_to_train, train_and_save, trainer_arguments
from align.errors import UserError
from align.models import count_parameters, load_tokenizer, save_model
from align.models.formats import formatter
from align.models.load import load_to_read
from align.models.reading import Reader, sequence_logprobs
from align.models.stored.adapters import folded
from align.policies.tagged import Tags, forbid, tag_ids
from align.runs import Ledger, Workspace

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
    from trl import DPOTrainer, SFTTrainer


@dataclass(frozen=True)
class Example:
    """A response to imitate behind a prompt whose tags say `values`."""

    prompt: str
    values: tuple[float | None, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class TaggedPair:
    """Two responses, the chosen one first, behind a prompt whose tags say `values`."""

    prompt: str
    values: tuple[float | None, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


# ------------------------------------------------------------------------------------------------------------------ SFT


def imitate(
    examples: Sequence[Example], *, config: TrainingConfig, model: str, tags: Tags, run: Workspace, epochs: float
) -> dict[str, float | None]:
    """Train `model` on the likelihood of the responses behind their tags, save it in `run.folder/model`; metrics.

    A method whose stages differ in their learning rate or scheduler changes `config` for each.
    """
    trainer = build_sft_trainer(examples, config=config, model=model, tags=tags, folder=run.folder, epochs=epochs)
    loss = finish(trainer, label=f"sft {run.folder.stem}", run=run)
    return {"loss": loss, "trained_on": len(examples), "steps": trainer.state.global_step}


def build_sft_trainer(
    examples: Sequence[Example], *, config: TrainingConfig, model: str, tags: Tags, folder: Path, epochs: float
) -> SFTTrainer:
    """An SFTTrainer on these ids, the loss on the response only; tag tokens have probability 0."""
    if not examples:
        raise UserError("no response is left to train on; draw more, or filter less")
    tokenizer = load_tokenizer(model)
    heads = formatter(tokenizer).prompts_ids([tags.apply(e.prompt, e.values) for e in examples])
    new = tag_ids(tokenizer, tags)
    trainer = imitation_trainer(
        heads, [e.ids for e in examples], config=config, model=model, folder=folder, epochs=epochs, new_tokens=new
    )
    longest = max(map(len, trainer.train_dataset["input_ids"]))
    checks.fits(longest, trainer.model, what="the longest tagged prompt and response", fix="leave such rows out")
    forbid(trainer.model, new)
    return trainer


def imitation_trainer(
    heads: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, config: TrainingConfig, model: str,
    folder: Path, epochs: float, new_tokens: Sequence[int] = (),
) -> SFTTrainer:  # fmt: skip
    """An SFTTrainer on the ids of responses behind those of their prompts, as they are, the loss on responses only.

    With LoRA the embeddings of `new_tokens` are trained, too.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    policy = model_to_train(model, config)
    rows = {
        "input_ids": [[*head, *ids] for head, ids in zip(heads, responses, strict=True)],
        "labels": [[-100] * len(head) + list(ids) for head, ids in zip(heads, responses, strict=True)],
    }
    return SFTTrainer(
        model=policy,
        # Rows with ids and labels pass TRL as they are: no template, no end token added, nothing cut or packed; the
        # sampler shuffles again in every epoch.
        args=SFTConfig(
            **trainer_arguments(config, folder, epochs=epochs), max_length=None, packing=False, shuffle_dataset=False
        ),
        train_dataset=Dataset.from_dict(rows),
        processing_class=load_tokenizer(model),
        peft_config=adapter_config(config, policy, new_tokens=new_tokens),
    )


def finish(trainer: Trainer, *, label: str, run: Workspace) -> float | None:
    """Train (resuming where a checkpoint lies), charge the ledger, save `run.folder/model` whole; the last loss."""
    return train_and_save(trainer, label=label, run=run, save=lambda _: save_whole(trainer, folder=run.folder)).loss


def save_whole(trainer: Trainer, *, folder: Path) -> None:
    """Save the trained model in `folder/model`, with its adapter merged where it has one."""
    trained = trainer.accelerator.unwrap_model(trainer.model)
    whole = folded(trained) if hasattr(trained, "merge_and_unload") else trained
    save_model(whole, trainer.processing_class, folder / "model")


# ------------------------------------------------------------------------------------------------------------------ DPO


def pair_config(config: TrainingConfig, **others: Any) -> PairTrainingConfig:
    """What of a method's config DPO's trainer is built from."""
    return PairTrainingConfig(**{f.name: getattr(config, f.name) for f in fields(TrainingConfig)}, **others)


def build_pair_trainer(
    config: PairTrainingConfig,
    *,
    start: str,
    tags: Tags,
    beta: float,
    folder: Path,
    dataset: Dataset | list[dict[str, object]] | None = None,
) -> DPOTrainer:
    """A DPOTrainer of coefficient `beta` on rows of `encoded` (set as its `train_dataset`); tag tokens forbidden."""
    tokenizer = load_tokenizer(start)
    new = tag_ids(tokenizer, tags)
    trainer = bare_trainer(config, reference=start, beta=beta, folder=folder, new_tokens=new)
    forbid(trainer.model, new)
    trainer.train_dataset = dataset
    return trainer


def encoded(
    pairs: Sequence[TaggedPair], *, tokenizer: PreTrainedTokenizerBase, tags: Tags, reference: PreTrainedModel,
    ledger: Ledger, config: PairTrainingConfig, untagged: bool = True,
) -> list[dict[str, object]]:  # fmt: skip
    """The pairs as rows of DPOTrainer's data set: ids of the tagged prompt and both responses, and the reference's log
    p of both, in nats, by the model `reference` at the prompt without its tags (with them if not `untagged`).

    With `max_length`, responses are cut to it; pairs whose prompt fills it, or that it makes equal, are left out.
    UserError when a sequence does not fit the model, and when no pair is left.
    """
    form = formatter(tokenizer)
    heads = form.prompts_ids([tags.apply(p.prompt, p.values) for p in pairs])
    plain = form.prompts_ids([p.prompt for p in pairs]) if untagged else heads
    rows: list[dict[str, object]] = []
    asked = []
    for pair, head, bare in zip(pairs, heads, plain, strict=True):
        room = None if config.max_length is None else config.max_length - len(head)
        if room is not None and room < 1:
            continue
        chosen, rejected = list(pair.chosen[:room]), list(pair.rejected[:room])
        if chosen == rejected and pair.chosen != pair.rejected:
            continue
        longest = len(head) + max(len(chosen), len(rejected))
        checks.fits(longest, reference, what="a tagged comparison", fix="set max_length, or leave such rows out")
        rows.append({"prompt_ids": head, "chosen_ids": chosen, "rejected_ids": rejected})
        asked += [(tuple(bare), tuple(chosen)), (tuple(bare), tuple(rejected))]
    if not rows:
        raise UserError(f"max_length = {config.max_length} leaves no pair to train on; raise max_length")
    logps = reference_logprobs(
        reference, asked, pad_id=tokenizer.pad_token_id, batch_size=4 * config.batch_size, ledger=ledger
    )
    for row, chosen_logp, rejected_logp in zip(rows, logps[::2], logps[1::2], strict=True):
        row |= {"ref_chosen_logps": chosen_logp, "ref_rejected_logps": rejected_logp}
    return rows


def reference_logprobs(
    model: PreTrainedModel,
    rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    *,
    pad_id: int,
    batch_size: int,
    ledger: Ledger,
) -> list[float]:
    """`log p(completion | prompt)` in nats for rows of (prompt ids, completion ids); equal rows are read once."""
    unique = sorted(dict.fromkeys(rows), key=lambda row: len(row[0]) + len(row[1]))
    sums = sequence_logprobs(model, unique, reader=Reader(pad_id=pad_id, batch_size=batch_size))
    found = dict(zip(unique, sums, strict=True))
    read = sum(len(head) + len(tail) for head, tail in unique)
    ledger.add(flops=2 * count_parameters(model, embeddings=False) * read)
    return [found[row] for row in rows]


def frozen(model: str) -> PreTrainedModel:
    """A checkpoint to read log-probabilities from."""
    return load_to_read(model).requires_grad_(False)
