"""Objectives as a library: callables in the shape of TRL's reward functions, light to import, higher is better.

from align.objectives import Length, RewardModelObjective
trainer = GRPOTrainer(model, reward_funcs=[RewardModelObjective("runs/helpful"), Length("word")], ...)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from align.errors import UserError
from align.objectives.base import Negated, Objective, check_names
from align.objectives.ensemble import Ensemble
from align.objectives.implicit import ImplicitReward
from align.objectives.normalizers import (
    NoNormalizer,
    Normalized,
    Normalizer,
    Quantile,
    ZScore,
    fit_normalizer,
    load_normalizer,
    save_normalizer,
)
from align.objectives.pooled_reward import PooledReward, learned_reward
from align.objectives.reward_model import RewardModelObjective
from align.objectives.rules import Keywords, Length, Pattern
from align.objectives.shared_reward_model import SharedRewardModel

# A new objective is one file and one line here.
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "reward_model": RewardModelObjective,
    "shared_reward_model": SharedRewardModel,
    "pooled_reward": PooledReward,
    "implicit": ImplicitReward,
    "length": Length,
    "keywords": Keywords,
    "pattern": Pattern,
}

__all__ = [
    "OBJECTIVES",
    "Ensemble",
    "ImplicitReward",
    "Keywords",
    "Length",
    "Negated",
    "NoNormalizer",
    "Normalized",
    "Normalizer",
    "Objective",
    "Pattern",
    "PooledReward",
    "Quantile",
    "RewardModelObjective",
    "SharedRewardModel",
    "ZScore",
    "build_objective",
    "check_names",
    "fit_normalizer",
    "learned_reward",
    "load_normalizer",
    "save_normalizer",
]


def build_objective(spec: Mapping[str, Any]) -> Objective:
    """An objective from a config entry: `{"kind": "length", "per": "word", "longer_is_better": false, ...}`.

    `negate: true` turns the sign; `normalizer: <file>` applies a saved normalizer, after the sign. Raises UserError on
    an unknown kind or key, or a missing one.
    """
    options = dict(spec)
    kind = options.pop("kind", None)
    negate = options.pop("negate", False)
    normalizer = options.pop("normalizer", None)
    if kind not in OBJECTIVES:
        raise UserError(f"objective kind {kind!r} is not one of {', '.join(OBJECTIVES)}")
    make = OBJECTIVES[kind]
    known = inspect.signature(make).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(f"objective {kind!r} has no option {unknown[0]!r}; it takes {', '.join(known)}")
    missing = [n for n, p in known.items() if p.default is inspect.Parameter.empty and n not in options]
    if missing:
        raise UserError(f"objective {kind!r} needs {missing[0]!r}")
    if not isinstance(options.get("name", ""), str):
        raise UserError(f"objective {kind!r} has the name {options['name']!r}; put it in quotes")
    try:
        objective = make(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"objective {kind!r} has an option of the wrong type ({error}); fix it") from error
    if negate:
        objective = Negated(objective, name=options.get("name"))
    return objective if normalizer is None else Normalized(objective, load_normalizer(normalizer))
