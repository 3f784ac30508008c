"""Maximum-likelihood pretraining of a causal LM on packed blocks of text, with the Hugging Face Trainer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from align import checks
from align.data import encode, pack, train_tokenizer
from align.data.comparisons import Row
from align.errors import UserError
from align.models import (
    ModelConfig,
    build_model,
    context_of,
    count_parameters,
    load_tokenizer,
    save_model,
    set_dropout,
)
from align.runs import Ledger
from align.training.bits import text_bits
from align.training.common import StageConfig, drop_checkpoints, final_loss, finish_trainer, resume_point
from align.training.model_settings import model_in_training

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PretrainConfig(StageConfig):
    """The model, the text's form, and the optimiser (fields of `StageConfig`, with other defaults).

    `block` is the tokens per packed example (None: the model's context); `packed: false` gives every document an
    example of its own instead, cut at `block`, which suits texts of a few tokens that have nothing to do with each
    other. `start` continues from a checkpoint instead of building `model` (whose dropout still counts).
    `vocab_size` is for the tokenizer that is trained when none is given. `bf16_on_cpu` multiplies matrices in bf16
    without a GPU (weights and optimiser stay float32): about 1.4 times as fast on a CPU with AVX512-BF16 or AMX.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    start: str | None = None
    vocab_size: int = 4096
    block: int | None = None
    packed: bool = True
    bf16_on_cpu: bool = False
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    adam_beta2: float = 0.95  # 0.999 averages squared gradients over more steps than a short run has

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(2, self, "block")
        if not 0 <= self.adam_beta2 < 1:
            raise UserError(f"adam_beta2 must be in [0, 1), not {self.adam_beta2:g}")


def pretrain(
    config: PretrainConfig,
    *,
    rows: Sequence[Row],
    out: Path,
    ledger: Ledger,
    validation: Sequence[Row] | None = None,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
) -> dict[str, object]:
    """Train on the `text` of `rows`, save `out/model`, and return metrics; resumes from `out/checkpoints`.

    `tokenizer` is one, or the directory of one; None takes that of `config.start`, or trains one on `rows`. Metrics:
    `bits_per_byte` of `validation` (None without), `loss` (nats per token, last logged), `parameters`,
    `parameters_without_tables`, `tokens_per_epoch`, `tail_tokens_dropped`, `steps`. Raises UserError on a row without
    text and on an architecture that is not causal.
    """
    from transformers import Trainer, TrainingArguments, set_seed

    out = Path(out)
    if config.model.architecture == "bert" and config.start is None:
        raise UserError("pretraining needs a causal model; set model.architecture to llama or gpt2")
    texts = _texts(rows, "pretraining")
    held_out = _texts(validation, "validation") if validation else []
    vocabulary = _tokenizer(config, texts=texts, tokenizer=tokenizer, out=out)
    if config.start is None:
        model = build_model(config.model, vocabulary, seed=config.seed)
    else:
        model = model_in_training(config, config.start, adapter=False)
        set_dropout(model, config.model.dropout)
    counts: Counter[str] = Counter()
    block = config.block or context_of(model) or config.model.context
    checks.fits(block, model, what="block", fix="lower training.block or raise training.model.context")
    blocks = (pack if config.packed else _one_by_one)(texts, vocabulary, length=block, counts=counts)
    arguments = config.arguments(out)
    arguments["bf16"] |= config.bf16_on_cpu and arguments["use_cpu"]
    set_seed(config.seed)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            **arguments,
            adam_beta2=config.adam_beta2,
            include_num_input_tokens_seen="all" if config.packed else "non_padding",
        ),
        train_dataset=blocks,
        data_collator=partial(_collate, pad=vocabulary.pad_token_id),
    )
    parameters = count_parameters(model, embeddings=False)
    finish_trainer(trainer, label="pretrain", ledger=ledger, parameters=parameters)
    trainer.train(resume_from_checkpoint=resume_point(out))
    save_model(model, vocabulary, out / "model")
    drop_checkpoints(out)
    bits = text_bits(model, vocabulary, held_out) if held_out else None
    return {
        "bits_per_byte": None if bits is None else bits.per_byte,
        "validation_bytes": None if bits is None else bits.bytes,
        "loss": final_loss(trainer),
        "steps": trainer.state.global_step,
        "parameters": count_parameters(model, embeddings=True),
        "parameters_without_tables": parameters,
        "tokens_per_epoch": sum(len(ids) for ids in blocks["input_ids"]),
        "tail_tokens_dropped": counts["tail tokens dropped"],
    }


def _one_by_one(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, length: int, counts: Counter[str]
) -> Dataset:
    """One example per document: its tokens and the end token, cut at `length`; the tokens cut off are counted."""
    from datasets import Dataset

    documents = [ids + [tokenizer.eos_token_id] for ids in encode(texts, tokenizer)]
    counts["tail tokens dropped"] += sum(max(len(ids) - length, 0) for ids in documents)
    return Dataset.from_dict({"input_ids": [ids[:length] for ids in documents]})


def _collate(examples: Sequence[Row], *, pad: int) -> dict[str, Tensor]:
    """Rows padded on the right, every real token a target; the model shifts the labels itself."""
    import torch

    rows = [torch.tensor(example["input_ids"]) for example in examples]
    ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    lengths_B = torch.tensor([len(row) for row in rows])
    mask_BT = (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long()
    batch = {"input_ids": ids_BT, "labels": ids_BT.masked_fill(mask_BT == 0, -100)}
    return batch if bool(mask_BT.all()) else {**batch, "attention_mask": mask_BT}  # full blocks need no mask


def _texts(rows: Sequence[Row], what: str) -> list[str]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("text"), str):
            raise UserError(f"{what} row {number} has no text; give rows with a text column")
    return [row["text"] for row in rows]


def _tokenizer(
    config: PretrainConfig, *, texts: list[str], tokenizer: PreTrainedTokenizerBase | str | Path | None, out: Path
) -> PreTrainedTokenizerBase:
    if tokenizer is None and config.start is None:
        return train_tokenizer(texts, vocab_size=config.vocab_size, out=out / "tokenizer")
    if tokenizer is None or isinstance(tokenizer, (str, Path)):
        return load_tokenizer(tokenizer or str(config.start))
    return tokenizer
