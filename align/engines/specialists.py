"""Specialists: one policy per objective for the methods that combine them, given as directories or trained here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from align.data.comparisons import Row
from align.errors import UserError
from align.objectives.metered import Objective
from align.preferences import Weights
from align.runs import Ledger, model_dir


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where the specialists come from: model directories in the objectives' order, or `method` run at the vertices."""

    specialists: tuple[str, ...] = ()
    method: str = "morlhf"
    method_config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Specialists:
    """One model directory per objective, in words where they come from, and the beta that they were trained at here."""

    models: tuple[str, ...]
    origin: str
    beta: float | None = None


def obtain(
    config: Config,
    *,
    reference: str,
    objectives: Mapping[str, Objective],
    out: Path,
    ledger: Ledger,
    comparisons: Sequence[Row] | None = None,
    prompts: Sequence[Row] | None = None,
) -> Specialists:
    """The configured specialists, or those that `config.method` trains below `out/specialists`, charged to the ledger.

    UserError on a wrong number of specialists, an unknown method, one that trains no model per preference, or an
    unknown key of its config.
    """
    count = len(objectives)
    if config.specialists:
        if len(config.specialists) != count:
            raise UserError(
                f"{len(config.specialists)} specialists for {count} objectives; give one per objective, in order"
            )
        return Specialists(tuple(model_dir(path) for path in config.specialists), "given specialists")
    vertices = [Weights.vertex(k, count) for k in range(count)]
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
    return Specialists(
        tuple(model_dir(family.points[vertex.label]) for vertex in vertices),
        f"specialists trained by {config.method} at the vertices",
        getattr(settings, "beta", None),
    )


def _method_of(config: Config) -> tuple[Any, Any]:
    from align.methods import METHODS

    able = [name for name, module in METHODS.items() if module.fit.__annotations__["return"] == "PointFamily"]
    if config.method not in able:
        raise UserError(f"no method {config.method!r} to train specialists with; choose one of {', '.join(able)}")
    module = METHODS[config.method]
    known = {f.name for f in fields(module.Config)}
    for key in config.method_config:
        if key not in known:
            raise UserError(f"method_config of {config.method} has no key {key!r}, only {', '.join(sorted(known))}")
    return module, module.Config(**config.method_config)
