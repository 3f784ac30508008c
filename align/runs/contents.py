"""What files hold, as hashes: a model folder that no stage made is known by its contents, not by its path."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from align.runs.reading import is_gguf

# Weights, configs, and the tokenizer that decides which ids a model is trained on.
MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.model")


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's bytes, read once per process while its size and time of change stay what they are."""
    stamp = path.stat()
    return _digest(path.absolute(), stamp.st_size, stamp.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _digest(path: Path, size: int, mtime_ns: int) -> bytes:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


def model_contents(folder: Path) -> str | None:
    """16 hex digits of the names and bytes of a model's files, in `folder` or its `model/`; None without such files.

    A `.gguf` file is known by its bytes.
    """
    if is_gguf(folder):
        return file_digest(folder).hex()[:16]
    folder = folder / "model" if (folder / "model").is_dir() else folder
    matching = {file for pattern in MODEL_FILES for file in folder.glob(pattern)}
    files = sorted(file for file in matching if file.is_file() and not file.name.startswith("."))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file_digest(file))
    return digest.hexdigest()[:16] if files else None
