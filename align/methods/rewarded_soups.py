"""Rewarded soups (Rame et al. 2023): one specialist per objective, `sum_k w_k theta_k` for any preference.

Full weights are interpolated tensor by tensor, adapters through the sum of their weight changes
`sum_k w_k s_k B_k A_k`. Deviation from the official code: that averages the adapters' factors A and B, which is another
model (at .5/.5 of two independent adapters the change is off by about its own size); `adapter_merge: factors` does the
same, so that the loss can be measured.
Data: specialists. Fixed point: none inside the simplex.
"""

from __future__ import annotations

from dataclasses import dataclass

from align.engines import specialists
from align.engines.points import check_preferences
from align.engines.problem import Problem, Specialists
from align.errors import UserError
from align.policies.merging import check_adapter_merge, check_mergeable
from align.policies.soups import SoupFamily
from align.preferences import Weights
from align.runs import Workspace

ASKED_BY = (Weights,)
FAMILY = SoupFamily


@dataclass(frozen=True, kw_only=True)
class Config(specialists.Config):
    """Where the specialists come from, and how adapters are merged (nothing to choose for full models)."""

    adapter_merge: str = "exact"  # exact, full (the same as a full checkpoint), or factors: see align.policies.soups

    def check(self, *, objectives: int) -> None:
        """UserError on what can be known to be no merge before any specialist is trained."""
        super().check(objectives=objectives)
        check_adapter_merge(self.adapter_merge)
        if self.adapter_merge == "factors" and not self.specialists and not self.method_config.get("lora_r"):
            raise UserError("adapter_merge: factors averages adapters; set method_config.lora_r, or use exact")


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> SoupFamily:
    """A soup of one specialist per objective. It lists the problem's preferences, and answers any other, too.

    UserError as `mergeable`.
    """
    check_preferences(problem)
    parts = mergeable(config, problem)
    claims = {
        w.label: f"no J at w = {w.label}: {merged_how(config)} {parts.origin}; exact at the vertices only"
        for w in problem.preferences
    }
    return SoupFamily(parts.models, run.folder, tuple(problem.preferences), claims, adapter_merge=config.adapter_merge)


def mergeable(config: Config, problem: Problem[Weights]) -> Specialists:
    """The specialists; UserError when there are none, or they cannot be merged as `config` says."""
    config.check(objectives=len(problem.objectives))
    parts = specialists.specialists_of(config, problem)
    check_mergeable(parts.models, adapter_merge=config.adapter_merge)
    return parts


def merged_how(config: Config) -> str:
    """In words, what the merged model is."""
    return "LoRA factors averaged between" if config.adapter_merge == "factors" else "weights interpolated between"
