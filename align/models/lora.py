"""LoRA adapters on every linear layer but the output, for causal LMs and for reward models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel


def lora_config(
    model: PreTrainedModel, r: int, *, alpha: float | None = None, dropout: float = 0.0, task: str = "CAUSAL_LM"
) -> LoraConfig:
    """LoRA of rank `r` on every linear layer but the output; scaling alpha / r (alpha None: 2 r; Hu et al. 2021).

    `task="SEQ_CLS"` also trains and saves the new score head. rsLoRA stays off: PEFT 0.21 mis-scales its merges.
    """
    from peft import LoraConfig

    if r < 1:
        raise UserError(f"lora_r {r} must be at least 1 (or 0 in a config: no adapter)")
    head = [name for name in ("score", "classifier") if hasattr(model, name)] if task == "SEQ_CLS" else None
    return LoraConfig(
        task_type=task,
        r=r,
        lora_alpha=2 * r if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        modules_to_save=head,
        fan_in_fan_out=model.config.model_type == "gpt2",  # GPT-2 stores its matrices transposed
        use_rslora=False,
    )


def attach_lora(model: PreTrainedModel, r: int, *, alpha: float | None = None, dropout: float = 0.0) -> PeftModel:
    """Wrap a causal LM with a LoRA adapter named "default" (the only name TRL's reference handling accepts)."""
    from peft import get_peft_model

    return get_peft_model(model, lora_config(model, r, alpha=alpha, dropout=dropout))
