"""Sampling that does not depend on the batch: every row has its own seed, and its own noise at every step.

The Gumbel-max trick: argmax of logits / T plus independent Gumbel noise is an exact draw from softmax(logits / T). The
noise of a row is drawn by a generator seeded for that row alone, so that order, batch size and padding change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class SeededGumbel:
    """A logits processor (the hook of `generate`) that turns greedy decoding into seeded sampling. Logits are B x V."""

    def __init__(self, seeds: Sequence[int], *, temperature: float) -> None:
        import torch

        if temperature <= 0:
            raise ValueError(f"a temperature above 0 is needed to sample, not {temperature}")
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids_BT: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        import torch

        shape = scores_BV.shape[-1:]
        waits_BV = torch.stack([torch.empty(shape).exponential_(generator=g) for g in self.generators])
        gumbel_BV = -torch.log(waits_BV.clamp(min=torch.finfo(waits_BV.dtype).tiny))
        return scores_BV.float() / self.temperature + gumbel_BV.to(scores_BV.device)
