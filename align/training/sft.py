"""Supervised fine-tuning on demonstrations: the loss falls on the completion and its end token only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align import checks
from align.data.comparisons import Row
from align.errors import UserError
from align.models import count_parameters, load_tokenizer, lora_config, save_model, set_dropout
from align.runs import Ledger
from align.training.bits import completion_bits
from align.training.common import StageConfig, drop_checkpoints, final_loss, finish_trainer
from align.training.model_settings import model_in_training
from align.training.watch import train_watched, watched

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class SFTConfig_(StageConfig):
    """The optimiser (fields of `StageConfig`) and what is special here; the name leaves `SFTConfig` to TRL.

    `max_length` is in tokens, end token included (None: the model's positions); longer rows are left out and counted.
    `lora_r` above 0 trains a LoRA adapter of that rank and merges it into the saved model; with `merge_adapter: false`,
    and on a base of 4 bits, the adapter is saved as it is, with the place of its base.
    """

    dropout: float = 0.0
    max_length: int | None = None
    lora_r: int = 0
    lora_alpha: float | None = None
    merge_adapter: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.regularisers(self)


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
    prompts (None without them, or where early stopping chose by them), `steps`, `trained_on` and `too_long` (rows),
    with `eval_steps` also `held_out`. Raises UserError on a row without prompt or completion.
    """
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    out = Path(out)
    tokenizer = load_tokenizer(model)
    language_model = model_in_training(config, model, adapter=config.lora_r > 0)
    set_dropout(language_model, config.dropout)
    kept = keep_short(rows, tokenizer, checks.longest_row(config.max_length, language_model))
    set_seed(config.seed)
    looks = watched(config, validation, keep=lambda rows: keep_short(rows, tokenizer, None))
    trainer = SFTTrainer(
        model=language_model,
        # Packing in TRL's best-fit form is quadratic in the length on a CPU; a length of None truncates nothing, and
        # truncation would cut off the end token.
        args=SFTConfig(
            **config.arguments(out), completion_only_loss=True, packing=False, max_length=None, shuffle_dataset=False
        ),
        train_dataset=Dataset.from_list([*kept, *looks]),
        processing_class=tokenizer,
        peft_config=adapter_of(config, language_model),
    )
    finish_trainer(trainer, label="sft", ledger=ledger, parameters=count_parameters(language_model, embeddings=False))
    texts = [f"{row['prompt']}{row['completion']}" for row in looks]
    held_out = train_watched(trainer, config, count=len(kept), out=out, texts=texts)
    merges = config.lora_r and config.merge_adapter and not config.load_in_4bit
    trained = trainer.model.merge_and_unload() if merges else trainer.model
    save_model(trained, tokenizer, out / "model")
    drop_checkpoints(out)
    return {
        "loss": final_loss(trainer),
        # rows that chose the point kept are no measure of it
        "bits_per_byte": None
        if not validation or config.early_stopping
        else completion_bits(trained, tokenizer, validation).per_byte,
        "steps": trainer.state.global_step,
        "trained_on": len(kept),
        "too_long": len(rows) - len(kept),
        **held_out,
    }


def adapter_of(config: SFTConfig_, model: PreTrainedModel) -> LoraConfig | None:
    """The LoRA configuration for TRL's `peft_config`, or None for full training."""
    if not config.lora_r:
        return None
    return lora_config(
        model, config.lora_r, alpha=config.lora_alpha, dropout=config.lora_dropout, targets=config.lora_targets
    )


def keep_short(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int | None) -> list[dict[str, str]]:
    """The prompts and completions of the rows of at most `limit` tokens, end token included.

    Raises UserError on a row without text in either column, and when no row is left.
    """
    kept = []
    for number, row in enumerate(rows, start=1):
        prompt, completion = row.get("prompt"), row.get("completion")
        if not isinstance(prompt, str) or not isinstance(completion, str) or not completion:
            raise UserError(f"demonstration row {number} has no prompt or no completion; give both as text")
        if limit is None or len(tokenizer(prompt + completion)["input_ids"]) + 1 <= limit:
            kept.append({"prompt": prompt, "completion": completion})
    if not kept:
        raise UserError(f"none of the {len(rows)} demonstrations fits {limit} tokens; raise max_length or give others")
    return kept
