"""A `.gguf` file (the format of llama.cpp) as model and tokenizer: its blocks unpacked into ordinary dense weights.

What a file holds decides: weights, tokenizer, chat template and special tokens. Unpacked weights are those of the
quantised model, not of the checkpoint that it was made from. Reading takes the optional package `gguf`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def gguf_model(file: str | Path, *, dtype: str = "float32") -> PreTrainedModel:
    """The causal LM of a `.gguf` file, dense in `dtype`; UserError without the package `gguf`."""
    import transformers

    _require_reader(file)
    # Newer versions keep the blocks packed where a kernel is installed, which cannot be trained or saved.
    packing = getattr(transformers, "GgufConfig", None)
    unpack = {} if packing is None else {"quantization_config": packing(dequantize=True)}
    place = Path(file)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(place.parent), gguf_file=place.name, dtype=dtype, **unpack
    )
    # The weights are dense now, but the model still says that it is quantised: Trainer and save_pretrained refuse that.
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    model.config.name_or_path = model.name_or_path = str(place)
    return model


def gguf_tokenizer(file: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a `.gguf` file with its chat template; UserError without the package `gguf`."""
    from transformers import AutoTokenizer

    _require_reader(file)
    place = Path(file)
    tokenizer = AutoTokenizer.from_pretrained(str(place.parent), gguf_file=place.name)
    tokenizer.name_or_path = str(place)
    return tokenizer


def _require_reader(file: str | Path) -> None:
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise UserError(f"{file} is read with the package gguf; pip install gguf")
