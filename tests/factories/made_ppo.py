"""What the tests of ppo share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from align.engines.on_policy.rollouts import Rollouts, rollouts
from align.engines.problem import Problem
from align.methods import ppo
from align.preferences import Weights
from align.runs import Ledger, Workspace
from factories.tiny_bandit import (
    OBJECTIVES,
    PROMPTS,
    RL,
    WORDS,
    make_tokenizer,
)

END = WORDS.index("<end>")
SETTINGS = {**RL, "num_generations": 1}


# ------------------------------------------------------------------------------------------- the exact policy gradient


def responses_of(depth: int) -> list[list[int]]:
    """Every response of at most `depth` tokens: it ends at the end token, or is cut."""
    if depth == 1:
        return [[i] for i in range(len(WORDS))]
    return [[END]] + [[i, *rest] for i in range(len(WORDS)) if i != END for rest in responses_of(depth - 1)]


def enumerated(depth: int) -> tuple[Rollouts, list[tuple[str, list[int]]]]:
    """All responses to both prompts as if they had been drawn."""
    pairs = [(prompt, ids) for prompt in PROMPTS for ids in responses_of(depth)]
    tokenizer = make_tokenizer()
    rows = [(tokenizer(prompt)["input_ids"], ids) for prompt, ids in pairs]
    return rollouts(rows, pad_id=tokenizer.pad_token_id, device="cpu"), pairs


def make_trainer(reference: str, *, away: float = 0.1, **changes: Any) -> ppo.Trainer:
    """A trainer whose policy has left its reference, with a value head that knows nothing."""
    config = ppo.Config(**{**SETTINGS, **changes})
    weights = Weights((0.3, 0.7))
    problem = Problem(reference=reference, objectives=OBJECTIVES, preferences=[weights])
    trainer = ppo.Trainer(config, problem, Workspace(Path("unused"), Ledger()), weights=weights)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.actor.policy.parameters():
            parameter += away * torch.randn(parameter.shape, generator=generator)
        for parameter in trainer.actor.head.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    return trainer
