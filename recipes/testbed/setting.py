"""The testbed as a setting: an exact world, its shared stages at a budget, and exact cells for every policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align import checks
from align.errors import UserError
from align.preferences import Weights
from align.runs import Call, Run, planned
from align.testbed.controls import Controls
from align.testbed.world import SHIFTS, World
from recipes.config import option
from recipes.pipeline.inputs import section
from recipes.pipeline.rows import Fit, Row, Settings
from recipes.pipeline.setting import REFERENCE
from recipes.testbed import stages
from recipes.testbed.stages import Corpus, Judged

if TYPE_CHECKING:
    from align.training.pretrain import PretrainConfig
    from align.training.reward_model import RewardModelConfig
    from align.training.sft import SFTConfig_


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sections of a file on what all rows share."""

    model: dict[str, object] = option({}, help="keys of align.models.ModelConfig")
    pretrain: dict[str, object] = option({}, help="documents, and keys of PretrainConfig")
    sft: dict[str, object] = option({}, help="documents, and keys of SFTConfig_")
    comparisons: int = option(3000, help="pairs of reference samples that the annotator judges")
    reward_model: dict[str, object] = option({}, help="keys of RewardModelConfig")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The sizes of the shared stages, and how each is trained at one seed."""

    documents: int
    pretrain: PretrainConfig
    demonstrations: int
    sft: SFTConfig_
    comparisons: int
    reward_model: RewardModelConfig


def budget_of(sizes: Sizes, *, seed: int, where: str) -> Budget:
    """The sections as typed settings; UserError naming `where`, the section and the key."""
    from align.models import ModelConfig
    from align.training.pretrain import PretrainConfig
    from align.training.reward_model import RewardModelConfig
    from align.training.sft import SFTConfig_

    checks.at_least(1, sizes, "comparisons", place=f"{where}: ")
    counts = {}
    for name in ("pretrain", "sft"):
        counts[name] = documents = getattr(sizes, name).get("documents")
        if not isinstance(documents, int) or documents < 1:
            raise UserError(f"{where}: {name}: documents is {documents!r}; give a number of at least 1")
    shape = section(ModelConfig, sizes.model, where=where, name="model")
    pretrain, sft = (
        {key: value for key, value in getattr(sizes, name).items() if key != "documents"} for name in counts
    )
    return Budget(
        documents=counts["pretrain"],
        pretrain=section(PretrainConfig, {**pretrain, "model": shape}, where=where, name="pretrain", seed=seed),
        demonstrations=counts["sft"],
        sft=section(SFTConfig_, sft, where=where, name="sft", seed=seed),
        comparisons=sizes.comparisons,
        reward_model=section(RewardModelConfig, sizes.reward_model, where=where, name="reward_model", seed=seed),
    )


def row_shifts(row: Row) -> tuple[str, ...]:
    """The shifts a row is evaluated under: every true one by default; seen prompts are no shift and must be named."""
    if isinstance(row.shifts, bool):
        return tuple(s for s in SHIFTS if s != "seen_prompts") if row.shifts else ()
    return row.shifts


@dataclass(frozen=True, kw_only=True)
class Testbed:
    """A world, a seed and a budget; experiments differ in what they judge, and where their runs lie.

    `tag` stands behind the names of its calls. home: the held-out prompts that stand for no shift.
    """

    world: World
    seed: int
    out: Path
    budget: Budget
    preferences: tuple[Weights, ...]
    closed: Controls
    tag: str = ""
    home: str = "none"

    @property
    def objectives(self) -> tuple[str, ...]:
        return self.world.objectives

    @property
    def row_keys(self) -> frozenset[str]:
        return frozenset({"rewards", "specialists_of"})

    def folder(self, kind: str) -> Path:
        """Where a shared stage's run lies."""
        return self.out / kind

    def made(self, kind: str) -> Run:
        """A shared stage's run, which may not exist yet."""
        return planned(self.folder(kind))

    def reference(self) -> Sequence[Call]:
        budget, corpus = self.budget, Corpus(self.world)
        first = stages.pretrain.call(
            self.folder("pretrain"), world=corpus, documents=budget.documents, training=budget.pretrain
        )
        second = stages.sft.call(
            self.folder("sft"), world=corpus, source=first.run, documents=budget.demonstrations, training=budget.sft
        )
        return [first.named(f"pretrain{self.tag}"), second.named(f"sft{self.tag}")]

    def comparisons(self) -> Sequence[Call]:
        drawn = stages.comparisons.call(
            self.folder("comparisons"), world=self.world, reference=self.made("sft"), count=self.budget.comparisons,
            seed=self.seed,
        )  # fmt: skip
        return [drawn.named(f"comparisons{self.tag}")]

    def reward_models(self) -> Mapping[str, Call]:
        return {
            name: stages.reward_model.call(
                self.folder(f"reward-model-{name}"), world=self.world, reference=self.made("sft"),
                pairs=self.made("comparisons"), objective=k, training=self.budget.reward_model,
            ).named(f"reward-model-{name}{self.tag}")
            for k, name in enumerate(self.objectives)
        }  # fmt: skip

    def more(self) -> Sequence[Call]:
        return []

    def asked(self, row: Row) -> Sequence[Weights]:
        return self.preferences

    def fixes(self, row: Row) -> Settings:
        c = self.world.config
        return {
            "seed": self.seed, "beta": c.beta, "tau": c.tau, "max_completion_length": c.max_tokens + 1,
            "ideal": (1.0,) * c.objectives,
        }  # fmt: skip

    def fit(self, row: Row, fit: Fit, specialists: Mapping[str, Run]) -> Call:
        label = fit.preferences[0].label if len(fit.preferences) == 1 else "all"
        learned = {name: call.run for name, call in self.reward_models().items()} if row.learned else {}
        call = stages.finetune.call(
            self.out / "methods" / row.folder / label, world=self.world, reference=self.made("sft"), fit=fit,
            pairs=self.made("comparisons"), reward_models=learned, specialists=specialists,
            facts=self.made("facts") if row.asks == "thresholds" else None,
        )  # fmt: skip
        return call.named(f"{row.name} {label}{self.tag}")

    def judge(self, row: Row, policy: Run, weights: Weights) -> Sequence[Call]:
        return [self.cells(row.name, policy, Judged(weights=(weights,), home=self.home), row=row)]

    def cells(self, name: str, policy: Run, judged: Judged, *, row: Row | None = None) -> Call:
        """The exact cells of a policy, or of the reference."""
        label = judged.weights[0].label if len(judged.weights) == 1 else "all"
        call = stages.evaluate.call(
            self.cells_in(name) / label, world=self.world, row=name,
            reference=self.made("sft"), policy=policy, judged=judged,
            facts=self.made("facts") if row is not None and row.asks == "thresholds" else None,
        )  # fmt: skip
        return call.named(f"evaluate {name} {label}{self.tag}")

    def cells_in(self, row: str) -> Path:
        """Where the cells of a row lie."""
        return self.out / "cells" / row.replace("/", "_")

    def closed_form(self, name: str, kind: str, judged: Judged, *, out: Path, call: str) -> Call:
        """The exact cells of a policy in closed form."""
        made = stages.closed_form.call(
            out, world=self.world, row=name, kind=kind, reference=self.made("sft"), judged=judged, options=self.closed
        )
        return made.named(f"{call}{self.tag}")

    def controls(self) -> Mapping[str, Sequence[Call]]:
        return {REFERENCE: [self.cells(REFERENCE, self.made("sft"), Judged(weights=self.preferences, home=self.home))]}
