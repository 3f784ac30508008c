"""Personalised soups (RLPHF, Jang et al. 2023): one specialist per objective, the chosen ones averaged evenly.

A preference chooses the objectives that have weight above 0; how large the weights are is not used, for the paper's
preferences are sets. Deviation from the official code: adapters are merged exactly unless `adapter_merge: factors` asks
for its average of the factors A and B; and any method of this package may train the specialists, where the paper has
PPO on reward models that read the preference as a sentence.
Data: specialists. Fixed point: none; which weights are above 0 is all that counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from align.engines.points import check_preferences
from align.engines.problem import Problem
from align.methods import rewarded_soups
from align.policies.soups import SoupFamily
from align.preferences import Weights
from align.runs import Workspace

ASKED_BY = (Weights,)
FAMILY = SoupFamily


@dataclass(frozen=True, kw_only=True)
class Config(rewarded_soups.Config):
    """The fields of rewarded soups: where the specialists come from, and how adapters are merged."""


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> SoupFamily:
    """An even soup for every set of objectives; UserError as rewarded soups."""
    names = check_preferences(problem)
    parts = rewarded_soups.mergeable(config, problem)
    how = rewarded_soups.merged_how(config)
    claims = {}
    for weights in problem.preferences:
        chosen = ", ".join(name for name, w in zip(names, weights, strict=True) if w > 0)
        claims[weights.label] = f"no J: {how} {parts.origin}, evenly over {chosen}; the sizes of the weights are unused"
    return SoupFamily(
        parts.models,
        run.folder,
        tuple(problem.preferences),
        claims,
        method="personalised_soups",
        adapter_merge=config.adapter_merge,
        uniform=True,
    )
