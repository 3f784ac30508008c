"""What the tests of kto share."""

from __future__ import annotations

import math
from typing import Any

from align.policies.base import ModelPolicy
from align.preferences import Weights
from factories.tiny_bandit import (
    RESPONSES,
)

BOTH = Weights((0.3, 0.7))
FEW: dict[str, Any] = {"beta": 0.5, "learning_rate": 3e-3, "batch_size": 16}


def four(model: str, prompt: str) -> list[float]:
    """Probabilities of the responses A, B, C, D with their end, among these four."""
    logp = ModelPolicy(model).sequence_logprobs([prompt] * 4, [f" {word}" for word in RESPONSES])
    mass = [math.exp(x) for x in logp]
    return [m / sum(mass) for m in mass]
