"""The shift benchmark's file, and the testbed as it is used there: what is trained, and which shifts are evaluated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from align.errors import UserError
from align.preferences import Weights, simplex_grid
from align.runs import Call, Run, planned
from align.testbed.world import load_world, spelling_split
from benchmarks.shift import stages as own_stages
from benchmarks.shift.hh import Real
from benchmarks.testbed import plan as testbed
from recipes.config import build, read_yaml
from recipes.pipeline.plan import Plan, plan
from recipes.pipeline.rows import Fit, Row, check_row, read_rows
from recipes.testbed import stages
from recipes.testbed.setting import Testbed, budget_of
from recipes.testbed.stages import Judged


@dataclass(frozen=True, kw_only=True)
class Front:
    """Rows of the testbed benchmark under shifts of one world."""

    world: str
    rows: list[str]
    shifts: list[str]
    steps: int  # of the grid of preferences, which must be among those that the rows were trained at


@dataclass(frozen=True, kw_only=True)
class Arm(Row):
    """One way to train against spelling shifts: on some spellings, or made of another arm or two without training.

    average_of: the even average of arms' weights. graft: of one arm the `layers` or the `embeddings` alone, the rest
    being the reference's; no mitigation, but it shows where the learning sits.
    """

    spellings: tuple[int, ...] = ()
    average_of: tuple[str, ...] = ()
    graft: dict[str, str] = field(default_factory=dict)

    @property
    def made_of(self) -> tuple[str, ...]:
        return (*self.average_of, *self.graft.values())


@dataclass(frozen=True, kw_only=True)
class Mitigation:
    """Arms of one method on a world of several spellings, at equal steps and samples."""

    world: str
    method: str
    settings: dict[str, object]
    weights: list[list[float]]
    documents: int
    demonstrations: int
    arms: dict[str, object]

    @property
    def preferences(self) -> tuple[Weights, ...]:
        return tuple(Weights(tuple(w)) for w in self.weights)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The YAML file."""

    front: Front
    mitigation: Mitigation
    hh: Real


def read_file(file: Path) -> tuple[Rows, dict[str, Arm]]:
    """The file and its arms, checked: UserError on an unknown key, arm or spelling, before anything runs."""
    found = build(Rows, read_yaml(file), where=file.name)
    spec = found.mitigation
    every = {"method": spec.method, "runs": "family"}
    arms = {arm.name: arm for arm in read_rows(spec.arms, where=file.name, kind=Arm, every=every, name="arms")}
    last = load_world(spec.world).config.spellings
    for name, arm in arms.items():
        place = f"{file.name}: arms: {name}"
        if [bool(arm.spellings), bool(arm.average_of), bool(arm.graft)].count(True) != 1:
            raise UserError(f"{place}: give either spellings, average_of or graft")
        if arm.graft and set(arm.graft) not in ({"layers"}, {"embeddings"}):
            raise UserError(f"{place}: graft takes layers: ARM or embeddings: ARM, not {', '.join(arm.graft)}")
        if any(not 0 <= s <= last for s in arm.spellings):
            raise UserError(f"{place}: spellings of world {spec.world} are 0 to {last}")
        unknown = [other for other in arm.made_of if other not in arms or not arms[other].spellings]
        if unknown:
            raise UserError(f"{place}: it is to be made of {unknown[0]!r}, which is no trained arm")
        arms[name] = dataclasses.replace(arm, settings={**spec.settings, **arm.settings})
        check_row(arms[name], above=(), where=place)
    return found, arms


@dataclass(frozen=True, kw_only=True)
class UnderShifts(testbed.Benchmark):
    """The testbed benchmark's runs on one world and seed, judged again under shifts, at some of their preferences."""

    shifts: tuple[str, ...]
    steps: int
    place: Path

    @property
    def grid(self) -> tuple[Weights, ...]:
        return tuple(simplex_grid(len(self.objectives), self.steps))

    def shifted(self, row: str, label: str, call: Call) -> Call:
        """The call under the name and in the folder of these cells."""
        out = self.place / row.replace("/", "_") / label
        return dataclasses.replace(call, out=out, name=f"shifts {row} {label} [{self.seed}]")

    def judge(self, row: Row, policy: Run, weights: Weights) -> Sequence[Call]:
        if weights not in self.grid:
            return []
        call = self.cells(row.name, policy, Judged(weights=(weights,), shifts=self.shifts), row=row)
        return [self.shifted(row.name, weights.label, call)]

    def controls(self) -> Mapping[str, Sequence[Call]]:
        every = (self.grid, f"all-{self.steps}")
        reference = self.cells("reference", self.made("sft"), Judged(weights=self.grid, shifts=self.shifts))
        found = {"reference": [self.shifted("reference", every[1], reference)]}
        for name, kind in list(testbed.CONTROLS.items())[1:]:
            groups = [every] if kind == "length_only" else [((w,), w.label) for w in self.grid]  # one policy for all
            found[name] = [
                self.shifted(
                    name, label,
                    self.closed_form(name, kind, Judged(weights=w, shifts=self.shifts), out=self.out, call=name),
                )
                for w, label in groups
            ]  # fmt: skip
        return found


def front_plans(spec: Front, *, trained: testbed.Rows, out: Path, seeds: Sequence[int]) -> dict[int, Plan]:
    """Seed -> the testbed benchmark's fits, and their cells under shifts."""
    world = load_world(spec.world)
    rows = trained.named(spec.rows)
    trained_at = testbed.preferences_of(world)
    if not set(simplex_grid(len(world.objectives), spec.steps)) <= set(trained_at):
        labels = "; ".join(w.label for w in trained_at)
        raise UserError(f"front: steps {spec.steps} asks for preferences outside {labels}")
    plans = {}
    for seed in seeds:
        base = testbed.setting_of(trained, world=world, seed=seed, out=out)
        values = {one.name: getattr(base, one.name) for one in dataclasses.fields(base)}
        place = out / "shift" / spec.world / f"seed-{seed}"
        setting = UnderShifts(**values, shifts=tuple(spec.shifts), steps=spec.steps, place=place)
        plans[seed] = plan(setting, sorted(rows, key=lambda row: spec.rows.index(row.name)))
    return plans


@dataclass(frozen=True, kw_only=True)
class Spellings(Testbed):
    """A world of several spellings, whose rows are arms; `base` holds its reference's runs."""

    base: Path

    @property
    def splits(self) -> tuple[str, ...]:
        """The held-out prompts in every spelling but the plain one."""
        return tuple(spelling_split(s) for s in range(1, self.world.config.spellings + 1))

    @property
    def row_keys(self) -> frozenset[str]:
        return frozenset({"spellings", "average_of", "graft"})

    def folder(self, kind: str) -> Path:
        return self.base / kind

    def comparisons(self) -> Sequence[Call]:
        return []

    def fit(self, row: Row, fit: Fit, specialists: Mapping[str, Run]) -> Call:
        assert isinstance(row, Arm), f"{row.name} is no arm"
        out, parts = self.out / "arms" / row.name, [planned(self.out / "arms" / name) for name in row.made_of]
        if row.average_of:
            call = own_stages.average.call(out, parts=parts, weights=self.preferences)
        elif row.graft:
            (keep,), (part,) = row.graft, parts
            call = own_stages.graft.call(
                out, part=part, reference=self.made("sft"), keep=keep, weights=self.preferences
            )
        else:
            fit = dataclasses.replace(fit, spellings=row.spellings)
            call = stages.finetune.call(out, world=self.world, reference=self.made("sft"), fit=fit)
        return call.named(f"{row.name}{self.tag}")

    def judge(self, row: Row, policy: Run, weights: Weights) -> Sequence[Call]:
        call = self.cells(row.name, policy, Judged(weights=(weights,), shifts=self.splits))
        return [call.named(f"cells {row.name} {weights.label}{self.tag}")]

    def controls(self) -> Mapping[str, Sequence[Call]]:
        call = self.cells("reference", self.made("sft"), Judged(weights=self.preferences, shifts=self.splits))
        return {"reference": [call.named(f"cells reference all{self.tag}")]}


def mitigation_plans(
    spec: Mitigation, arms: Sequence[Arm], *, trained: testbed.Rows, out: Path, seeds: Sequence[int]
) -> dict[int, Plan]:
    """Seed -> its reference, the arms, and their cells in every spelling."""
    world, plans = load_world(spec.world), {}
    for seed in seeds:
        budget = budget_of(trained.file, seed=seed, where="rows")
        setting = Spellings(
            world=world, seed=seed, out=out / "shift" / spec.world / f"seed-{seed}", closed=trained.closed,
            budget=dataclasses.replace(budget, documents=spec.documents, demonstrations=spec.demonstrations),
            preferences=spec.preferences, tag=f" [{spec.world} {seed}]",
            base=out / f"reference-{world.corpus_key}" / f"seed-{seed}",
        )  # fmt: skip
        plans[seed] = plan(setting, arms)
    return plans
