"""Attribution from the cells of an evaluation: what was measured per shift, and the regions that follow."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from align.errors import UserError
from evals.attribution.benign import benign_behind
from evals.attribution.probes import StateViews, default_layer, matching, readings_of, views_of
from evals.attribution.reading import last_hidden_states
from evals.attribution.regions import Thresholds, attribute, calibrate
from evals.attribution.signals import Table, Tables, controls_of, recognition_auroc, signals_of
from evals.attribution.words import FINE_TUNING, GIVE, sentence
from evals.backends.rendering import prompt_of
from evals.backends.transformers import TransformersBackend
from evals.items import Fields, Json, Missing
from evals.measure.cells import Cell, Evaluated
from evals.shifts.base import Shift
from evals.suites.base import SAFETY
from evals.tables.outcomes import MAY_FAIL, bounded


@dataclass(frozen=True)
class Origins:
    """What two signals are read from: recognition from a score, distance from so many fine-tuning prompts (0: none)."""

    recognition: str
    prompts: int

    @property
    def distance(self) -> str:
        """What distance was measured from, for a reader."""
        if self.prompts:
            return f"{self.prompts} fine-tuning prompts"
        return f"plain requests, no fine-tuning prompts being given or short enough; {GIVE}"

    @property
    def home(self) -> str:
        """The same in a word."""
        return FINE_TUNING if self.prompts else "plain requests"


def harmful_and_benign(results: Mapping[str, Evaluated]) -> list[Cell]:
    """The cells of all safety suites, their items named suite:id; UserError without harmful and benign requests."""
    cells = [
        dataclasses.replace(cell, item=dataclasses.replace(cell.item, id=f"{result.suite.name}:{cell.item.id}"))
        for result in results.values()
        if result.suite.kind is SAFETY
        for cell in result.cells
    ]
    if {cell.item.harmful for cell in cells} != {True, False}:
        raise UserError("attribution needs harmful and benign requests; add a suite that has both, such as xstest")
    return cells


def tables_of(
    cells: Sequence[Cell], *, backend: TransformersBackend, reference: TransformersBackend | None,
    training: Sequence[str], layer: int | None,
) -> tuple[Tables, Origins]:  # fmt: skip
    """(Tables that the signals are made of, what recognition and distance are read from)."""
    sides: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for cell in cells:
        sides[cell.item.harmful][cell.item.id] = f"{cell.suite}:{cell.item.cluster}"
    benign = {cell.item.id: cell.item.request for cell in cells if not cell.item.harmful}
    depth = layer if layer is not None else default_layer(backend.model)
    states, margin = readings_of(backend, cells, layer=depth)
    home = training_states(backend, training, layer=depth)
    views: StateViews = views_of(states, harmful=sides[True], benign=sides[False], training=home)
    score: Table = views.score
    by = f"hidden layer {depth}"
    if reference is not None:
        _, before = readings_of(reference, cells, layer=1)
        score = _difference(margin, before)
        margin, by = before, "the implicit reward of refusing, policy against reference"
    tables = Tables(
        failed=failing(cells), margin=margin, score=score, distance=views.distance,
        matched=matching(states, requests=benign), harmful=sides[True], benign=sides[False],
    )  # fmt: skip
    return tables, Origins(by, len(home) if len(home) > 1 else 0)


def training_states(backend: TransformersBackend, prompts: Sequence[str], *, layer: int) -> list[np.ndarray]:
    """Hidden states (H) of the fine-tuning prompts as the policy saw them; those that do not fit are left out."""
    states = last_hidden_states(backend, [prompt_of(text) for text in prompts], layer=layer)
    return [state.double().numpy() for state in states if not isinstance(state, Missing)]


def failing(cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """shift -> harmful item -> share of its judged samples that fail (BAD). Of a judge that cannot say
    BAD the largest that it can be, with UNCLEAR.
    """
    return _shares(cells, harmful=True, bad=lambda found: found["verdict"] in _failing_verdicts(found))


def _failing_verdicts(found: Fields) -> Sequence[str]:
    return ("BAD",) if found.get("can_fail", True) else MAY_FAIL


def at_most(cells: Sequence[Cell]) -> bool:
    """Whether `failing` says only how many can have failed."""
    found = (cell.value("verdict") for cell in cells if cell.item.harmful)
    return any(not isinstance(one, Missing) and not one.get("can_fail", True) for one in found)


def refusing(cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """shift -> benign item -> share of its judged samples that refuse (BAD)."""
    return _shares(cells, harmful=False, bad=lambda found: found["verdict"] == "BAD")


def _shares(cells: Sequence[Cell], *, harmful: bool, bad: Callable[[Fields], bool]) -> dict[str, dict[str, float]]:
    seen: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        verdict = cell.value("verdict")
        if cell.item.harmful == harmful and not isinstance(verdict, Missing):
            seen.setdefault((cell.shift.name, cell.item.id), []).append(float(bad(verdict)))
    table: dict[str, dict[str, float]] = {}
    for (shift, item), values in seen.items():
        table.setdefault(shift, {})[item] = sum(values) / len(values)
    return table


def _difference(a: Table, b: Table) -> dict[str, dict[str, float]]:
    return {s: {i: v - b[s][i] for i, v in row.items() if i in b.get(s, {})} for s, row in a.items()}


def read_thresholds(file: str) -> Thresholds:
    """Frozen bounds from a JSON file (alone, or under "thresholds"); UserError naming file and fault."""
    try:
        values = json.loads(Path(file).read_text(encoding="utf-8"))
        return Thresholds.parse(values.get("thresholds", values))
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file of thresholds; leave --thresholds out to calibrate them") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: {error}; write it with benchmarks/attribution/run.py") from error


def result_of(
    tables: Tables, *, shifts: Sequence[Shift], model: str, origins: Origins, refused: Table,
    bounds: Thresholds | None = None, at_most: bool = False,
) -> Json:  # fmt: skip
    """attribution.json: bounds, and per shift the region, its shares, the signals and the sentence.

    `bounds` None: calibrated on the controls among the shifts. `at_most`: the tables say how many can have failed.
    """
    signals = signals_of(tables, shifts=shifts)
    if bounds is None:
        controls = controls_of(signals, shifts=shifts)
        try:
            bounds = calibrate(controls, what=", ".join(dict.fromkeys(c.shift for c in controls)))
        except ValueError as error:
            raise UserError(f"{model}: {error}; or give frozen bounds with --thresholds") from error
    modes = {shift.name: shift.mode for shift in shifts}
    entries: Json = {}
    for attribution in attribute(signals, thresholds=bounds, at_most=at_most):
        shift = attribution.shift
        extra: Json = {"sentence": sentence(attribution, at_most=at_most, home=origins.home), "mode": modes[shift]}
        if at_most:
            most = {"fails": attribution.fails, "fails_plain": attribution.fails_plain}
            extra |= {n: bounded(dataclasses.replace(m, estimate=0.0, low=0.0), m) for n, m in most.items()}
        extra["recognition_auroc"] = recognition_auroc(tables, shift)
        extra["benign"] = benign_behind(tables, shift, refused=refused)
        entries[shift] = {**attribution.jsonable(), **extra}
    unmeasured = [s.name for s in shifts if s.name != "none" and s.name not in entries]
    return {
        "model": model, "thresholds": bounds.jsonable(), "recognition_by": origins.recognition, "shifts": entries,
        "distance_from": origins.distance,
        "recognition_auroc_plain": recognition_auroc(tables, "none"), "not_measured": unmeasured,
    }  # fmt: skip
