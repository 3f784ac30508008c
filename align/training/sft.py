"""Supervised fine-tuning on demonstrations: the loss falls on the reply only, and on what closes it in its format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from align import checks
from align.data.comparisons import Row
from align.errors import UserError
from align.models import count_parameters, load_tokenizer, lora_config, save_model, set_dropout
from align.models.formats import TEMPLATES, Choice, settle
from align.models.stored.adapters import folded
from align.runs import Ledger
from align.runs.values import later
from align.training.bits import completion_bits
from align.training.common import StageConfig, drop_checkpoints, final_loss, finish_trainer
from align.training.model_settings import model_in_training
from align.training.rows import Encoder
from align.training.watch import train_watched, watched

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LONG_ROWS = ("drop", "cut")


@dataclass(frozen=True)
class SFTConfig_(StageConfig):
    """The optimiser (fields of `StageConfig`) and what is special here; the name leaves `SFTConfig` to TRL.

    `template` (auto, chat, hh, plain) and `chat_template_kwargs` choose the prompt format where the checkpoint carries
    none yet; what is trained from here on inherits it. `max_length` is in tokens, the reply's end included (None: the
    model's positions); longer rows are counted, and with `long_rows` drop left out, with cut trained without an end.
    `lora_r` above 0 trains a LoRA adapter of that rank and merges it into the saved model; with `merge_adapter: false`,
    and on a base of 4 bits, the adapter is saved as it is, with the place of its base.
    """

    dropout: float = 0.0
    template: str = later("auto")
    chat_template_kwargs: Mapping[str, object] | None = later(None)
    max_length: int | None = None
    long_rows: str = later("drop")
    lora_r: int = 0
    lora_alpha: float | None = None
    merge_adapter: bool = later(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.regularisers(self)
        checks.one_of(self, template=TEMPLATES, long_rows=LONG_ROWS)


def sft(
    config: SFTConfig_,
    *,
    model: str | Path,
    rows: Sequence[Row],
    out: Path,
    ledger: Ledger,
    validation: Sequence[Row] | None = None,
) -> dict[str, object]:
    """Fine-tune `model` on `prompt`, `completion` rows, save `out/model`, and return metrics; resumes.

    Metrics: `loss` (nats per completion token, last logged), `bits_per_byte` of the validation completions given their
    prompts (None without them, or where early stopping chose by them), `steps`, `trained_on`, `too_long` (rows), with
    `eval_steps` also `held_out`, and `left_out`, rows by the reason why their template cannot say them. Raises
    UserError on a row without prompt or completion.
    """
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    out = Path(out)
    tokenizer = load_tokenizer(model)
    language_model = model_in_training(config, model, adapter=config.lora_r > 0)
    set_dropout(language_model, config.dropout)
    settle(
        tokenizer, Choice(config.template, config.chat_template_kwargs or {}), place=str(model),
        prompts=[row["prompt"] for row in rows if isinstance(row.get("prompt"), str)],
    )  # fmt: skip
    limit = checks.longest_row(config.max_length, language_model)
    kept = training_rows(rows, tokenizer, limit=limit, cut=config.long_rows == "cut")
    set_seed(config.seed)
    looks = watched(config, validation, keep=lambda rows: training_rows(rows, tokenizer, limit=limit).rows)
    trainer = SFTTrainer(
        model=language_model,
        # Rows of ids and labels pass TRL as they are. Packing in its best-fit form is quadratic in the length on a CPU.
        args=SFTConfig(**config.arguments(out), packing=False, max_length=None, shuffle_dataset=False),
        train_dataset=Dataset.from_list([*kept.rows, *looks]),
        processing_class=tokenizer,
        peft_config=adapter_of(config, language_model),
    )
    finish_trainer(trainer, label="sft", ledger=ledger, parameters=count_parameters(language_model, embeddings=False))
    texts = [tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in looks]
    held_out = train_watched(trainer, config, count=len(kept.rows), out=out, texts=texts)
    merges = config.lora_r and config.merge_adapter and not config.load_in_4bit
    trained = folded(trainer.model) if merges else trainer.model
    save_model(trained, tokenizer, out / "model")
    drop_checkpoints(out)
    return {
        "loss": final_loss(trainer),
        # rows that chose the point kept are no measure of it
        "bits_per_byte": None
        if not validation or config.early_stopping
        else completion_bits(trained, tokenizer, validation).per_byte,
        "steps": trainer.state.global_step,
        "trained_on": len(kept.rows),
        "too_long": kept.too_long,
        **({"left_out": kept.left_out} if kept.left_out else {}),
        **held_out,
    }


def adapter_of(config: SFTConfig_, model: PreTrainedModel) -> LoraConfig | None:
    """The LoRA configuration for TRL's `peft_config`, or None for full training."""
    if not config.lora_r:
        return None
    return lora_config(
        model, config.lora_r, alpha=config.lora_alpha, dropout=config.lora_dropout, targets=config.lora_targets
    )


@dataclass
class Kept:
    """The rows to train on, ids and labels, how many were longer than the limit, and those left out by reason."""

    rows: list[dict[str, list[int]]] = field(default_factory=list)
    too_long: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def training_rows(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, limit: int | None, cut: bool = False
) -> Kept:
    """The rows of at most `limit` tokens in the tokenizer's prompt format; `cut`: longer ones, too, up to the limit.

    A row whose prompt alone fills the limit is left out in any case. Raises UserError on a row without text in either
    column, and when no row is left.
    """
    encoder, kept = Encoder(tokenizer), Kept()
    for number, given in enumerate(rows, start=1):
        prompt, completion = given.get("prompt"), given.get("completion")
        if not isinstance(prompt, str) or not isinstance(completion, str) or not completion:
            raise UserError(f"demonstration row {number} has no prompt or no completion; give both as text")
        row = encoder(prompt, (completion, None))
        if row is None:
            continue
        head, (tail,) = row.prompt, row.replies
        if limit is not None and row.longest > limit:
            kept.too_long += 1
            if not cut or len(head) >= limit:
                continue
        ids = [*head, *tail][:limit]
        kept.rows.append({"input_ids": ids, "labels": ([-100] * len(head) + tail)[:limit]})
    kept.left_out = encoder.unsaid
    if not kept.rows:
        refused = f"; {dict(kept.left_out)} cannot be said in the chat template" if kept.left_out else ""
        raise UserError(
            f"none of the {len(rows)} demonstrations fits {limit} tokens{refused}; raise max_length or give others"
        )
    return kept
