"""Length-sorted batches with automatic halving when the memory runs out; results come back in the order asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def out_of_memory(error: BaseException) -> bool:
    """Whether the error means that the accelerator's or the machine's memory is full."""
    import torch

    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and (
        "out of memory" in str(error).lower() or "can't allocate memory" in str(error).lower()
    )


class Batcher:
    """Runs a function over lists of indices, longest first, in batches of `size`; a full memory halves it for good."""

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, lengths: Sequence[int], *, work: Callable[[list[int]], Sequence[T]]) -> list[T]:
        """`work(indices) -> one result each`, for all indices of `lengths`; MemoryError when one alone does not fit."""
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        results: list[Any] = [None] * len(lengths)
        start = 0
        while start < len(order):
            chosen = order[start : start + self.size]
            done = self._try(chosen, work)
            if done is None:
                continue  # with half as many
            for i, value in zip(chosen, done, strict=True):
                results[i] = value
            start += len(chosen)
        return results

    def _try(self, chosen: list[int], work: Callable[[list[int]], Sequence[T]]) -> Sequence[T] | None:
        try:
            return work(chosen)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error) or len(chosen) == 1:
                raise
        _free()
        self.size = max(1, len(chosen) // 2)
        return None


def _free() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
