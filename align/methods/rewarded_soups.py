"""Rewarded soups (Rame et al. 2023): one specialist per objective, `sum_k w_k theta_k` for any preference.

The merge is exact. Full weights are interpolated tensor by tensor; adapters through the sum of their weight changes
`sum_k w_k s_k B_k A_k` (PEFT "cat": the ranks add up). Averaging the factors A and B instead, as published code does,
is not a soup: at .5/.5 of two independent adapters the change is off by about its own size, so it is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.methods.base import Objective, Row, check_preferences
from align.preferences import Weights
from align.runs import Ledger, model_dir
from align.soups import SoupFamily, check_mergeable


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where the specialists come from: model directories in the objectives' order, or `method` run at the vertices."""

    specialists: tuple[str, ...] = ()
    method: str = "morlhf"
    method_config: Mapping[str, Any] = field(default_factory=dict)
    adapter_merge: str = "cat"  # the exact one; linear, svd and the like are refused


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

    UserError on a wrong number of specialists, an unknown method or an unknown key of its config.
    """
    names = check_preferences(preferences, objectives=objectives)
    if config.adapter_merge != "cat":
        raise UserError(
            f"adapter_merge: {config.adapter_merge} is not a soup: factor averages and truncated ranks change the "
            "merged weights (relative error about 1 and 0.5 at equal weights); use cat"
        )
    specialists = config.specialists
    if not specialists:
        vertices = [Weights.vertex(k, len(names)) for k in range(len(names))]
        module, settings = _method_of(config)
        family = module.fit(
            settings,
            reference=reference,
            objectives=objectives,
            preferences=vertices,
            out=Path(out) / "specialists",
            ledger=ledger,
            comparisons=comparisons,
            prompts=prompts,
        )
        specialists = tuple(family.points[vertex.label] for vertex in vertices)
    if len(specialists) != len(names):
        raise UserError(f"{len(specialists)} specialists for {len(names)} objectives; give one per objective, in order")
    specialists = tuple(model_dir(path) for path in specialists)
    check_mergeable(specialists)
    origin = "given specialists" if config.specialists else f"specialists trained by {config.method} at the vertices"
    claims = {
        w.label: f"no J at w = {w.label}: weights interpolated between {origin}; exact at the vertices only"
        for w in preferences
    }
    return SoupFamily(specialists, Path(out), tuple(preferences), claims)


def _method_of(config: Config) -> tuple[Any, Any]:
    from align.methods import METHODS

    if config.method not in METHODS or config.method == "rewarded_soups":
        raise UserError(f"no method {config.method!r} to train specialists with; choose dpo, morlhf or modpo")
    module = METHODS[config.method]
    known = {f.name for f in fields(module.Config)}
    for key in config.method_config:
        if key not in known:
            raise UserError(f"method_config of {config.method} has no key {key!r}, only {', '.join(sorted(known))}")
    return module, module.Config(**config.method_config)
