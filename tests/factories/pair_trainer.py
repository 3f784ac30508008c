"""TRL's DPO trainer as the methods build it, on 16 pairs of the tiny bandit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.data.comparisons import annotated_pairs, row_scores
from align.engines import pairs as pair_training
from align.methods import dpo
from align.preferences import Weights
from factories.tiny_bandit import pair_rows


def pair_trainer(reference: str, folder: Path, **changes: Any) -> Any:
    rows = pair_rows(16)
    config = dpo.Config(**{"beta": 0.5, "labels": "scalarised", "batch_size": 16, "learning_rate": 1e-3, **changes})
    pairs = annotated_pairs(rows, scores=row_scores(rows), weights=Weights((0.5, 0.5)), tau=0.2, seed=0)
    return pair_training.dpo_trainer(pairs, config=config, reference=reference, beta=2.5, folder=folder)
