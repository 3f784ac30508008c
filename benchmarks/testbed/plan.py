"""The testbed benchmark's plan: rows x worlds x seeds x preferences as tasks, and where each of their runs lies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.preferences import Weights, simplex_grid
from align.runs import fingerprint, jsonable
from benchmarks.testbed import stages as bench
from recipes.config import read_yaml
from recipes.pipeline.inputs import section
from recipes.pipeline.tasks import Task
from recipes.testbed import stages as stages

ROW_KEYS = {
    "method", "runs", "asks", "settings", "rewards", "specialists_of", "fixed_point", "smoke", "worlds", "note",
    "contender",
}  # fmt: skip
CONTROLS = ("reference", "kl_overspender", "length_only", "best_of_256")
SMOKE = {"documents": 12000, "demonstrations": 6000, "comparisons": 400, "epochs": 1.0}


@dataclass(frozen=True)
class Rows:
    """The YAML file: sizes of the shared stages, and the rows."""

    model: dict[str, Any]
    pretrain: dict[str, Any]
    sft: dict[str, Any]
    comparisons: int
    reward_model: dict[str, Any]
    controls: dict[str, Any]
    rows: dict[str, dict[str, Any]]
    split: str = "none"  # the held-out prompts that are judged: "none" (known topics) or a shift of the world


@dataclass
class Plan:
    """Tasks in order, and the evaluation run of each cell."""

    tasks: list[Task] = field(default_factory=list)
    cells: dict[tuple[str, int, str, str], Path] = field(default_factory=dict)  # world, seed, row, preference
    fits: dict[tuple[str, int, str], list[Path]] = field(default_factory=dict)  # world, seed, row
    shared: dict[tuple[str, int, str], list[Path]] = field(default_factory=dict)  # what a row's rewards were made of
    predictions: dict[tuple[str, str, str], Path] = field(default_factory=dict)  # world, row, preference
    made_of: dict[tuple[str, int, str], list[Path]] = field(default_factory=dict)  # the specialists of another row
    references: dict[tuple[str, int], Path] = field(default_factory=dict)


def read_rows(file: Path) -> Rows:
    """The rows file, checked: UserError on an unknown key, method, row or setting, before anything runs."""
    from align.methods import METHODS
    from align.testbed.world import SHIFTS

    values = read_yaml(file)
    try:
        found = Rows(**values)
    except TypeError as error:
        names = ", ".join(f.name for f in dataclasses.fields(Rows))
        raise UserError(f"{file.name}: {error}; it has {names}") from error
    if found.split not in ("none", *SHIFTS):
        raise UserError(f"{file.name}: split {found.split!r} is not none or one of {', '.join(SHIFTS)}")
    for row, spec in found.rows.items():
        place = f"{file.name}: rows: {row}"
        unknown = sorted(set(spec) - ROW_KEYS)
        if unknown:
            raise UserError(f"{place}: unknown key {unknown[0]!r}; a row has {', '.join(sorted(ROW_KEYS))}")
        if spec.get("method") not in METHODS:
            raise UserError(f"{place}: method {spec.get('method')!r} is not one of {', '.join(METHODS)}")
        if spec.get("runs", "points") not in ("points", "family") or spec.get("asks", "weights") not in bench.ASKS:
            raise UserError(f"{place}: runs must be points or family, and asks one of {', '.join(bench.ASKS)}")
        if spec.get("fixed_point") == "learned" and spec.get("rewards") != "learned":
            raise UserError(f"{place}: fixed_point learned needs rewards: learned")
        source = spec.get("specialists_of")
        if source is not None and source not in list(found.rows)[: list(found.rows).index(row)]:
            raise UserError(f"{place}: specialists_of names {source!r}, which is no row above it")
        for name in ("settings", "smoke"):
            section(METHODS[spec["method"]].Config, spec.get(name, {}), where=file.name, name=f"rows: {row}: {name}")
    return found


def preferences_of(world: Any) -> list[Weights]:
    """Five points for two objectives; for more the vertices, the middles of three edges, and that of the simplex."""
    count = len(world.objectives)
    if count == 2:
        return simplex_grid(2, 4)
    middle = Weights(tuple(1 / count for _ in range(count)))
    edges = [w for w in simplex_grid(count, 2) if not w.is_vertex][:3]
    return [*(Weights.vertex(k, count) for k in range(count)), *edges, middle]


def make_plan(
    found: Rows, *, out: Path, worlds: Sequence[str], seeds: Sequence[int], rows: Sequence[str], smoke: bool
) -> Plan:
    """Every task of the grid, seeds outermost, so that an interrupted sitting leaves whole seeds behind."""
    from align.testbed.world import load_world

    plan = Plan()
    for seed in seeds:
        for name in worlds:
            world = load_world(name)
            _Grid(plan, found, world=world, seed=seed, first=seeds[0], out=out, smoke=smoke).add(rows)
    return plan


class _Grid:
    """Adds the tasks of one world and seed to a plan."""

    def __init__(
        self, plan: Plan, found: Rows, *, world: Any, seed: int, first: int, out: Path, smoke: bool
    ) -> None:
        self.plan, self.found, self.world, self.seed, self.smoke = plan, found, world, seed, smoke
        self.first_seed = first
        self.name, self.place = world.config.name, out / world.config.name / f"seed-{seed}"
        self.base = out / f"reference-{world.corpus_key}" / f"seed-{seed}"
        self.common = {"world": jsonable(world.config)}
        self.preferences = preferences_of(world)
        self.reference, self.pairs = str(self.base / "sft"), str(self.place / "comparisons")
        self.models = [str(self.place / f"reward-model-{objective}") for objective in world.objectives]

    def add(self, rows: Sequence[str]) -> None:
        self._shared(learned=any(self.found.rows[row].get("rewards") == "learned" for row in rows))
        for kind in CONTROLS:
            self._closed_form(kind)
        for row in rows:
            spec = self.found.rows[row]
            if self.name in spec.get("worlds", [self.name]):
                self._row(row, spec)
                self._prediction(row, spec)

    def _task(self, name: str, call: Any, arguments: Mapping[str, Any], needs: Sequence[str] = ()) -> str:
        full = f"{name} [{self.name} {self.seed}]"
        if not any(task.name == full or task.arguments.get("out") == arguments["out"] for task in self.plan.tasks):
            self.plan.tasks.append(Task(full, call, arguments, tuple(needs)))
        return next(t.name for t in self.plan.tasks if t.name == full or t.arguments.get("out") == arguments["out"])

    def _shared(self, *, learned: bool) -> None:
        """Reference (one per corpus and seed), comparisons, reward models, and facts about the optimum."""
        found, common = self.found, self.common
        pretrain, sft = dict(found.pretrain), dict(found.sft)
        documents, demonstrations = pretrain.pop("documents"), sft.pop("documents")
        count, training = found.comparisons, dict(found.reward_model)
        if self.smoke:
            documents, demonstrations, count = (SMOKE[k] for k in ("documents", "demonstrations", "comparisons"))
            training["epochs"] = SMOKE["epochs"]
        arguments = {**common, "out": str(self.base / "pretrain"), "seed": self.seed, "documents": documents}
        first = self._task("pretrain", stages.pretrain, {**arguments, "training": pretrain, "model": found.model})
        arguments = {**common, "out": self.reference, "seed": self.seed, "source": str(self.base / "pretrain")}
        second = self._task(
            "sft", stages.sft, {**arguments, "documents": demonstrations, "training": sft}, [first]
        )
        arguments = {**common, "out": self.pairs, "seed": self.seed, "reference": self.reference, "count": count}
        self.ready = self._task("comparisons", stages.comparisons, arguments, [second])
        arguments = {**common, "out": str(self.place / "facts"), "reference": self.reference}
        arguments |= {"weights": [list(w.values) for w in self.preferences], "split": found.split}
        self.facts = self._task("facts", bench.facts, arguments, [second])
        self.plan.references[self.name, self.seed] = Path(self.reference)
        for k, path in enumerate(self.models if learned else ()):
            arguments = {**common, "out": path, "seed": self.seed, "reference": self.reference, "pairs": self.pairs}
            self._task(
                Path(path).name, stages.reward_model, {**arguments, "objective": k, "training": training}, [self.ready]
            )

    def _closed_form(self, kind: str) -> None:
        for w in self.preferences:
            out = self.place / "cells" / kind / w.label
            self.plan.cells[self.name, self.seed, kind, w.label] = out
            arguments = {**self.common, "out": str(out), "row": kind, "kind": kind, "reference": self.reference}
            arguments |= {"weights": [list(w.values)], "options": self.found.controls, "split": self.found.split}
            self._task(f"{kind} {w.label}", bench.closed_form, arguments, [self.facts])

    def _row(self, row: str, spec: Mapping[str, Any]) -> None:
        family = spec.get("runs", "points") == "family"
        groups = [self.preferences] if family else [[w] for w in self.preferences]
        folder = self.place / "methods" / row.replace("/", "_")
        learned = spec.get("rewards") == "learned"
        self.plan.fits[self.name, self.seed, row] = []
        used = [Path(m) for m in self.models] if learned else []
        self.plan.shared[self.name, self.seed, row] = [Path(self.pairs), *used]
        for group in groups:
            out = folder / (group[0].label if len(group) == 1 else "all")
            self.plan.fits[self.name, self.seed, row].append(out)
            needs = [self.ready, self.facts]
            arguments: dict[str, Any] = {
                **self.common, "out": str(out), "method": spec["method"], "reference": self.reference,
                "pairs": self.pairs, "settings": self._settings(spec), "facts": str(self.place / "facts"),
                "weights": [list(w.values) for w in group], "asks": spec.get("asks", "weights"),
            }  # fmt: skip
            source = spec.get("specialists_of")
            if source:
                count, below = len(self.world.objectives), self.place / "methods" / source.replace("/", "_")
                vertices = [Weights.vertex(k, count).label for k in range(count)]
                arguments["specialists"] = [str(below / label) for label in vertices]
                self.plan.made_of[self.name, self.seed, row] = [below / label for label in vertices]
                needs += [f"{source} {v} [{self.name} {self.seed}]" for v in vertices]
            if learned:
                arguments["reward_models"] = self.models
                needs += [f"{Path(m).name} [{self.name} {self.seed}]" for m in self.models]
            fitted = self._task(f"{row} {out.name}", bench.fit, arguments, needs)
            for w in group:
                self._evaluation(row, spec, policy=str(out), weights=w, fitted=fitted)

    def _settings(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """The row's settings over what the world and the seed fix; with --check its smoke settings on top."""
        from align.methods import METHODS

        world = self.world.config
        offered: dict[str, Any] = {
            "seed": self.seed, "beta": world.beta, "tau": world.tau, "max_completion_length": world.max_tokens + 1,
            "ideal": (1.0,) * world.objectives,
        }  # fmt: skip
        if spec.get("specialists_of"):
            offered["betas"] = (world.beta,) * world.objectives  # every specialist's own coefficient
        known = {f.name for f in dataclasses.fields(METHODS[spec["method"]].Config)}
        settings = {name: value for name, value in offered.items() if name in known}
        return {**settings, **spec.get("settings", {}), **(spec.get("smoke", {}) if self.smoke else {})}

    def _evaluation(self, row: str, spec: Mapping[str, Any], *, policy: str, weights: Weights, fitted: str) -> None:
        out = self.place / "cells" / row.replace("/", "_") / weights.label
        self.plan.cells[self.name, self.seed, row, weights.label] = out
        arguments = {**self.common, "out": str(out), "row": row, "reference": self.reference, "policy": policy}
        arguments |= {"weights": list(weights.values), "asks": spec.get("asks", "weights")}
        arguments |= {"facts": str(self.place / "facts"), "split": self.found.split}
        self._task(f"evaluate {row} {weights.label}", bench.evaluate, arguments, [fitted])

    def _prediction(self, row: str, spec: Mapping[str, Any]) -> None:
        """The row's predicted fixed point, on the first seed only; rows of one kind share it."""
        kind, settings = spec.get("fixed_point", "none"), spec.get("settings", {})
        n = settings.get("n", settings.get("num_generations", 0))
        if kind in ("none", "scalarised") or self.seed != self.first_seed:
            return
        for w in self.preferences:
            out = self.place / "predictions" / (f"{kind}-{n}" if n else kind) / w.label
            self.plan.predictions[self.name, row, w.label] = out
            arguments = {**self.common, "out": str(out), "kind": kind, "reference": self.reference}
            arguments |= {"weights": list(w.values), "n": n, "split": self.found.split}
            needs = [self.facts]
            if kind == "learned":
                arguments["reward_models"] = self.models
                needs += [f"{Path(m).name} [{self.name} {self.seed}]" for m in self.models]
            self._task(f"prediction {out.parent.name} {w.label}", bench.prediction, arguments, needs)


def row_key(found: Rows, row: str) -> str:
    """What the published cells of a row depend on besides world, seed and preference."""
    shared = {f.name: getattr(found, f.name) for f in dataclasses.fields(Rows) if f.name != "rows"}
    if found.split == "none":  # keys from before there was a choice stay what they were
        del shared["split"]
    spec = dict(found.rows.get(row, {}))
    source = spec.get("specialists_of")
    return fingerprint({"shared": shared, "spec": spec, "source": found.rows[source] if source else None})
