"""Weights into memory: a causal LM, or a sequence classifier with one output, of a run, a directory or a hub id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import UserError
from align.models.save import quiet
from align.models.stored.adapters import base_of, is_adapter, is_scorer, merged, on_base, shapes
from align.models.stored.gguf import gguf_model
from align.models.stored.precision import frozen_dtype
from align.runs import is_gguf, model_dir

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEADS = ("score", "classifier", "pooler")  # of decoders, of encoders, and what stands before the latter


def load_model(
    path: str | Path,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    load_in_4bit: bool = False,
) -> PreTrainedModel:
    """A causal LM from a run, a model directory or a hub id; a LoRA adapter directory is merged into its base,
    a `.gguf` file unpacked.

    float32 whatever the checkpoint says (transformers 5 would keep bf16, in which small updates are lost).
    Raises UserError when the directory lacks a config, a tokenizer or readable weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet()
    source = model_dir(path)
    try:
        if is_gguf(source):
            return gguf_model(source, dtype=dtype)
        if is_adapter(source):
            if is_scorer(source):
                raise UserError(f"{source} is a reward model (a classifier), not a language model; give a policy here")
            base = load_model(base_of(source), dtype=dtype, attn_implementation=attn_implementation)
            return merged(base, source)
        architectures = AutoConfig.from_pretrained(source).architectures or ()
        if any("SequenceClassification" in name for name in architectures):
            raise UserError(f"{source} is a reward model (a classifier), not a language model; give a policy here")
        options = _options(dtype, attn_implementation, load_in_4bit)
        model, report = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
        refuse_missing(report["missing_keys"], source)
        return model
    except UserError:
        raise
    except Exception as error:
        raise unreadable(source, error) from error


def _options(dtype: str, attn_implementation: str | None, load_in_4bit: bool = False) -> dict[str, Any]:
    """What `from_pretrained` takes: the number type, transformers' own attention where None, blocks of 4 bits."""
    options: dict[str, Any] = {"dtype": dtype}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if load_in_4bit:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16",
            bnb_4bit_use_double_quant=True,
        )  # fmt: skip
        options["device_map"] = {"": 0}
    return options


def load_to_read(path: str | Path, *, dtype: str = "auto") -> PreTrainedModel:
    """`load_model` in eval mode, on the GPU where there is one, there in bfloat16 unless it is small."""
    return to_read(load_model(path, dtype=frozen_dtype(path, dtype)))


def load_with_adapter(source: str, *, dtype: str = "float32") -> PreTrainedModel:
    """The adapter of a directory on its base, not merged; UserError as `load_model`."""
    try:
        return on_base(load_model(base_of(source), dtype=dtype), source)
    except UserError:
        raise
    except Exception as error:
        raise unreadable(source, error) from error


def to_read(model: PreTrainedModel) -> PreTrainedModel:
    """The model in eval mode, on the GPU where there is one."""
    import torch

    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def load_scorer(
    path: str | Path, *, pad_token_id: int, eos_token_id: int, any_heads: bool = False, dtype: str = "float32",
    attn_implementation: str | None = None, load_in_4bit: bool = False,
) -> PreTrainedModel:  # fmt: skip
    """A sequence classifier with one output (`any_heads`: or several), in float32: a reward model, or the start of one.

    From a causal LM (a checkpoint, an adapter on one, a `.gguf` file) the backbone is taken over and the head is new
    (drawn from torch's generator). A reward model's LoRA adapter directory is merged into its base, with its head.
    Raises UserError as `load_model`, and when the checkpoint's head has more than one output.
    """
    quiet()
    source = model_dir(path)
    options = _options(dtype, attn_implementation, load_in_4bit)
    try:
        if is_adapter(source) and is_scorer(source):
            model = _merged_scorer(source, options, any_heads=any_heads)
        elif is_adapter(source) or is_gguf(source):
            model = _scorer_of(load_model(source, dtype=dtype, attn_implementation=attn_implementation), source)
        else:
            model = _stored_scorer(source, options, any_heads=any_heads)
    except UserError:
        raise
    except Exception as error:
        raise unreadable(source, error) from error
    # A decoder's score is read at the last token that is not padding: the one it was trained with, where it says one.
    trained = any("SequenceClassification" in name for name in model.config.architectures or ())
    if not trained or is_adapter(source) or model.config.get_text_config().pad_token_id is None:
        model.config.pad_token_id = model.config.get_text_config().pad_token_id = pad_token_id
    model.config.eos_token_id = eos_token_id
    return model


def scorer_to_read(
    path: str | Path, *, pad_token_id: int, eos_token_id: int, any_heads: bool = False, dtype: str = "auto"
) -> PreTrainedModel:
    """`load_scorer` in eval mode, on the GPU where there is one, there in bfloat16 unless it is small."""
    held = frozen_dtype(path, dtype)
    return to_read(
        load_scorer(path, pad_token_id=pad_token_id, eos_token_id=eos_token_id, any_heads=any_heads, dtype=held)
    )


def _stored_scorer(
    source: str, options: Mapping[str, Any], *, any_heads: bool = False, outputs: int = 1
) -> PreTrainedModel:
    """A classifier as it was saved; `outputs` of a new head on a backbone that has been none."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(source)
    has_head = any("SequenceClassification" in name for name in config.architectures or ())
    if has_head and config.num_labels != 1 and not any_heads:
        raise UserError(f"{source} is a classifier with {config.num_labels} outputs; a reward model has 1")
    with _no_reports():  # a new head is what we ask for
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source, num_labels=config.num_labels if has_head else outputs, output_loading_info=True, **options
        )
    head = () if has_head else HEADS  # new on a backbone that has been no classifier
    refuse_missing([key for key in report["missing_keys"] if not set(head) & set(key.split("."))], source)
    return model


def _merged_scorer(source: str, options: Mapping[str, Any], *, any_heads: bool) -> PreTrainedModel:
    """Base, adapter and the head that was saved with it; the head that the base would get leaves no trace."""
    import torch

    parts = {name: shape for name, shape in shapes(source).items() if "lora_" not in name}
    heads = [shape for name, shape in parts.items() if set(HEADS[:2]) & set(name.split("."))]
    if not heads:
        raise UserError(f"{source} is a reward model's adapter without its head; save it with modules_to_save: [score]")
    if heads[0][0] != 1 and not any_heads:
        raise UserError(f"{source} is a classifier with {heads[0][0]} outputs; a reward model has 1")
    base = base_of(source)
    with torch.random.fork_rng(devices=[]):
        if is_adapter(base) or is_gguf(base):
            attention = options.get("attn_implementation")
            scorer = _scorer_of(
                load_model(base, dtype=str(options["dtype"]), attn_implementation=attention), base, outputs=heads[0][0]
            )
        else:
            scorer = _stored_scorer(base, options, any_heads=any_heads, outputs=heads[0][0])
    model = merged(scorer, source)
    model.config.architectures = [type(model).__name__]
    return model


def _scorer_of(model: PreTrainedModel, source: str, *, outputs: int = 1) -> PreTrainedModel:
    """A classifier on the backbone of a causal LM in memory, with a new head."""
    import copy

    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(model.config)
    config.num_labels = outputs
    scorer = AutoModelForSequenceClassification.from_config(config, dtype=model.dtype)
    scorer.base_model.load_state_dict(model.base_model.state_dict())
    scorer.config._name_or_path = scorer.name_or_path = source
    return scorer


@contextmanager
def _no_reports() -> Iterator[None]:
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def refuse_missing(names: Iterable[str], source: str) -> None:
    """UserError when the checkpoint lacks weights: transformers would draw them at random with a warning."""
    missing = sorted(names)
    if missing:
        raise UserError(f"{source} lacks {len(missing)} weights of its model ({missing[0]}); save it again, whole")


def unreadable(source: str, error: Exception) -> UserError:
    """A one-line UserError for whatever the loaders of Hugging Face raised about `source`."""
    if not Path(source).exists():
        why = f"{first_line(error)}); check the id and the network, or give a folder or a .gguf file"
        return UserError(f"{source} is no folder here, and the hub did not give it ({why}")
    return UserError(f"no model could be read from {source} ({first_line(error)}); save it again or give another")


def first_line(error: Exception) -> str:
    """Type and first line of an error, at most 200 characters of it."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
