"""PBLoRA (of PARM, Lin et al. 2025) as a policy adapter: a LoRA whose middle matrix is mixed by the preference.

`dW(w) = (alpha / r2) (B1 W1 A1 + B2 W2(w) A2)` in every linear layer, `W2(w) = sum_k w_k T_k` of r2 x r2.
Deviations: PARM trains an autoregressive reward model with it, on pairs and without a reference, which the method parm
does; here it is the policy itself, on policy or by DPO. Their adapter sits on the attention's q, k and v only, ours on
every linear layer; their Dirichlet(.5) is `concentration: 0.5`, drawn for each prompt or pair, not for each batch.
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

    rank: int = 4  # r1, of the part that does not depend on the preference
    preference_rank: int = 4  # r2
    alpha: float = 8.0


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> ConditionedFamily:
    """One adapter for all weights, on samples for the prompts or on the comparisons, as `config.data` says.

    UserError on an impossible configuration or without the rows that it needs.
    """
    adapter = AdapterConfig(
        kind="pblora",
        objectives=len(problem.objectives),
        rank=config.rank,
        preference_rank=config.preference_rank,
        alpha=config.alpha,
        train_all=config.train_all,
    )
    return conditioned.fit("pblora", config, problem, run, adapter=adapter)
