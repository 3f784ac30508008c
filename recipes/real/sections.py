"""The sections of the hh recipe's config, checked before any work: an unknown key or a wrong type is told at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from align.errors import UserError
from recipes.config import build


@dataclass(frozen=True, kw_only=True)
class Rows:
    """`limit` rows per source; `text` files relative to --data, cut into pieces of `piece` characters."""

    limit: int | None
    text: list[str]
    piece: int
    validation: float
    validation_texts: int
    parts: dict[str, float]
    cleaning: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Reference samples: two for each of `prompts` training prompts."""

    prompts: int
    max_new_tokens: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Controls:
    """`n` of best-of-n; `overspend` times the distance of `overspender_of` from the reference; at `preferences`."""

    n: int
    overspend: float
    overspender_of: str
    preferences: list[str]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table; runs: points trains once per preference, family once for all of them."""

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    specialists_of: str | None = None
    runs: str = "points"


def check(config: Any, *, where: str) -> None:
    """UserError naming `where`, the section and the key for anything that its stage could not read."""
    from align.data import CleanConfig
    from align.methods import METHODS
    from align.models import ModelConfig
    from align.training.pretrain import PretrainConfig
    from align.training.reward_model import RewardModelConfig
    from align.training.sft import SFTConfig_
    from recipes.pipeline.sampling import Sampling
    from recipes.real.data import PARTS

    rows = build(Rows, config.rows, where=f"{where}: rows")
    if set(rows.parts) != set(PARTS):
        raise UserError(f"{where}: rows: parts are {', '.join(rows.parts)}; give shares of {', '.join(PARTS)}")
    if rows.piece < 1 or rows.validation_texts < 1 or not 0 < rows.validation < 1:
        raise UserError(f"{where}: rows: piece and validation_texts must be at least 1, validation between 0 and 1")
    build(CleanConfig, rows.cleaning, where=f"{where}: rows: cleaning")
    build(Pairs, config.pairs, where=f"{where}: pairs")
    build(Controls, config.controls, where=f"{where}: controls")
    build(ModelConfig, config.architecture, where=f"{where}: architecture")
    build(PretrainConfig, _without(config.pretrain), where=f"{where}: pretrain")
    build(SFTConfig_, _without(config.sft, "demonstrations", where=f"{where}: sft"), where=f"{where}: sft")
    training = _without(config.reward_model, "pairs", where=f"{where}: reward_model")
    build(RewardModelConfig, training, where=f"{where}: reward_model")
    build(Sampling, config.sampling, where=f"{where}: sampling")
    for name, values in config.methods.items():
        row = build(Row, values, where=f"{where}: methods: {name}")
        if row.method not in METHODS:
            raise UserError(f"{where}: methods: {name}: no method {row.method!r}; choose from {', '.join(METHODS)}")
        if row.runs not in ("points", "family"):
            raise UserError(f"{where}: methods: {name}: runs must be points or family, not {row.runs!r}")
        build(METHODS[row.method].Config, row.settings, where=f"{where}: methods: {name}: settings")


def _without(values: Mapping[str, Any], own: str | None = None, *, where: str = "") -> dict[str, Any]:
    """The section without the recipe's own key, which must be there."""
    if own is not None and own not in values:
        raise UserError(f"{where}: {own} is missing; give a number")
    return {key: value for key, value in values.items() if key != own}
