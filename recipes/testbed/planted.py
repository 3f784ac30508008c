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
from align.testbed.world import load_world
from recipes.config import build, option
from recipes.pipeline.plan import Plan, plan
from recipes.pipeline.rows import Fit, Row, read_rows
from recipes.testbed import planted_stages as own_stages
from recipes.testbed import stages
from recipes.testbed.planted_stages import SPLITS, Drawn
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
    references: dict[str, object] = option({}, help="name -> ciphered, and documents, demonstrations")
    plants: dict[str, object] = option({}, help="name -> reference, method, weights, truth, and optional keys")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A model that plants start from; without `ciphered`, one that never learns to read the second spelling."""

    ciphered: bool
    documents: int | None = None
    demonstrations: int | None = None


@dataclass(frozen=True, kw_only=True)
class Plant(Row):
    """One model and the mechanism planted in it: `truth` split -> mechanism.

    cover_cipher: the second spelling is in fine-tuning, too. temperature: of the judged responses. split: whether the
    benchmark also compares its exact split with the one from samples.
    """

    reference: str
    weights: str
    truth: dict[str, str]
    cover_cipher: bool = False
    temperature: float = 1.0
    split: bool = False

    @property
    def spellings(self) -> tuple[int, ...]:
        """Those of its fine-tuning prompts."""
        return (0, 1) if self.cover_cipher else (0,)


def read_plants(config: Config, *, where: str) -> tuple[dict[str, Reference], tuple[Plant, ...]]:
    """The references and plants of the file; UserError on one that cannot be trained, before anything runs."""
    from evals.attribution.regions import CLASSES

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
        if plant.reference not in references:
            raise UserError(f"{place}: no reference {plant.reference!r}; there are {', '.join(references)}")
        for split, mechanism in plant.truth.items():
            if split not in SPLITS or mechanism not in CLASSES:
                raise UserError(f"{place}: truth {split}: {mechanism} is not one of {', '.join(CLASSES)} under a split")
    return references, plants


@dataclass(frozen=True, kw_only=True)
class Planted(Testbed):
    """The testbed at one seed, on one of the references; its rows are the plants that start from that."""

    name: str
    about: Reference
    samples: int

    @property
    def row_keys(self) -> frozenset[str]:
        return frozenset({"reference", "weights", "truth", "cover_cipher", "temperature", "split"})

    def folder(self, kind: str) -> Path:
        return self.out / f"{self.name}-{kind}"

    def reference(self) -> Sequence[Call]:
        calls = [
            dataclasses.replace(call, arguments={**call.arguments, "ciphered": self.about.ciphered})
            for call in super().reference()
        ]
        both = own_stages.two_spellings.call(self.folder("sft-two-spellings"), reference=self.made("sft"))
        return [*calls, both.named(f"two spellings{self.tag}")]

    def asked(self, row: Row) -> Sequence[Weights]:
        return (Weights.parse(_plant(row).weights),)

    def base_of(self, plant: Plant) -> Run:
        """The reference of a plant: one that answers in both spellings where its training covers both."""
        return self.made("sft-two-spellings" if plant.cover_cipher else "sft")

    def fit(self, row: Row, fit: Fit, specialists: Mapping[str, Run]) -> Call:
        plant = _plant(row)
        spellings = plant.spellings if plant.cover_cipher else ()
        call = stages.finetune.call(
            self.out / "plants" / row.folder, world=self.world, reference=self.base_of(plant),
            fit=dataclasses.replace(fit, spellings=spellings), pairs=self.made("comparisons"),
        )  # fmt: skip
        return call.named(f"{row.name} [{self.seed}]")

    def judge(self, row: Row, policy: Run, weights: Weights) -> Sequence[Call]:
        plant = _plant(row)
        call = own_stages.probes.call(
            self.out / "probes" / row.folder, world=self.world, reference=self.base_of(plant), policy=policy,
            weights=weights, spellings=plant.spellings,
            drawn=Drawn(samples=self.samples, seed=self.seed, temperature=plant.temperature),
        )  # fmt: skip
        return [call.named(f"probes {row.name} [{self.seed}]")]

    def controls(self) -> Mapping[str, Sequence[Call]]:
        return {}


def _plant(row: Row) -> Plant:
    assert isinstance(row, Plant), f"{row.name} is no plant"
    return row


def planted_plans(config: Config, *, where: str) -> dict[int, list[Plan]]:
    """Seed -> a plan for each reference with its plants; seeds outermost."""
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
            plans.setdefault(seed, []).append(plan(setting, [p for p in plants if p.reference == name]))
    return plans


def calls_of(plans: Mapping[int, Iterable[Plan]]) -> list[Call]:
    """The calls of all plans."""
    return [call for every in plans.values() for plan in every for call in plan.calls]
