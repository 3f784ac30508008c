"""Rewarded soups (Rame et al. 2023): one specialist per objective, `sum_k w_k theta_k` for any preference.

Full weights are interpolated tensor by tensor, adapters through the sum of their weight changes
`sum_k w_k s_k B_k A_k`. Deviation from the official code: that averages the adapters' factors A and B, which is another
model (at .5/.5 of two independent adapters the change is off by about its own size); `adapter_merge: factors` does the
same, so that the loss can be measured.
Data: specialists. Fixed point: none inside the simplex.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.data.comparisons import Row
from align.engines import specialists
from align.engines.points import check_preferences
from align.errors import UserError
from align.objectives.metered import Objective
from align.policies.soups import SoupFamily, check_adapter_merge, check_mergeable
from align.preferences import Weights
from align.runs import Ledger


@dataclass(frozen=True, kw_only=True)
class Config(specialists.Config):
    """Where the specialists come from, and how adapters are merged (nothing to choose for full models)."""

    adapter_merge: str = "exact"  # exact, full (the same as a full checkpoint), or factors: see align.policies.soups


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
    """A soup of one specialist per objective. `preferences` are what the family lists; it answers any other, too.

    UserError as `mergeable`.
    """
    check_preferences(preferences, objectives=objectives)
    data = {"comparisons": comparisons, "prompts": prompts}
    found = mergeable(config, reference=reference, objectives=objectives, out=out, ledger=ledger, **data)
    claims = {
        w.label: f"no J at w = {w.label}: {merged_how(config)} {found.origin}; exact at the vertices only"
        for w in preferences
    }
    return SoupFamily(found.models, Path(out), tuple(preferences), claims, adapter_merge=config.adapter_merge)


def mergeable(config: Config, **data: Any) -> specialists.Specialists:
    """The specialists as `specialists.obtain` finds or trains them; UserError when they cannot be merged as asked.

    What can be known of that before anything is trained is told before.
    """
    check_adapter_merge(config.adapter_merge)
    if config.adapter_merge == "factors" and not config.specialists and not config.method_config.get("lora_r"):
        raise UserError("adapter_merge: factors averages adapters; set method_config.lora_r, or use exact")
    found = specialists.obtain(config, **data)
    check_mergeable(found.models, adapter_merge=config.adapter_merge)
    return found


def merged_how(config: Config) -> str:
    """In words, what the merged model is."""
    return "LoRA factors averaged between" if config.adapter_merge == "factors" else "weights interpolated between"
