"""What the tests of gradient methods share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback, set_seed

from align.data.comparisons import annotated_pairs, row_scores
from align.engines.gradient_step import ConflictRecord
from align.functional.combine import Combination, coefficients
from align.methods import gradient_dpo, gradient_rl
from align.preferences import Weights
from factories.tiny_bandit import (
    OBJECTIVES,
    PAIRS,
    PROMPTS,
    RL,
    WORDS,
    pair_rows,
    problem_of,
    workspace,
)

DPO = {**PAIRS, "batch_size": 16, "epochs": 1.0, "max_grad_norm": 0.0, "logging_steps": 1}
SHORT = {**RL, "steps": 2, "batch_size": 24, "num_generations": 6, "max_grad_norm": 0.0, "logging_steps": 1}
NAMES = ("one", "two", "three")
THREE = {name: OBJECTIVES["one"] for name in NAMES}  # with scalarised labels only the names are read
W3 = (0.5, 0.2, 0.3)


class Gradients(TrainerCallback):
    """`p.grad` of every weight, flat, as each optimiser step found it."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        flat = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        self.seen.append(torch.cat(flat).double().numpy())


def gradients_of(trainer: Any) -> list[np.ndarray]:
    """The gradients of all optimiser steps of a training run, with draws that depend on the process alone."""
    spy = Gradients()
    trainer.add_callback(spy)
    trainer.remove_callback(PrinterCallback)
    set_seed(trainer.accelerator.process_index)
    trainer.train()
    return spy.seen


def assert_close(found: np.ndarray, expected: np.ndarray, *, share: float = 1e-4) -> None:
    assert np.linalg.norm(found - expected) <= share * np.linalg.norm(expected)


def flat_gradient(loss: Any, model: Any) -> np.ndarray:
    parts = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    return torch.cat([part.flatten() for part in parts]).double().numpy()


def combined(rows_KD: np.ndarray, *, combiner: str, weights: Sequence[float], step: int = 0) -> np.ndarray:
    rng = np.random.default_rng([0, step])
    return coefficients(rows_KD @ rows_KD.T, combiner=combiner, weights=weights, rng=rng) @ rows_KD


# ---------------------------------------------------------------------------------------------------------------- DPO


def conflicting_rows(count: int) -> list[dict[str, Any]]:
    """Comparisons with scores for three objectives, of which the first two mostly want opposite things."""
    rng = np.random.default_rng(0)
    rows = []
    for row in pair_rows(2 * count):
        if row["prompt"] == PROMPTS[0]:
            (a1, a2), (b1, b2) = row["scores_a"], row["scores_b"]
            third = rng.random(2)
            rows.append({**row, "scores_a": [a1, a2, third[0]], "scores_b": [b1, b2, third[1]]})
    return rows


def dpo_trainer(
    reference: str, folder: Path, *, rows: Sequence[Any], weights: Sequence[float] = W3, **changes: Any
) -> tuple[Any, ConflictRecord]:
    config = gradient_dpo.Config(**{**DPO, "batch_size": len(rows), **changes})
    labelled = [
        annotated_pairs(rows, scores=row_scores(rows), weights=Weights.vertex(k, 3), tau=config.tau, seed=0)
        for k in range(3)
        if weights[k]
    ]
    combination = Combination(
        config.combiner, tuple(w for w in weights if w), tuple(n for n, w in zip(NAMES, weights, strict=True) if w)
    )
    return gradient_dpo.build_trainer(
        labelled, combination=combination, config=config, reference=reference, folder=folder
    )


def word_logp(model: Any, prompt: str, words: Sequence[str]) -> Any:
    """Log-probability of words after a prompt, by one forward pass without padding."""
    head, tail = [WORDS.index(w) for w in prompt.split()], [WORDS.index(w) for w in words]
    logp = model(input_ids=torch.tensor([head + tail])).logits[0].log_softmax(-1)
    return sum(logp[len(head) - 1 + i, word] for i, word in enumerate(tail))


# ----------------------------------------------------------------------------------------------------------------- RL


def rl_trainer(
    reference: str, folder: Path, *, objectives: Any = OBJECTIVES, weights: Sequence[float] = (0.3, 0.7), **changes: Any
) -> tuple[Any, ConflictRecord]:
    config = gradient_rl.Config(**{**SHORT, **changes})
    asked = {name: w for name, w in zip(objectives, weights, strict=True) if w}
    combination = Combination(config.combiner, tuple(asked.values()), tuple(asked))
    problem = problem_of(reference, objectives=objectives)
    return gradient_rl.build_trainer(config, problem, workspace(folder), combination=combination)
