"""What the tests of conditioned methods share."""

from __future__ import annotations

from align.policies.tagged import Tags
from align.preferences import Weights
from factories.tiny_bandit import (
    BETA,
)

ONLINE = {
    "beta": BETA, "learning_rate": 2e-3, "batch_size": 64, "pairs": 64, "rounds": 3, "max_completion_length": 1,
    "levels": 10, "logging_steps": 1,
}  # fmt: skip
TAGS = Tags(("one", "two"), tokens=True)
MIDDLE = [Weights((0.5, 0.5))]
