"""LoRA adapter directories: what they say of themselves, and their weight changes merged into a base in memory."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import UserError
from align.runs import model_dir, write_json

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

ADAPTER_FILE = "adapter_config.json"
BASE_NOTE, RELATIVE = "base.json", "relative"
# Of adapter_config.json: every other setting must be off, for it may change what the factors mean, or the base.
_KEYS_THAT_MERGE = (
    "peft_type", "task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "base_model_name_or_path",
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "lora_dropout", "fan_in_fan_out", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core",
)  # fmt: skip
_STARTS_THAT_MERGE = (True, False, None, "gaussian", "orthogonal", "eva")  # the others (pissa, ...) change the base
_OFF: tuple[object, ...] = (None, False, "none", "", [], {})
EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight", "embed_out.weight")


def is_adapter(source: str | Path) -> bool:
    """Whether a directory is an adapter, which names its base, and no whole model."""
    return (Path(source) / ADAPTER_FILE).is_file()


def base_of(folder: str | Path) -> str:
    """The checkpoint that an adapter directory names as its base; UserError when it names none."""
    file = Path(folder) / ADAPTER_FILE
    base = _settings(file).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{file} names no base model; save the adapter again")
    note = Path(folder) / BASE_NOTE
    if not Path(base).exists() and note.is_file():
        beside = Path(os.path.normpath(Path(folder).resolve() / str(_settings(note).get(RELATIVE))))
        return model_dir(beside if beside.exists() else base)
    return model_dir(base)


def noted_base(base: str, folder: Path) -> str:
    """The full path of a base on this disk, found from any directory; a hub id as it is.

    Where it stands from the adapter in `folder` is noted there, for runs that are moved as a whole.
    """
    if not Path(base).exists():
        return base
    place = Path(base).resolve()
    write_json(folder / BASE_NOTE, {RELATIVE: os.path.relpath(place, folder.resolve())})
    return str(place)


def is_scorer(folder: str | Path) -> bool:
    """Whether an adapter directory is a reward model's (a classifier), by its task."""
    return _settings(Path(folder) / ADAPTER_FILE).get("task_type") == "SEQ_CLS"


def _settings(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} names no base model ({error!r}); save the adapter again") from error
    return content if isinstance(content, dict) else {}


def shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Every tensor of the safetensors files of a directory with its shape; no weights are read."""
    from safetensors import safe_open

    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in list(tensors.keys()):  # the handle itself is no mapping
                found[name] = tuple(tensors.get_slice(name).get_shape())
    return found


def odd_setting(config: Mapping[str, object]) -> str | None:
    """The first setting of an adapter under which its factors are not known to be a weight change of their own."""
    from peft import LoraConfig

    defaults = {f.name: f.default for f in dataclasses.fields(LoraConfig)}
    for key, value in sorted(config.items()):
        known = key in _KEYS_THAT_MERGE or value in _OFF
        if key == "init_lora_weights":
            known = value in _STARTS_THAT_MERGE
        if not known and not (key in defaults and value == defaults[key]):
            return key
    return None


def adds_up(folder: str | Path) -> bool:
    """Whether an adapter directory is nothing but factors beside its base, which it leaves as it is."""
    settings = _settings(Path(folder) / ADAPTER_FILE)
    factors_alone = all("lora_" in name for name in shapes(folder))
    return settings.get("peft_type") == "LORA" and odd_setting(settings) is None and factors_alone


def on_base(base: PreTrainedModel, folder: str) -> PeftModel:
    """The adapter of `folder` on its base in memory; the vocabulary grows where it holds embeddings of more rows.

    UserError where the folder's factors are not those that its config names on this base: PEFT would begin with new
    ones, or leave some out.
    """
    import torch
    from peft import PeftModel, get_peft_model_state_dict

    rows = {shape[0] for name, shape in shapes(folder).items() if name.endswith(EMBEDDINGS) and "lora_" not in name}
    if len(rows) == 1 and rows != {base.get_input_embeddings().weight.shape[0]}:
        base.resize_token_embeddings(rows.pop(), mean_resizing=False)
    with torch.random.fork_rng(devices=[]):  # PEFT draws new factors before it reads the saved ones
        model = PeftModel.from_pretrained(base, folder)
    stored = shapes(folder)
    if stored:
        read = get_peft_model_state_dict(model, save_embedding_layers=False)
        odd = sorted({name for name in read if "lora_" in name} ^ {name for name in stored if "lora_" in name})
        if odd:
            raise UserError(f"{folder}: its weights are not those of its base ({odd[0]}); save the adapter again")
    return model


def merged(base: PreTrainedModel, folder: str) -> PreTrainedModel:
    """`base` with the weight changes of the adapter in `folder` in it, as `folded` makes it."""
    with warnings.catch_warnings():  # PEFT's advice on tied matrices, which is followed here
        warnings.filterwarnings("ignore", message=r"(?s).*tie_word_embeddings")
        plain = folded(on_base(base, folder)).requires_grad_(True)
    plain.config._name_or_path = plain.name_or_path = folder
    return plain


def folded(model: PeftModel) -> PreTrainedModel:
    """The base with the adapter's weight changes in it: the same model as the two side by side.

    Where an adapter changes one of two tied matrices alone, the two are no longer tied.
    """
    _part_tied(model.get_base_model())
    _part_repeated(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*tie_word_embeddings")
        plain = model.merge_and_unload()
    _untie_unlike(plain)
    return plain


def _part_tied(model: PreTrainedModel) -> None:
    """Give a tied output matrix weights of its own where LoRA stands on either side: PEFT would merge into both."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if outputs is None or not any(isinstance(side, BaseTunerLayer) for side in (inputs, outputs)):
        return
    inner, outer = (_plain_layer(side) for side in (inputs, outputs))
    if inner.weight is outer.weight:
        outer.weight = nn.Parameter(outer.weight.detach().clone(), requires_grad=False)


def _part_repeated(model: PeftModel) -> None:
    """Give each layer that `layer_replication` repeats weights of its own: the copies share the base's, and the factors
    of each would be merged into all of them.
    """
    from torch import nn

    if not getattr(model.active_peft_config, "layer_replication", None):
        return
    seen: set[int] = set()
    for layer in next(m for m in model.modules() if isinstance(m, nn.ModuleList)):
        for part in layer.modules():
            for name, weight in list(part.named_parameters(recurse=False)):
                if id(weight) in seen:
                    setattr(part, name, nn.Parameter(weight.detach().clone(), requires_grad=False))
                seen.add(id(weight))


def _plain_layer(layer: nn.Module) -> nn.Module:
    return layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer


def _untie_unlike(model: PreTrainedModel) -> None:
    """Say in the config that two matrices are not tied, where they differ: saved as tied, one would be lost."""
    import torch

    outputs = model.get_output_embeddings()
    if outputs is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    inner, outer = model.get_input_embeddings().weight, outputs.weight
    if inner is not outer and not torch.equal(inner, outer):
        model.config.tie_word_embeddings = False
        text = model.config.get_text_config()
        if getattr(text, "tie_word_embeddings", False):
            text.tie_word_embeddings = False
