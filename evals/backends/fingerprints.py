"""Fingerprints of models in memory: weights, tokenizer and prompt format, so that a re-trained model is another one."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from evals.items import digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def weights_fingerprint(model: PreTrainedModel) -> str:
    """First 16 hex digits of the SHA-256 over every parameter and buffer of the state: name, type, shape, bytes."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            total.update(f"{name}={tensor!r}".encode())
            continue
        flat = tensor.detach().contiguous().cpu()
        total.update(f"{name}|{flat.dtype}|{tuple(flat.shape)}|".encode())
        total.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return total.hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """First 16 hex digits over the vocabulary, the merges and rules, the special tokens and the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    special = {name: str(value) for name, value in sorted(tokenizer.special_tokens_map.items())}
    return digest(rules, special, str(getattr(tokenizer, "chat_template", None)))[:16]
