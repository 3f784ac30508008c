"""Panacea (Zhong et al. 2024): one SVD-LoRA adapter whose singular values hold the preference, trained for all weights.

`dW(w) = (alpha / R) U diag(sigma_1..sigma_R, s w_1..s w_K) V^T` in every linear layer, with linear aggregation: the
expected `sum_k w_k` of the objectives' rewards (on policy) or DPO losses (on pairs) over drawn w.
Deviations: their code was not read, and the formulas follow the paper. A preference is drawn for each prompt or pair,
not for each batch (`draw: step` is theirs); on-policy training is TRL's GRPO with the sequence's KL in the reward where
theirs is PPO; Tchebycheff aggregation (of losses) is left to the method chebyshev.
Data: prompts or pairs. Fixed point: the optimum of J (on policy).
"""

from __future__ import annotations

from dataclasses import dataclass

from align.engines import conditioned
from align.engines.problem import Problem
from align.policies.conditioned import AdapterConfig, ConditionedFamily
from align.preferences import Weights
from align.runs import Workspace

ASKED_BY = (Weights,)
FAMILY = ConditionedFamily


@dataclass(frozen=True, kw_only=True)
class Config(conditioned.Config):
    """How to train (see conditioned), and the adapter."""

    rank: int = 8  # R, singular values that do not depend on the preference
    alpha: float = 16.0


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> ConditionedFamily:
    """One adapter for all weights, on samples for the prompts or on the comparisons, as `config.data` says.

    UserError on an impossible configuration or without the rows that it needs.
    """
    adapter = AdapterConfig(
        kind="svd", objectives=len(problem.objectives), rank=config.rank, alpha=config.alpha, train_all=config.train_all
    )
    return conditioned.fit("panacea", config, problem, run, adapter=adapter)
