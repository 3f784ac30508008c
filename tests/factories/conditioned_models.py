"""Conditioned models away from their start, for the tests of adapters."""

from __future__ import annotations

from typing import Any

import torch

from align.policies import conditioned as adapters
from align.preferences import Weights

ASKED = [Weights((1.0, 0.0)), Weights((0.35, 0.65)), Weights((0.0, 1.0))]


def disturb(model: Any, *, size: float = 0.2, seed: int = 1) -> None:
    """Random values in every trained parameter: adapters start at 0, which would hide every error."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.trained(model).values():
            parameter += size * torch.randn(parameter.shape, generator=generator)
