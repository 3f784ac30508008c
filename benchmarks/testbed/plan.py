"""The testbed benchmark: its file of rows, and the setting of one world and seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.errors import UserError
from align.preferences import Weights, simplex_grid
from align.runs import Call, fingerprint
from align.testbed.controls import Controls
from align.testbed.world import SHIFTS, World, load_world
from benchmarks.testbed import stages as own_stages
from recipes.config import build, option, read_yaml
from recipes.pipeline.inputs import section
from recipes.pipeline.plan import Plan, plan
from recipes.pipeline.rows import Row, read_rows
from recipes.testbed import stages
from recipes.testbed.setting import Sizes, Testbed, budget_of
from recipes.testbed.stages import Judged

CONTROLS = {"reference": "reference", "kl_overspender": "kl_overspender", "length_only": "length_only",
            "best_of_256": "best_of_n"}  # fmt: skip
SMOKE = {"pretrain": 12000, "sft": 6000, "comparisons": 400}
Cell = tuple[str, int]  # world, seed


@dataclass(frozen=True, kw_only=True)
class RowsFile(Sizes):
    """The YAML file: sizes of the shared stages, and the rows."""

    controls: dict[str, object] = option({}, help="temperature, overspend and n of the closed-form rows")
    rows: dict[str, object] = option({}, help="row -> its keys, see recipes/pipeline/rows.py")
    split: str = option("none", help="the held-out prompts that are judged: none (known topics) or a shift")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A file of rows, checked."""

    file: RowsFile
    rows: tuple[Row, ...]
    closed: Controls

    def named(self, names: Sequence[str] | None) -> tuple[Row, ...]:
        """These rows (None: all) and those that they are made of, in the file's order; UserError on an unknown one."""
        known = {row.name: row for row in self.rows}
        for name in names or ():
            if name not in known:
                raise UserError(f"--rows: no row {name!r}; there are {', '.join(known)}")
        wanted = set(known if names is None else names)
        wanted |= {str(known[name].specialists_of) for name in wanted if known[name].specialists_of}
        return tuple(row for row in self.rows if row.name in wanted)

    def key(self, name: str) -> str:
        """What the published cells of a row depend on besides world, seed and preference."""
        known = {row.name: row.given() for row in self.rows}
        shared = {one.name: getattr(self.file, one.name) for one in dataclasses.fields(RowsFile) if one.name != "rows"}
        if self.file.split == "none":  # keys from before there was a choice stay what they were
            del shared["split"]
        spec = known.get(name, {})
        source = spec.get("specialists_of")
        return fingerprint({"shared": shared, "spec": spec, "source": known[str(source)] if source else None})


def read_file(file: Path) -> Rows:
    """The rows file, checked: UserError on an unknown key, method, row or setting, before anything runs."""
    found = build(RowsFile, read_yaml(file), where=file.name)
    if found.split not in ("none", *SHIFTS):
        raise UserError(f"{file.name}: split {found.split!r} is not none or one of {', '.join(SHIFTS)}")
    budget_of(found, seed=0, where=file.name)
    rows = read_rows(found.rows, where=file.name, kind=Row)
    return Rows(file=found, rows=rows, closed=section(Controls, found.controls, where=file.name, name="controls"))


def preferences_of(world: World) -> list[Weights]:
    """Five points for two objectives; for more the vertices, the middles of three edges, and that of the simplex."""
    count = len(world.objectives)
    if count == 2:
        return simplex_grid(2, 4)
    middle = Weights(tuple(1 / count for _ in range(count)))
    edges = [w for w in simplex_grid(count, 2) if not w.is_vertex][:3]
    return [*(Weights.vertex(k, count) for k in range(count)), *edges, middle]


@dataclass(frozen=True, kw_only=True)
class Benchmark(Testbed):
    """One world and seed of the grid. `base`: the runs of its reference, which worlds of one corpus share.

    `predicted`: the fixed points, each with its number of draws, whose cells are made.
    """

    base: Path
    predicted: tuple[tuple[str, int], ...] = ()

    @property
    def row_keys(self) -> frozenset[str]:
        return super().row_keys | {"asks", "fixed_point", "worlds", "contender", "smoke"}

    def folder(self, kind: str) -> Path:
        return (self.base if kind in ("pretrain", "sft") else self.out) / kind

    def more(self) -> Sequence[Call]:
        facts = stages.facts.call(
            self.folder("facts"), world=self.world, reference=self.made("sft"), weights=self.preferences, home=self.home
        )
        return [facts.named(f"facts{self.tag}"), *(c for target in self.predicted for c in self.predictions(*target))]

    def predictions(self, kind: str, n: int) -> list[Call]:
        """The cells of a fixed point at every preference."""
        place = self.out / "predictions" / (f"{kind}-{n}" if n else kind)
        learned = {name: call.run for name, call in self.reward_models().items()} if kind == "learned" else {}
        return [
            own_stages.prediction.call(
                place / w.label, world=self.world, kind=kind, reference=self.made("sft"), n=n,
                judged=Judged(weights=(w,), home=self.home), reward_models=learned,
            ).named(f"prediction {place.name} {w.label}{self.tag}")
            for w in self.preferences
        ]  # fmt: skip

    def controls(self) -> Mapping[str, Sequence[Call]]:
        return {
            name: [
                self.closed_form(
                    name, kind, Judged(weights=(w,), home=self.home), out=self.out / "cells" / name / w.label,
                    call=f"{name} {w.label}",
                )
                for w in self.preferences
            ]
            for name, kind in CONTROLS.items()
        }  # fmt: skip


def setting_of(found: Rows, *, world: World, seed: int, out: Path, smoke: bool = False) -> Benchmark:
    """The benchmark on one world and seed; `smoke` cuts the shared stages, too."""
    file = found.file
    if smoke:
        small = {name: {**getattr(file, name), "documents": SMOKE[name]} for name in ("pretrain", "sft")}
        brief = {**file.reward_model, "epochs": 1.0}
        file = dataclasses.replace(
            file, pretrain=small["pretrain"], sft=small["sft"], reward_model=brief, comparisons=SMOKE["comparisons"]
        )
    return Benchmark(
        world=world, seed=seed, out=out / world.config.name / f"seed-{seed}", home=file.split, closed=found.closed,
        base=out / f"reference-{world.corpus_key}" / f"seed-{seed}", budget=budget_of(file, seed=seed, where="rows"),
        preferences=tuple(preferences_of(world)), tag=f" [{world.config.name} {seed}]",
    )  # fmt: skip


def grid(
    found: Rows, *, out: Path, worlds: Sequence[str], seeds: Sequence[int], rows: Sequence[Row], smoke: bool = False
) -> dict[Cell, Plan]:
    """A plan for each world and seed, seeds outermost, so that an interrupted sitting leaves whole seeds behind.

    Fixed points are predicted for the first seed alone: they belong to its reference.
    """
    plans = {}
    for seed in seeds:
        for name in worlds:
            here = [row for row in rows if not row.worlds or name in row.worlds]
            targets = {target_of(row): None for row in here if seed == seeds[0] and target_of(row) is not None}
            setting = setting_of(found, world=load_world(name), seed=seed, out=out, smoke=smoke)
            predicted = tuple(target for target in targets if target is not None)
            plans[name, seed] = plan(dataclasses.replace(setting, predicted=predicted), here, smoke=smoke)
    return plans


def target_of(row: Row) -> tuple[str, int] | None:
    """The fixed point that needs cells of its own; None where it is unknown, or pi*_w itself."""
    return None if row.target in ("none", "scalarised") else (row.target, row.draws)
