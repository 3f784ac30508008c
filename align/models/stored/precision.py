"""The number type of weights that are only read: bfloat16 on a GPU, float32 on a CPU and for small models."""

from __future__ import annotations

import os
from pathlib import Path

from align.models.stored.adapters import base_of, is_adapter
from align.runs import is_gguf, model_dir

# About 64 million float32 weights. Below, bfloat16 saves nothing, and it would round what exact evaluations compare.
SMALL_BYTES = 2**28


def frozen_dtype(path: str | Path, dtype: str = "auto") -> str:
    """The type that a frozen model of this path is held in, where `dtype` does not say."""
    import torch

    if dtype != "auto":
        return dtype
    if not torch.cuda.is_available() or not torch.cuda.is_bf16_supported() or is_small(path):
        return "float32"
    return "bfloat16"


def trained_dtype(path: str | Path, dtype: str, *, adapter: bool) -> str:
    """The type of a model in training: where only an adapter on it is trained, that of a frozen one."""
    if adapter or dtype != "auto":
        return frozen_dtype(path, dtype)
    return "float32"


def is_small(path: str | Path) -> bool:
    """Whether the weight files of a model on this disk (of an adapter: its base) are small; False for a hub id."""
    source = model_dir(path)
    while is_adapter(source):
        source = base_of(source)
    if is_gguf(source):
        return os.path.getsize(source) < SMALL_BYTES // 4
    files = [*Path(source).glob("*.safetensors"), *Path(source).glob("*.bin")] if Path(source).is_dir() else []
    return bool(files) and sum(file.stat().st_size for file in files) < SMALL_BYTES
