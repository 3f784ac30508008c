"""The planted models: their file, and the testbed with one of its references, whose policies are probed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from align import checks
from align.errors import UserError
from align.preferences import Weights
from align.runs import Call, Run
from align.testbed.controls import Controls
from align.testbed.corpus import WriterConfig
from align.testbed.world import load_world
from recipes.config import build, option
from recipes.pipeline.plan import Plan, plan
from recipes.pipeline.rows import Fit, Row, read_rows
from recipes.testbed import planted_stages as own_stages
from recipes.testbed import stages
from recipes.testbed.planted_stages import Drawn
from recipes.testbed.setting import Sizes, Testbed, budget_of


@dataclass(frozen=True, kw_only=True)
class Config(Sizes):
    seeds: tuple[int, ...] = option((), help="training seeds (default: development and fresh ones)")
    world: str = option("default", help="a world of align.testbed.world.WORLDS")
    out: str = option("runs/planted", help="run directory")
    workers: int = option(2, help="worker processes of one thread each; 0 runs everything in this process")
    minutes: float | None = option(None, help="start no new stage after so many minutes")
    development: tuple[int, ...] = option((), help="seeds on which bounds may be calibrated")
    fresh: tuple[int, ...] = option((), help="seeds that nothing was chosen on")
    samples: int = option(64, help="judged responses per prompt")
    references: dict[str, object] = option({}, help="name -> pulled, coded, documents, demonstrations")
    plants: dict[str, object] = option({}, help="name -> method, weights, and optional keys")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A model that plants start from: how far the prefix pulls its text, and how much of that is in the second spelling
    (`WriterConfig`'s `pulled` and `coded`).
    """

    pulled: float = 1.0
    coded: float = 1.0
    documents: int | None = None
    demonstrations: int | None = None

    @property
    def writer(self) -> WriterConfig:
        return WriterConfig(pulled=self.pulled, coded=self.coded)


@dataclass(frozen=True, kw_only=True)
class Plant(Row):
    """One model, trained on each of the references.

    covers: share of the fine-tuning topics that come in the second spelling, too. temperature: of the judged responses.
    sampled: whether the benchmark also estimates its parts from samples.
    """

    weights: str
    covers: float = 0.0
    temperature: float = 1.0
    sampled: bool = False

    @property
    def spellings(self) -> tuple[int, ...]:
        """Those of its fine-tuning prompts."""
        return (0, 1) if self.covers else (0,)


def causes(about: Reference, plant: Plant) -> dict[str, str]:
    """Split -> what was planted there, by construction and however weak.

    A pull of the prefix (competing), a spelling that fine-tuning does not cover whole (mismatched) or that the text
    hardly taught (capability), or nothing (neither). A half-read spelling that fine-tuning leaves out, too, has two
    causes that no region names: such a case is left out.
    """
    pulled, missed = about.pulled > 0, plant.covers < 1
    found = {"compliance": "competing" if pulled else "neither"}
    if about.coded < 1:
        unread = about.coded == 0 or not missed
        return found | (dict.fromkeys(("cipher", "cipher_compliance"), "capability") if unread else {})
    found["cipher"] = "mismatched" if missed else "neither"
    both = {(True, True): "both", (True, False): "competing", (False, True): "mismatched"}
    return found | {"cipher_compliance": both.get((pulled, missed), "neither")}


def read_plants(config: Config, *, where: str) -> tuple[dict[str, Reference], tuple[Plant, ...]]:
    """The references and plants of the file; UserError on one that cannot be trained, before anything runs."""
    checks.at_least(1, config, "samples", place=f"{where}: ")
    checks.at_least(0, config, "workers", "minutes", place=f"{where}: ")
    if not config.plants or not config.references:
        raise UserError(f"{where}: references and plants are empty; start from recipes/configs/planted.yaml")
    references = {
        name: build(Reference, values, where=f"{where}: references: {name}")
        for name, values in config.references.items()
    }
    plants = read_rows(config.plants, where=where, kind=Plant, name="plants")
    for plant in plants:
        place = f"{where}: plants: {plant.name}"
        Weights.parse(plant.weights)
        if not 0 <= plant.covers <= 1:
            raise UserError(f"{place}: covers is {plant.covers}; give a share from 0 to 1")
    for name, about in references.items():
        if not (0 <= about.pulled <= 1 and 0 <= about.coded <= 1):
            raise UserError(f"{where}: references: {name}: pulled and coded are shares from 0 to 1")
    return references, plants


@dataclass(frozen=True, kw_only=True)
class Planted(Testbed):
    """The testbed at one seed, on one of the references; its rows are the plants that start from that."""

    name: str
    about: Reference
    samples: int

    @property
    def row_keys(self) -> frozenset[str]:
        return frozenset({"weights", "covers", "temperature", "sampled"})

    def folder(self, kind: str) -> Path:
        return self.out / f"{self.name}-{kind}"

    def reference(self) -> Sequence[Call]:
        calls = [
            dataclasses.replace(call, arguments={**call.arguments, "writer": self.about.writer})
            for call in super().reference()
        ]
        both = own_stages.two_spellings.call(self.folder("sft-two-spellings"), reference=self.made("sft"))
        return [*calls, both.named(f"two spellings{self.tag}")]

    def asked(self, row: Row) -> Sequence[Weights]:
        return (Weights.parse(_plant(row).weights),)

    def base_of(self, plant: Plant) -> Run:
        """The reference of a plant: one that answers in both spellings where its training covers both."""
        return self.made("sft-two-spellings" if plant.covers else "sft")

    def fit(self, row: Row, fit: Fit, specialists: Mapping[str, Run]) -> Call:
        plant = _plant(row)
        spellings = plant.spellings if plant.covers else ()
        call = stages.finetune.call(
            self.folder("plants") / row.folder, world=self.world, reference=self.base_of(plant),
            fit=dataclasses.replace(fit, spellings=spellings, covers=plant.covers or 1.0),
            pairs=self.made("comparisons"),
        )  # fmt: skip
        return call.named(f"{row.name}{self.tag}")

    def judge(self, row: Row, policy: Run, weights: Weights) -> Sequence[Call]:
        plant = _plant(row)
        call = own_stages.probes.call(
            self.folder("probes") / row.folder, world=self.world, reference=self.base_of(plant), policy=policy,
            weights=weights, spellings=plant.spellings, covers=plant.covers,
            drawn=Drawn(samples=self.samples, seed=self.seed, temperature=plant.temperature),
        )  # fmt: skip
        return [call.named(f"probes {row.name}{self.tag}")]

    def controls(self) -> Mapping[str, Sequence[Call]]:
        return {}


def _plant(row: Row) -> Plant:
    assert isinstance(row, Plant), f"{row.name} is no plant"
    return row


def planted_plans(config: Config, *, where: str) -> dict[int, list[Plan]]:
    """Seed -> a plan for each reference with all plants; seeds outermost."""
    references, plants = read_plants(config, where=where)
    world = load_world(config.world)
    plans: dict[int, list[Plan]] = {}
    for seed in config.seeds or (*config.development, *config.fresh):
        for name, about in references.items():
            budget = budget_of(config, seed=seed, where=where)
            setting = Planted(
                world=world, seed=seed, out=Path(config.out) / f"seed-{seed}", name=name, about=about,
                budget=dataclasses.replace(
                    budget, documents=about.documents or budget.documents,
                    demonstrations=about.demonstrations or budget.demonstrations,
                ),
                preferences=(), closed=Controls(temperature=1.0, overspend=1.0, n=1), samples=config.samples,
                tag=f" {name} [{seed}]",
            )  # fmt: skip
            plans.setdefault(seed, []).append(plan(setting, plants))
    return plans


def calls_of(plans: Mapping[int, Iterable[Plan]]) -> list[Call]:
    """The calls of all plans."""
    return [call for every in plans.values() for plan in every for call in plan.calls]
