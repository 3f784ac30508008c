"""LoRA adapters on every linear layer but the output, or on named layers, for causal LMs and for reward models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch.nn import Module
    from transformers import PreTrainedModel


def lora_config(
    model: PreTrainedModel, r: int, *, alpha: float | None = None, dropout: float = 0.0, task: str = "CAUSAL_LM",
    targets: str | Sequence[str] = "all-linear", new_tokens: Sequence[int] = (),
) -> LoraConfig:  # fmt: skip
    """LoRA of rank `r` on every linear layer but the output; scaling alpha / r (alpha None: 2 r; Hu et al. 2021).

    `targets` are the last parts of layers' names, one or a list; UserError for one that no layer has, and for the
    output. `task="SEQ_CLS"` also trains and saves the new score head; of the embeddings those of `new_tokens` alone are
    trained. rsLoRA stays off: PEFT 0.21 mis-scales its merges.
    """
    from peft import LoraConfig

    if r < 1:
        raise UserError(f"lora_r {r} must be at least 1 (or 0 in a config: no adapter)")
    names = [targets] if isinstance(targets, str) else list(targets)
    layers = [name for name, _ in model.named_modules()]
    for target in names:
        if target != "all-linear" and not any(layer.split(".")[-1] == target or layer == target for layer in layers):
            ends = sorted({layer.split(".")[-1] for layer, m in model.named_modules() if _is_linear(m)})
            raise UserError(f"lora_targets: no layer of the model is called {target!r}; it has {', '.join(ends)}")
    outputs = model.get_output_embeddings()
    taken = [n for n, m in model.named_modules() if m is outputs and (n in names or n.split(".")[-1] in names)]
    if outputs is not None and taken:
        raise UserError(f"lora_targets: {taken[0]} is the output, which TRL reads without its adapter; leave it out")
    head = [name for name in ("score", "classifier") if hasattr(model, name)] if task == "SEQ_CLS" else None
    return LoraConfig(
        task_type=task,
        r=r,
        lora_alpha=2 * r if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules="all-linear" if names == ["all-linear"] else names,
        modules_to_save=head,
        trainable_token_indices=list(new_tokens) or None,
        fan_in_fan_out=model.config.model_type == "gpt2",  # GPT-2 stores its matrices transposed
        use_rslora=False,
    )


def _is_linear(layer: Module) -> bool:
    return getattr(layer, "weight", None) is not None and type(layer).__name__ in ("Linear", "Conv1D", "Linear4bit")


def attach_lora(
    model: PreTrainedModel, r: int, *, alpha: float | None = None, dropout: float = 0.0,
    targets: str | Sequence[str] = "all-linear",
) -> PeftModel:  # fmt: skip
    """Wrap a causal LM with a LoRA adapter named "default" (the only name TRL's reference handling accepts)."""
    from peft import get_peft_model

    return get_peft_model(model, lora_config(model, r, alpha=alpha, dropout=dropout, targets=targets))
