"""Sampling that does not depend on the batch: every row has its own seed, and its own noise at every step.

The Gumbel-max trick: argmax of logits / T plus independent Gumbel noise is an exact draw from softmax(logits / T). The
noise is a hash of seed, step and token, computed on the logits' device, so that order, batch size, padding and device
change nothing. Legend: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Chris Wellons' lowbias32: multipliers that leave least bias in 32 bits (the second one as a signed integer).
MULTIPLIERS = (0x7FEB352D, 0x846CA68B - 2**32)
SHIFTS = (16, 15, 16)
CACHED = 2**17  # values of noise that a processor keeps close at hand; an accelerator takes all rows at once


def keys(seed: int, step: int) -> tuple[int, int]:
    """Two signed 32-bit numbers for one step of one row."""
    found = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8).digest()
    return int.from_bytes(found[:4], "little", signed=True), int.from_bytes(found[4:], "little", signed=True)


def hashed(tokens_V: torch.Tensor, first_B1: torch.Tensor, second_B1: torch.Tensor) -> torch.Tensor:
    """(B, V) signed 32-bit hashes of token numbers under two keys a row."""
    mixed_BV = tokens_V ^ first_B1
    mixed_BV ^= _right(mixed_BV, SHIFTS[0])
    mixed_BV *= MULTIPLIERS[0]
    mixed_BV += second_B1  # so that no two rows walk through one sequence
    mixed_BV ^= _right(mixed_BV, SHIFTS[1])
    mixed_BV *= MULTIPLIERS[1]
    mixed_BV ^= _right(mixed_BV, SHIFTS[2])
    return mixed_BV


def _right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """A shift to the right that brings in zeros, whatever the sign."""
    return (x >> bits) & (2 ** (32 - bits) - 1)


class SeededGumbel:
    """A logits processor (the hook of `generate`) that turns greedy decoding into seeded sampling."""

    def __init__(self, seeds: Sequence[int], *, temperature: float) -> None:
        if temperature <= 0:
            raise ValueError(f"a temperature above 0 is needed to sample, not {temperature}")
        self.temperature, self.seeds, self.step = temperature, list(seeds), 0

    def __call__(self, input_ids_BT: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        import torch

        rows, size = scores_BV.shape
        step, self.step, device = self.step, self.step + 1, scores_BV.device
        keys_B2 = torch.tensor([keys(seed, step) for seed in self.seeds], dtype=torch.int32, device=device)
        tokens_V = torch.arange(size, dtype=torch.int32, device=device)
        part = max(1, CACHED // size) if device.type == "cpu" else rows
        noisy = scores_BV.float() / self.temperature
        for start in range(0, rows, part):
            chosen_B2 = keys_B2[start : start + part]
            share_BV = hashed(tokens_V, chosen_B2[:, :1], chosen_B2[:, 1:]).bitwise_and_(2**31 - 1).float()
            share_BV.add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
            # Exponential waiting times; most exact where they are small, which is what decides the draw.
            noisy[start : start + part] -= share_BV.neg_().log1p_().neg_().log_()
        return noisy
