"""A model, its configs and its tokenizer out of memory, in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from align import checks
from align.models.stored.adapters import noted_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Save weights, config, generation config and tokenizer into `folder`, and return it."""
    quiet()
    checks.finite_weights(model)
    folder.mkdir(parents=True, exist_ok=True)
    for adapter in getattr(model, "peft_config", {}).values():
        adapter.base_model_name_or_path = noted_base(str(adapter.base_model_name_or_path), folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def quiet() -> None:
    """No progress bar for weights, which take a moment and hundreds of times; no notice on TRL's old names."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    # We set the old name because TRL's configs only know that one; a saved adapter's config brings it back.
    warnings.filterwarnings("ignore", message=r".*gradient_checkpointing.*", category=FutureWarning)
