"""The shift benchmark's plan on the testbed: what is trained, and which cells under which shifts are evaluated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.preferences import Weights, simplex_grid
from align.runs import jsonable
from benchmarks.shift import stages as shift_stages
from benchmarks.shift.hh import Real
from benchmarks.testbed import plan as planning
from recipes.config import build, read_yaml
from recipes.pipeline.inputs import section
from recipes.pipeline.tasks import Task
from recipes.testbed import stages as stages


@dataclass(frozen=True, kw_only=True)
class Front:
    """Rows of the testbed benchmark under shifts of one world."""

    world: str
    rows: list[str]
    shifts: list[str]
    steps: int  # of the grid of preferences, which must be among those that the rows were trained at


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train against spelling shifts: on some spellings, or made of another arm or two without training.

    average_of: the even average of two arms' weights. graft: of one arm the `layers` or the `embeddings` alone, the
    rest being the reference's; no mitigation, but it shows where the learning sits.
    """

    spellings: list[int] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    average_of: list[str] = field(default_factory=list)
    graft: dict[str, str] = field(default_factory=dict)

    @property
    def made_of(self) -> list[str]:
        return [*self.average_of, *self.graft.values()]


@dataclass(frozen=True, kw_only=True)
class Mitigation:
    """Arms of one method on a world of several spellings, at equal steps and samples."""

    world: str
    method: str
    settings: dict[str, Any]
    weights: list[list[float]]
    documents: int
    demonstrations: int
    arms: dict[str, Arm]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The YAML file."""

    front: Front
    mitigation: Mitigation
    hh: Real


@dataclass
class Plan:
    """Tasks in order, and the runs that hold the cells of each (seed, row or arm)."""

    tasks: list[Task] = field(default_factory=list)
    cells: dict[tuple[int, str], list[Path]] = field(default_factory=dict)
    fits: dict[tuple[int, str], Path] = field(default_factory=dict)  # of the mitigation's arms


def read_rows(file: Path) -> Rows:
    """The rows file, checked: UserError on an unknown key, arm or spelling, before anything runs."""
    from align.testbed.world import load_world

    values = read_yaml(file)
    arms = (values.get("mitigation") or {}).get("arms") or {}
    made = {name: build(Arm, arm, where=f"{file.name}: arms: {name}") for name, arm in arms.items()}
    values["mitigation"] = {**(values.get("mitigation") or {}), "arms": made}
    found = build(Rows, values, where=file.name)
    last = load_world(found.mitigation.world).config.spellings
    for name, arm in made.items():
        place = f"{file.name}: arms: {name}"
        if [bool(arm.spellings), bool(arm.average_of), bool(arm.graft)].count(True) != 1:
            raise UserError(f"{place}: give either spellings, average_of or graft")
        if arm.graft and set(arm.graft) not in ({"layers"}, {"embeddings"}):
            raise UserError(f"{place}: graft takes layers: ARM or embeddings: ARM, not {', '.join(arm.graft)}")
        if any(not 0 <= s <= last for s in arm.spellings):
            raise UserError(f"{place}: spellings of world {found.mitigation.world} are 0 to {last}")
        unknown = [other for other in arm.made_of if not made.get(other, Arm()).spellings]
        if unknown:
            raise UserError(f"{place}: it is to be made of {unknown[0]!r}, which is no trained arm")
    return found


def front_plan(found: Rows, *, trained: planning.Rows, out: Path, seeds: Sequence[int]) -> Plan:
    """The testbed benchmark's fits, then cells under shifts; seeds outermost, for a reference's tables are kept."""
    from align.testbed.world import load_world

    world, plan, spec = load_world(found.front.world), Plan(), found.front
    base = planning.make_plan(trained, out=out, worlds=[spec.world], seeds=seeds, rows=spec.rows, smoke=False)
    wanted = {str(place) for places in base.fits.values() for place in places}
    wanted |= {str(base.references[spec.world, seed]) for seed in seeds}
    plan.tasks = _needed(base.tasks, wanted)
    known = {str(task.arguments.get("out")): task.name for task in plan.tasks}
    trained_at = [w.label for w in planning.preferences_of(world)]
    preferences = simplex_grid(len(world.objectives), spec.steps)
    if not {w.label for w in preferences} <= set(trained_at):
        raise UserError(f"front: steps {spec.steps} asks for preferences outside {'; '.join(trained_at)}")
    everywhere = [list(w.values) for w in preferences]

    def add(seed: int, row: str, label: str, call: Any, needs: str, **more: Any) -> None:
        folder = out / "shift" / spec.world / f"seed-{seed}" / row.replace("/", "_") / label
        plan.cells.setdefault((seed, row), []).append(folder)
        arguments = {"out": str(folder), "world": jsonable(world.config), "row": row, "shifts": spec.shifts, **more}
        arguments["reference"] = str(base.references[spec.world, seed])
        plan.tasks.append(Task(f"shifts {row} {label} [{seed}]", call, arguments, (known[needs],)))

    for seed in seeds:
        reference = str(base.references[spec.world, seed])
        everything = {"policy": reference, "weights": everywhere}
        add(seed, "reference", f"all-{spec.steps}", shift_stages.evaluate, reference, **everything)
        for row in spec.rows:
            places = base.fits[spec.world, seed, row]
            for w in preferences:
                policy = str(places[trained_at.index(w.label)] if len(places) > 1 else places[0])
                add(seed, row, w.label, shift_stages.evaluate, policy, policy=policy, weights=[list(w.values)])
    kinds = planning.CONTROLS[1:]  # the controls last, and the dearest last of all: they only have to fail
    for kind, seed in [(k, s) for part in (kinds[:-1], kinds[-1:]) for s in seeds for k in part]:
        name = "best_of_n" if kind.startswith("best_of") else kind
        every = {f"all-{spec.steps}": everywhere}  # one policy for all preferences
        asked = every if kind == "length_only" else {w.label: [list(w.values)] for w in preferences}
        for label, weights in asked.items():
            more = {"kind": name, "weights": weights, "options": trained.controls}
            add(seed, kind, label, shift_stages.closed_form, str(base.references[spec.world, seed]), **more)
    return plan


def _needed(tasks: Sequence[Task], wanted: set[str]) -> list[Task]:
    """The tasks that write `wanted` folders, and all that these need, in the same order."""
    by_name, names = {task.name: task for task in tasks}, set[str]()

    def visit(name: str) -> None:
        if name not in names:
            names.add(name)
            for need in by_name[name].needs:
                visit(need)

    for task in tasks:
        if str(task.arguments.get("out")) in wanted:
            visit(task.name)
    return [task for task in tasks if task.name in names]


def mitigation_plan(found: Rows, *, trained: planning.Rows, out: Path, seeds: Sequence[int]) -> Plan:
    """References, arms and their cells in every spelling; arms outermost, so that sittings end arms."""
    from align.testbed.world import load_world

    spec, plan = found.mitigation, Plan()
    world = load_world(spec.world)
    grids = {seed: _Grid(plan, spec, trained=trained, world=world, seed=seed, out=out) for seed in seeds}
    for grid in grids.values():
        grid.shared()
    for arm, how in spec.arms.items():
        for grid in grids.values():
            grid.arm(arm, how)
    return plan


class _Grid:
    """Adds the mitigation's tasks of one seed to a plan."""

    def __init__(
        self, plan: Plan, spec: Mitigation, *, trained: planning.Rows, world: Any, seed: int, out: Path
    ) -> None:
        self.plan, self.spec, self.trained, self.world, self.seed = plan, spec, trained, world, seed
        self.place = out / "shift" / spec.world / f"seed-{seed}"
        self.base = out / f"reference-{world.corpus_key}" / f"seed-{seed}"
        self.reference, self.name = str(self.base / "sft"), f"[{spec.world} {seed}]"
        self.common = {"world": jsonable(world.config)}

    def shared(self) -> None:
        """Pretraining and SFT on every spelling, and the reference's cells."""
        training = {key: value for key, value in self.trained.pretrain.items() if key != "documents"}
        arguments = {**self.common, "out": str(self.base / "pretrain"), "seed": self.seed, "training": training}
        arguments |= {"documents": self.spec.documents, "model": self.trained.model}
        self.plan.tasks.append(Task(f"pretrain {self.name}", stages.pretrain, arguments))
        training = {key: value for key, value in self.trained.sft.items() if key != "documents"}
        arguments = {**self.common, "out": self.reference, "seed": self.seed, "training": training}
        arguments |= {"documents": self.spec.demonstrations, "source": str(self.base / "pretrain")}
        self.plan.tasks.append(Task(f"sft {self.name}", stages.sft, arguments, (f"pretrain {self.name}",)))
        self._cells("reference", "all", self.reference, self.spec.weights, f"sft {self.name}")

    def arm(self, arm: str, how: Arm) -> None:
        """One arm and its cells at every preference."""
        folder = self.plan.fits[self.seed, arm] = self.place / "arms" / arm
        if how.average_of:
            parts = [str(self.place / "arms" / other) for other in how.average_of]
            arguments = {"out": str(folder), "parts": parts, "weights": self.spec.weights}
            needs = tuple(f"{other} {self.name}" for other in how.average_of)
            self.plan.tasks.append(Task(f"{arm} {self.name}", shift_stages.average, arguments, needs))
        elif how.graft:
            ((keep, other),) = how.graft.items()
            arguments = {"out": str(folder), "part": str(self.place / "arms" / other), "reference": self.reference}
            arguments |= {"keep": keep, "weights": self.spec.weights}
            self.plan.tasks.append(Task(f"{arm} {self.name}", shift_stages.graft, arguments, (f"{other} {self.name}",)))
        else:
            settings = _settings(self.spec, how, seed=self.seed, world=self.world)
            arguments = {**self.common, "out": str(folder), "method": self.spec.method, "settings": settings}
            arguments |= {"reference": self.reference, "weights": self.spec.weights, "spellings": how.spellings}
            self.plan.tasks.append(Task(f"{arm} {self.name}", shift_stages.fit, arguments, (f"sft {self.name}",)))
        for w in self.spec.weights:
            self._cells(arm, Weights(tuple(w)).label, str(folder), [w], f"{arm} {self.name}")

    def _cells(self, row: str, label: str, policy: str, weights: Any, needs: str) -> None:
        from align.testbed.world import spelling_split

        folder = self.place / "cells" / row / label
        self.plan.cells.setdefault((self.seed, row), []).append(folder)
        splits = [spelling_split(s) for s in range(1, self.world.config.spellings + 1)]
        arguments = {**self.common, "out": str(folder), "row": row, "reference": self.reference, "policy": policy}
        arguments |= {"weights": weights, "shifts": splits}
        self.plan.tasks.append(Task(f"cells {row} {label} {self.name}", shift_stages.evaluate, arguments, (needs,)))


def _settings(spec: Mitigation, arm: Arm, *, seed: int, world: Any) -> dict[str, Any]:
    """The method's settings of an arm over what the world and the seed fix; UserError on an unknown one."""
    from align.methods import METHODS

    offered = {"seed": seed, "beta": world.config.beta, "max_completion_length": world.config.max_tokens + 1}
    known = {f.name for f in dataclasses.fields(METHODS[spec.method].Config)}
    settings = {**{k: v for k, v in offered.items() if k in known}, **spec.settings, **arm.settings}
    section(METHODS[spec.method].Config, settings, where="shift.yaml", name="mitigation: settings")
    return settings
