"""The demo: rows on a world at every preference, judged in distribution and under shifts, beside closed forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from align import checks
from align.errors import UserError
from align.preferences import Weights, simplex_grid
from align.runs import Call, Run
from align.testbed.controls import Controls
from align.testbed.world import SHIFTS, load_world
from recipes.config import option
from recipes.pipeline.inputs import section
from recipes.pipeline.rows import Row
from recipes.pipeline.setting import REFERENCE
from recipes.testbed import stages
from recipes.testbed.setting import Sizes, Testbed, budget_of, row_shifts
from recipes.testbed.stages import Judged

CONTROLS = ("kl_overspender", "length_only", "best_of_n")
CLOSED_FORM = ("optimum", "perturbed", *CONTROLS)


@dataclass(frozen=True, kw_only=True)
class Config(Sizes):
    seed: int = option(0, help="training seed; every seed has its own directory")
    world: str = option("default", help="default, or another of align.testbed.world.WORLDS")
    out: str | None = option(None, help="run directory (default: runs/demo, or runs/demo-seed-N for another seed)")
    workers: int = option(2, help="worker processes of one thread each; 0 runs everything in this process")
    rows: dict[str, object] = option({}, help="row -> {method, rewards: gold or learned, settings: keys of its Config}")
    preference_steps: int = option(4, help="preferences are the simplex grid with this many steps per edge")
    shift_steps: int = option(2, help="the coarser grid at which rows are evaluated under shift")
    dense: int = option(200, help="steps of the dense exact front")
    controls: dict[str, object] = option({}, help="temperature, overspend and n of the closed-form rows")


def destination(config: Config) -> Path:
    """Where the run is written: each seed and world has its own directory unless `out` is given."""
    if config.out:
        return Path(config.out)
    world = "" if config.world == "default" else f"-{config.world}"
    seed = "" if config.seed == 0 else f"-seed-{config.seed}"
    return Path("runs") / f"demo{world}{seed}"


@dataclass(frozen=True, kw_only=True)
class Demo(Testbed):
    """`away`: the preferences that are judged under shifts, too; `dense`: steps of the exact front."""

    away: tuple[Weights, ...]
    dense: int

    @property
    def row_keys(self) -> frozenset[str]:
        return super().row_keys | {"shifts"}

    def more(self) -> Sequence[Call]:
        cosines = stages.gradient_cosines.call(
            self.folder("gradient-cosines"), world=self.world, reference=self.made("sft"),
            pairs=self.made("comparisons"), seed=self.seed,
        )  # fmt: skip
        best = stages.optimum.call(
            self.folder("optimum"), world=self.world, reference=self.made("sft"), weights=self.preferences,
            dense=self.dense, temperature=self.closed.temperature,
        )  # fmt: skip
        return [cosines.named("gradient cosines"), best.named("optimum")]

    def judge(self, row: Row, policy: Run, weights: Weights) -> Sequence[Call]:
        return [self.cells(row.name, policy, self._judged((weights,), row_shifts(row)), row=row)]

    def _judged(self, weights: tuple[Weights, ...], shifts: tuple[str, ...]) -> Judged:
        return Judged(weights=weights, shifts=shifts, away=self.away, bits=self.seed)

    def controls(self) -> Mapping[str, Sequence[Call]]:
        every = Judged(weights=self.preferences)
        closed = {
            kind: [self.closed_form(kind, kind, every, out=self.cells_in(kind) / "all", call=f"closed form {kind}")]
            for kind in CLOSED_FORM
        }
        return {REFERENCE: [self.cells(REFERENCE, self.made("sft"), self._judged(self.preferences, SHIFTS))], **closed}


def setting_of(config: Config, *, where: str = "align demo") -> Demo:
    """The demo's setting; UserError on a section or number that no stage could use, before anything is started."""
    world, count = load_world(config.world), load_world(config.world).config.objectives
    checks.at_least(1, config, "preference_steps", "shift_steps", "dense", place=f"{where}: ")
    checks.at_most(10_000, config, "preference_steps", "shift_steps", "dense", place=f"{where}: ")
    checks.at_least(0, config, "seed", "workers", place=f"{where}: ")
    if config.preference_steps % config.shift_steps:
        raise UserError(f"{where}: preference_steps must be a multiple of shift_steps")
    closed = section(Controls, config.controls, where=where, name="controls")
    checks.above_zero(closed, "temperature", "overspend", "n")
    return Demo(
        world=world, seed=config.seed, out=destination(config), closed=closed, dense=config.dense,
        budget=budget_of(config, seed=config.seed, where=where),
        preferences=tuple(simplex_grid(count, config.preference_steps)),
        away=tuple(simplex_grid(count, config.shift_steps)),
    )  # fmt: skip
