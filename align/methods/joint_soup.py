"""Joint soup (ours): the soup's ingredients trained together, on policy, for every preference that will mix them.

`theta(w) = theta_ref + sum_k w_k D_k` in the linear layers, each prompt of a step at a w of its own, and (`train_all`)
all other weights alike for every w. Rewarded soups (Rame et al. 2023) train the D_k apart, each for its corner, and
hope for the inside; here the inside is trained as well, on the same straight path.
Two ablations. `products: true` adds `4 sum_{j<k} w_j w_k D_jk`, which bends the path between the corners; on the
testbed that was worse after equal steps. `train_all: false` leaves embeddings and norms at the reference's, which was
worse by far: directions in the linear layers alone cannot sharpen what a frozen norm and output say.
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
    """How to train (see conditioned), and what is mixed."""

    products: bool = False
    train_all: bool = True


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> ConditionedFamily:
    """One run for all weights, on samples for the prompts or on the comparisons, as `config.data` says.

    UserError on an impossible configuration or without the rows that it needs.
    """
    adapter = AdapterConfig(
        kind="dense", objectives=len(problem.objectives), products=config.products, train_all=config.train_all
    )
    return conditioned.fit("joint_soup", config, problem, run, adapter=adapter)
