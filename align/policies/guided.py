"""A base model guided token by token by one reward model that is conditioned on the preference: the family of policies.

The reward model is a conditioned adapter, merged into a plain checkpoint for each preference that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.models.backbones import ModelPool
from align.policies.base import found_model, shared_fields, stored_model, write_family
from align.policies.conditioned import ConditionedFamily
from align.policies.mixed import MixedPolicy, Mixture
from align.preferences import Preference


@dataclass(frozen=True)
class GuidedFamily:
    """`log pi = log base + gain log arm(. | w)`, normalised per token; `arms` gives the reward model at each w."""

    base: str
    arms: ConditionedFamily
    gain: float
    preferences: tuple[Preference, ...] = ()
    optimises: dict[str, str] = field(default_factory=dict)
    point_cost: str = "decode"
    pool: ModelPool = field(default_factory=ModelPool, compare=False, repr=False)

    @property
    def method(self) -> str:
        return self.arms.method

    @property
    def domain(self) -> str:
        return self.arms.domain

    def policy(self, preference: Preference) -> MixedPolicy:
        """The guided base at `preference`; UserError for anything but K weights."""
        arm = self.arms.policy(preference)
        return MixedPolicy((self.base, arm.path), mixture=Mixture((1.0, self.gain)), name=arm.name, pool=self.pool)

    def save(self, folder: Path) -> None:
        """Write `family.json`; models below `folder` are stored relative to it."""
        write_family(
            self,
            folder,
            kind="guided",
            base=stored_model(self.base, folder),
            adapter=stored_model(self.arms.adapter, folder),
            start=stored_model(self.arms.base, folder),
            objectives=self.arms.objectives,
            gain=self.gain,
        )

    @classmethod
    def from_json(cls, folder: Path, content: Mapping[str, Any]) -> GuidedFamily:
        """The family that `save` wrote into `folder`."""
        shared = shared_fields(content)
        arms = ConditionedFamily(
            method=shared.pop("method"),
            adapter=found_model(content["adapter"], folder),
            base=found_model(content["start"], folder),
            objectives=content["objectives"],
            folder=Path(folder),
        )
        return cls(**shared, base=found_model(content["base"], folder), arms=arms, gain=content["gain"])
