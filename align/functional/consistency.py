"""Consistency of two prompts that ask the same: the tokens that both end with, and the distance of their states.

Irpan, Turner et al. 2025 (arXiv 2510.27062). Legend: L layers, B pairs of prompts, P positions, H hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def common_suffix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences end with alike: the positions at which their activations can be compared."""
    count = 0
    for a, b in zip(reversed(first), reversed(second), strict=False):
        if a != b:
            break
        count += 1
    return count


def activation_distance(states_LBPH: Tensor, targets_LBPH: Tensor, *, counts_B: Tensor) -> Tensor:
    """(B,) `mean over layers and positions of |h - target|^2` (ACT), over the last `counts_B` positions of each pair.

    ValueError where a count is below 1 or above P, or the shapes differ.
    """
    import torch

    if states_LBPH.shape != targets_LBPH.shape:
        raise ValueError(f"states {tuple(states_LBPH.shape)} and targets {tuple(targets_LBPH.shape)} differ in shape")
    width = states_LBPH.shape[2]
    if bool((counts_B < 1).any()) or bool((counts_B > width).any()):
        raise ValueError(f"counts must lie in 1 to {width}, not {counts_B.tolist()}")
    from_end_P = torch.arange(width, 0, -1, device=counts_B.device)
    kept_BP = (from_end_P <= counts_B[:, None]).to(states_LBPH.dtype)
    squared_BP = (states_LBPH - targets_LBPH).square().sum(-1).mean(0)
    return (squared_BP * kept_BP).sum(-1) / counts_B


def carried_states(plain_LBPH: Tensor, *, reference_plain_LBPH: Tensor, reference_shifted_LBPH: Tensor) -> Tensor:
    """`h_ref(s) + (h_pi(x) - h_ref(x))`: what training changed at the plain prompt, added to the
    reference's state at the shifted one. It is to states what the transported policy
    `ref_s pi_id / ref_id` is to distributions (align/functional/parts.py).
    """
    return reference_shifted_LBPH + (plain_LBPH - reference_plain_LBPH)
