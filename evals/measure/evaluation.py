"""A prompt's way from its suite to an evaluated cell: suites chosen, asked under shifts, measured by one engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from align.errors import UserError
from evals.items import Fields, Item
from evals.measure.by_name import measures_of
from evals.measure.cells import Evaluated, ask
from evals.measure.engine import Engine
from evals.measure.measurements import Measurement, own_measurements
from evals.measure.verdict import Verdict
from evals.shifts.base import Shift
from evals.suites import load_suite
from evals.suites.base import Suite


@dataclass(frozen=True)
class Chosen:
    """One suite with its items, and what is measured of each."""

    suite: Suite
    items: Sequence[Item]
    measures: Sequence[str]


def chosen_suites(
    names: Sequence[str], *, data: str | None, limit: int | None = None, measures: Sequence[str] = ()
) -> list[Chosen]:
    """The suites by name or file, read from the folder `data`, with their measures (default: by kind).

    UserError where none is named, two share a name, or one has no items.
    """
    chosen: dict[str, Chosen] = {}
    for name in names:
        suite, items = load_suite(name, data=data, limit=limit)
        if suite.name in chosen:
            raise UserError(f"two suites are called {suite.name!r}; rename one file, or name a suite once")
        if not items:
            raise UserError(f"suite {suite.name} has no items; nothing would be measured")
        chosen[suite.name] = Chosen(suite, items, measures_of(suite.kind, chosen=measures))
    if not chosen:
        raise UserError("no suite is given; name at least one with --suite")
    return list(chosen.values())


@dataclass(frozen=True)
class Session:
    """What every suite of one evaluation shares: the engine with its model and store, and what is asked of it."""

    engine: Engine
    shifts: Sequence[Shift]
    samples: int
    measurements: Mapping[str, Measurement]


def evaluated(suites: Sequence[Chosen], *, session: Session) -> dict[str, Evaluated]:
    """Suite -> its cells with every measured value; all of them are in the engine's store."""
    results = {}
    for one in suites:
        cells = ask(one.items, suite=one.suite.name, shifts=session.shifts, samples=session.samples)
        wanted = [session.measurements[name] for name in one.measures]
        wanted += own_measurements(one.suite.kind, made=one.measures)
        how = {one.name: {**one.config(), **_version(one)} for one in wanted}
        results[one.suite.name] = Evaluated(one.suite, session.engine.run(cells, measurements=wanted), how)
    return results


def _version(measurement: Measurement) -> Fields:
    """A judge's whole version, of which only the number is in keys."""
    return {"version": measurement.judge.version} if isinstance(measurement, Verdict) else {}
