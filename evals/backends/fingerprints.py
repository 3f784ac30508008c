"""Fingerprints of models in memory: weights, config, tokenizer and prompt format; whatever changes an answer is there.

Where a model lies, what dtype it was saved in and how its tokenizer pads are not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from align.models.chat import DATE
from evals.items import Json, digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from align.models.backbones import View
    from align.models.formats import PromptFormat

# Keys of a config that change no logit. Special tokens come with the prompt format; labels, dropout are for training.
SILENT = {
    "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "auto_map",
    "attn_implementation", "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "return_dict",
    "output_attentions", "output_hidden_states", "id2label", "label2id", "problem_type", "task_specific_params",
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "initializer_range",
    "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "chunk_size_feed_forward",
}  # fmt: skip
# The same of an adapter's config; what it scales its weights with is read from its layers.
SILENT_ADAPTER = {
    "base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "task_type",
    "init_lora_weights", "lora_dropout", "runtime_config", "eva_config", "corda_config", "loftq_config",
    "target_modules", "exclude_modules", "modules_to_save",
}  # fmt: skip


def model_fingerprint(model: PreTrainedModel | View) -> str:
    """First 16 hex digits over weights, the config that decides what they compute, and the scales of adapters."""
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        return digest(weights_fingerprint(model), config_of(model), list(scales(model)))[:16]
    inner, others = backbone.peft or backbone.model, {*backbone.adapters.values()} - {model.adapter}
    weights, config = weights_fingerprint(inner, others=others), config_of(inner, others=others)
    return digest(weights, config, list(scales(inner, others=others)), model.adapter is None)[:16]


def weights_fingerprint(model: PreTrainedModel, *, others: Collection[str] = ()) -> str:
    """First 16 hex digits of the SHA-256 over every parameter and buffer of the state: name, type, shape, bytes.

    Weights of the `others` among a model's adapters are left out.
    """
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not set(name.split(".")).isdisjoint(others):
            continue
        if not isinstance(tensor, torch.Tensor):
            total.update(f"{name}={tensor!r}".encode())
            continue
        flat = tensor.detach().contiguous().cpu()
        total.update(f"{name}|{flat.dtype}|{tuple(flat.shape)}|".encode())
        total.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return total.hexdigest()[:16]


def config_of(model: PreTrainedModel, *, others: Collection[str] = ()) -> Json:
    """What of a model's config, and of its adapters' configs, changes what it answers (rope, eps, activation, ...)."""
    own = _plain(model.config.to_dict() if hasattr(model, "config") else {}, SILENT)
    adapters = getattr(model, "peft_config", None) or {}
    kept = {name: adapter for name, adapter in adapters.items() if name not in others}
    return {"model": own, "adapters": {name: _plain(a.to_dict(), SILENT_ADAPTER) for name, a in kept.items()}}


def scales(model: PreTrainedModel, *, others: Collection[str] = ()) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """(Layer, what each adapter's update is multiplied with) of the layers that have adapters."""
    for name, module in model.named_modules():
        found = getattr(module, "scaling", None)
        if isinstance(found, dict):
            yield name, sorted((adapter, float(scale)) for adapter, scale in found.items() if adapter not in others)


def _plain(content: Json, silent: set[str]) -> Json:
    kept = {key: value for key, value in content.items() if key not in silent}
    loaded: Json = json.loads(json.dumps(kept, sort_keys=True, default=_written))
    return {key: _plain(value, silent) if isinstance(value, dict) else value for key, value in loaded.items()}


def _written(value: object) -> object:
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """First 16 hex digits over the vocabulary, the merges and rules, the special tokens and the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = sorted(tokenizer.get_vocab().items()) if backend is None else json.loads(backend.to_str())
    if isinstance(rules, dict):
        rules |= {"padding": None, "truncation": None}  # what the last call asked for
    special = {name: str(value) for name, value in sorted(tokenizer.special_tokens_map.items())}
    return digest(rules, special, str(getattr(tokenizer, "chat_template", None)))[:16]


def format_fingerprint(fmt: PromptFormat) -> str:
    """First 16 hex digits over template, start token, what ends an answer, the template's arguments and its date."""
    kwargs = {"date": DATE, **fmt.chat_kwargs} if fmt.template == "chat" else {}
    return digest(fmt.template, fmt.start, fmt.end, sorted(fmt.ends), kwargs)[:16]
