"""Weights into memory: a causal LM, or a sequence classifier with one output, of a run, a directory or a hub id."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError
from align.models.gguf import gguf_model
from align.models.save import no_bars
from align.runs import is_gguf, model_dir

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(path: str | Path, *, dtype: str = "float32") -> PreTrainedModel:
    """A causal LM from a run, a model directory or a hub id; a LoRA adapter directory is merged into its base,
    a `.gguf` file unpacked.

    float32 whatever the checkpoint says (transformers 5 would keep bf16, in which small updates are lost).
    Raises UserError when the directory lacks a config, a tokenizer or readable weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    no_bars()
    source = model_dir(path)
    try:
        if is_gguf(source):
            return gguf_model(source, dtype=dtype)
        if (Path(source) / "adapter_config.json").is_file():
            from peft import AutoPeftModelForCausalLM

            return AutoPeftModelForCausalLM.from_pretrained(source, dtype=dtype).merge_and_unload()
        architectures = AutoConfig.from_pretrained(source).architectures or ()
        if any("SequenceClassification" in name for name in architectures):
            raise UserError(f"{source} is a reward model (a classifier), not a language model; give a policy here")
        model, report = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True)
        refuse_missing(report["missing_keys"], source)
        return model
    except UserError:
        raise
    except Exception as error:
        raise unreadable(source, error) from error


def load_to_read(path: str | Path) -> PreTrainedModel:
    """`load_model` in eval mode, on the GPU where there is one."""
    return to_read(load_model(path))


def to_read(model: PreTrainedModel) -> PreTrainedModel:
    """The model in eval mode, on the GPU where there is one."""
    import torch

    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def load_scorer(path: str | Path, *, pad_token_id: int, eos_token_id: int) -> PreTrainedModel:
    """A sequence classifier with one output, in float32: a reward model, or the start of one.

    From a causal LM checkpoint the backbone is taken over and the head is new (drawn from torch's generator).
    Raises UserError as `load_model`, and when the checkpoint's head has more than one output.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging

    no_bars()
    source = model_dir(path)
    try:
        config = AutoConfig.from_pretrained(source)
        has_head = any("SequenceClassification" in name for name in config.architectures or ())
        if has_head and config.num_labels != 1:
            raise UserError(f"{source} is a classifier with {config.num_labels} outputs; a reward model has 1")
        level = logging.get_verbosity()
        logging.set_verbosity_error()  # a new head is what we ask for; no report is needed on it
        try:
            model, report = AutoModelForSequenceClassification.from_pretrained(
                source, num_labels=1, dtype="float32", output_loading_info=True
            )
        finally:
            logging.set_verbosity(level)
        head = () if has_head else ("score", "classifier", "pooler")  # new on a backbone that has been no classifier
        refuse_missing([key for key in report["missing_keys"] if not set(head) & set(key.split("."))], source)
    except UserError:
        raise
    except Exception as error:
        raise unreadable(source, error) from error
    model.config.pad_token_id = pad_token_id  # a decoder reads its score at the last token that is not padding
    model.config.eos_token_id = eos_token_id
    return model


def refuse_missing(names: Iterable[str], source: str) -> None:
    """UserError when the checkpoint lacks weights: transformers would draw them at random with a warning."""
    missing = sorted(names)
    if missing:
        raise UserError(f"{source} lacks {len(missing)} weights of its model ({missing[0]}); save it again, whole")


def unreadable(source: str, error: Exception) -> UserError:
    """A one-line UserError for whatever the loaders of Hugging Face raised about `source`."""
    return UserError(f"no model could be read from {source} ({first_line(error)}); save it again or give another")


def first_line(error: Exception) -> str:
    """Type and first line of an error, at most 200 characters of it."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
