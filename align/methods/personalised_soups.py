"""Personalised soups (RLPHF, Jang et al. 2023): one specialist per objective, the chosen ones averaged evenly.

A preference chooses the objectives that have weight above 0; how large the weights are is not used, for the paper's
preferences are sets. Deviation from the official code: adapters are merged exactly unless `adapter_merge: factors` asks
for its average of the factors A and B; and any method of this package may train the specialists, where the paper has
PPO on reward models that read the preference as a sentence.
Data: specialists. Fixed point: none; which weights are above 0 is all that counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.data.comparisons import Row
from align.engines.points import check_preferences
from align.methods import rewarded_soups
from align.objectives.metered import Objective
from align.policies.soups import SoupFamily
from align.preferences import Weights
from align.runs import Ledger


@dataclass(frozen=True, kw_only=True)
class Config(rewarded_soups.Config):
    """The fields of rewarded soups: where the specialists come from, and how adapters are merged."""


def fit(
    config: Config,
    *,
    reference: str,
    objectives: Mapping[str, Objective],
    preferences: Sequence[Weights],
    out: Path,
    ledger: Ledger,
    comparisons: Sequence[Row] | None = None,
    prompts: Sequence[Row] | None = None,
) -> SoupFamily:
    """An even soup for every set of objectives; UserError as rewarded soups."""
    names = check_preferences(preferences, objectives=objectives)
    data = {"comparisons": comparisons, "prompts": prompts}
    found = rewarded_soups.mergeable(
        config, reference=reference, objectives=objectives, out=out, ledger=ledger, **data
    )
    how = rewarded_soups.merged_how(config)
    claims = {}
    for weights in preferences:
        chosen = ", ".join(name for name, w in zip(names, weights, strict=True) if w > 0)
        claims[weights.label] = f"no J: {how} {found.origin}, evenly over {chosen}; the sizes of the weights are unused"
    return SoupFamily(
        found.models,
        Path(out),
        tuple(preferences),
        claims,
        method="personalised_soups",
        adapter_merge=config.adapter_merge,
        uniform=True,
    )
