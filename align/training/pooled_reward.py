"""Reward models that are not trained but solved: a linear Bradley-Terry reward on a frozen model's pooled features.

One reading of every pair and a concave maximum (align/functional/bradley_terry.py): seconds where training a reward
model takes minutes, no learning rate, epochs or seed, a prior whose strength the labels themselves choose, and a
posterior, so that rewards can be pessimistic (align/objectives/pooled_reward.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from align.errors import UserError
from align.functional.bradley_terry import STRENGTHS, LinearReward, fit_linear_reward
from align.models import count_parameters, load_tokenizer
from align.models.formats import settle
from align.models.load import load_to_read
from align.objectives.pooled_reward import FEATURES, PooledWeights, pad_of, pooled_features
from align.objectives.scoring import scored_row
from align.runs import Ledger, model_dir
from align.training.reward_model import Rows, checked_pairs

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class PooledConfig:
    """`features`: names of `FEATURES`; `strengths`: precisions of the prior to choose from, at unit spread of features.

    The solve holds (pairs, features) and (features, features) numbers: four features of a model of hidden size 2,048
    are 8,192 columns.
    """

    features: tuple[str, ...] = FEATURES
    strengths: tuple[float, ...] = STRENGTHS
    batch_size: int = 64

    def __post_init__(self) -> None:
        unknown = [name for name in self.features if name not in FEATURES]
        if unknown or not self.features or len(set(self.features)) < len(self.features):
            raise UserError(f"pooled.features is {self.features}; give each of {', '.join(FEATURES)} at most once")
        if not self.strengths or not all(0 < s < float("inf") for s in self.strengths):
            raise UserError(f"pooled.strengths is {self.strengths}; give numbers above 0")


def fit_pooled_reward(
    config: PooledConfig, *, model: str | Path, rows: Rows, out: Path, ledger: Ledger, validation: Rows | None = None
) -> dict[str, object]:
    """Solve for the reward of `prompt`, `chosen`, `rejected` rows and save it in `out`; returns metrics.

    `accuracy` and `log_loss` on `validation` (None without), `train_accuracy`, `strength` and `evidence` (nats a pair)
    of the prior chosen. UserError on rows without the three texts.
    """
    backbone, tokenizer = load_to_read(model), load_tokenizer(model)
    settle(tokenizer, prompts=[str(row["prompt"]) for row in rows], place=str(model))

    def read(pairs: Rows) -> np.ndarray:
        texts = [scored_row(tokenizer, row["prompt"], row[side]) for side in SIDES for row in checked_pairs(pairs)]
        tokens = sum(len(head) + len(tail) for head, tail in texts)
        ledger.add(tokens=tokens, flops=2.0 * tokens * count_parameters(backbone, embeddings=False))
        found = pooled_features(
            backbone, texts, names=config.features, pad_id=pad_of(tokenizer), batch_size=config.batch_size
        )
        return found.double().numpy().reshape(2, len(pairs), -1)

    features_2NF = read(rows)
    centre_F, spread_F = features_2NF.mean((0, 1)), features_2NF.std((0, 1))
    spread_F = np.where(
        spread_F > 1e-8 * np.abs(centre_F).clip(1.0), spread_F, np.inf
    )  # what never varies says nothing
    fit = fit_linear_reward((features_2NF[0] - features_2NF[1]) / spread_F, strengths=config.strengths)
    weights = _in_own_units(fit, centre_F, spread_F, names=config.features, backbone=model_dir(model))
    weights.save(out)
    tested = _quality(read(validation), weights) if validation else {"accuracy": None, "log_loss": None}
    return {
        **tested,
        "train_accuracy": _quality(features_2NF, weights)["accuracy"],
        "strength": fit.strength,
        "evidence": fit.evidence / len(rows),
        "trained_on": len(rows),
    }


def _in_own_units(
    fit: LinearReward, centre_F: np.ndarray, spread_F: np.ndarray, *, names: tuple[str, ...], backbone: str
) -> PooledWeights:
    import torch

    centre, weights, covariance = (
        torch.from_numpy(np.ascontiguousarray(values))
        for values in (centre_F, fit.weights_F / spread_F, fit.covariance_FF / np.outer(spread_F, spread_F))
    )
    place = str(Path(backbone).resolve()) if Path(backbone).is_dir() else backbone
    return PooledWeights(place, names, centre, weights, covariance)


def _quality(features_2NF: np.ndarray, weights: PooledWeights) -> dict[str, float | None]:
    margins_N = (features_2NF[0] - features_2NF[1]) @ weights.weights_F.numpy()
    right = float((margins_N > 0).mean() + 0.5 * (margins_N == 0).mean())
    return {"accuracy": right, "log_loss": float(np.logaddexp(0.0, -margins_N).mean())}
