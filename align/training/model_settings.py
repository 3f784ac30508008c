"""Fields of training configs about the model itself: number types, attention, memory, and which layers LoRA adapts."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from align import checks
from align.errors import UserError
from align.models import load_model
from align.models.stored.precision import trained_dtype
from align.runs.values import later

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = ("auto", "bfloat16", "float32")
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """How the trained model is held in memory; at these defaults a config has the key that it had without the fields.

    `dtype`: auto trains all weights in float32, and holds those that are frozen under an adapter in bfloat16 on a GPU
    (in float32 on a CPU, and for models of less than 256 MB); bfloat16 or float32 hold all of them so. An adapter's own
    weights are float32 (bfloat16 on a base of 4 bits). `attn_implementation` is one of transformers' (eager, sdpa,
    flash_attention_2; None: its default). `gradient_checkpointing` computes activations twice to hold few of them.
    `lora_targets`: all-linear (every linear layer but the output), or names of layers like [q_proj, v_proj].
    `load_in_4bit` holds a base of NF4 blocks (Dettmers et al. 2023; a GPU and the package bitsandbytes).
    """

    dtype: str = later("auto")
    attn_implementation: str | None = later(None)
    gradient_checkpointing: bool = later(False)
    lora_targets: str | tuple[str, ...] = later(ALL_LINEAR)
    lora_dropout: float = later(0.0)
    load_in_4bit: bool = later(False)


def check_model_settings(settings: ModelSettings, *, lora_r: int) -> None:
    """UserError on a value that no model can have, or one that means an adapter where `lora_r` is 0."""
    checks.one_of(settings, dtype=DTYPES)
    checks.shares(settings, "lora_dropout")
    if not settings.lora_targets:
        raise UserError(f"lora_targets is empty; give {ALL_LINEAR}, or names of layers like q_proj, v_proj")
    for name, default in (("lora_targets", ALL_LINEAR), ("lora_dropout", 0.0), ("load_in_4bit", False)):
        if not lora_r and getattr(settings, name) != default:
            raise UserError(f"{name} is for an adapter, and lora_r is 0; set lora_r to a rank, like 16")
    if settings.load_in_4bit:
        require_4bit()


def model_in_training(settings: ModelSettings, path: str | Path, *, adapter: bool) -> PreTrainedModel:
    """The causal LM of a run, model or adapter directory, `.gguf` file or hub id, held as the settings say.

    `adapter`: whether an adapter on it is trained, and not its own weights.
    """
    return load_model(
        path,
        dtype=trained_dtype(path, settings.dtype, adapter=adapter),
        attn_implementation=settings.attn_implementation,
        load_in_4bit=settings.load_in_4bit,
    )


def require_4bit() -> None:
    """UserError unless a model can be held in blocks of 4 bits here."""
    import torch

    if find_spec("bitsandbytes") is None:
        raise UserError("load_in_4bit needs the package bitsandbytes; pip install bitsandbytes, or set it to false")
    if not torch.cuda.is_available():
        raise UserError("load_in_4bit needs a GPU; set it to false")


def refuse_lora_dropout(settings: ModelSettings) -> None:
    """UserError for dropout where the policy that samples and the one that is trained must be the same."""
    if settings.lora_dropout:
        raise UserError("on-policy training samples from the very policy that it trains; set lora_dropout to 0")
