"""The plan of an experiment: a setting and rows -> calls in order, and which of them hold each row's runs and cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from align.errors import UserError
from align.preferences import Weights
from align.runs import Call
from recipes.pipeline.inputs import section
from recipes.pipeline.rows import Fit, Row, fit_of, settings_of
from recipes.pipeline.setting import Setting

ALWAYS_READ = frozenset({"method", "settings", "runs", "note"})  # a row's keys that every setting has a use for


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`calls` in an order in which they can run; `fits`: row -> preference's label -> the run of its policy.

    `specialists`: of a row that is made of others, vertex -> run. `cells`: row, controls too -> what holds its cells.
    """

    setting: Setting
    rows: tuple[Row, ...]
    calls: tuple[Call, ...]
    fits: Mapping[str, Mapping[str, Call]] = field(default_factory=dict)
    specialists: Mapping[str, Mapping[str, Call]] = field(default_factory=dict)
    cells: Mapping[str, tuple[Call, ...]] = field(default_factory=dict)

    def row(self, name: str) -> Row | None:
        """The row of that name; None for a control."""
        return next((row for row in self.rows if row.name == name), None)

    def rewards_of(self, row: Row) -> str:
        """gold or learned: what trained the row, or the row that it is made of."""
        source = self.row(row.specialists_of) if row.specialists_of is not None else None
        return row.rewards if source is None else self.rewards_of(source)

    def runs_of(self, row: str) -> tuple[Call, ...]:
        """The row's own training runs, each once: a family is one run for all preferences."""
        return tuple({call.out: call for call in self.fits.get(row, {}).values()}.values())


def plan(setting: Setting, rows: Sequence[Row], *, smoke: bool = False) -> Plan:
    """Every call of the experiment; `smoke` trains rows at the budget of a quick check.

    UserError, before any work, on rows that share folders with each other or a control, or with keys that the setting
    does not read, and on a row made of one that has no policy at a vertex.
    """
    firsts = {row.name: trained_first(row, smoke=smoke) for row in rows}
    _check_names([*rows, *(first for first in firsts.values() if first is not None)], controls=setting.controls())
    for row in rows:
        for key in row.changed:
            if key not in ALWAYS_READ | setting.row_keys:
                raise UserError(f"row {row.name}: {key} is not read in this experiment; leave it out")
    calls = [*setting.reference(), *setting.comparisons(), *setting.more()]
    if any(row.learned for row in rows):
        calls += setting.reward_models().values()
    controls = setting.controls()
    fits: dict[str, dict[str, Call]] = {}
    specialists: dict[str, dict[str, Call]] = {}
    cells = {row: tuple(made) for row, made in controls.items()}
    corners = vertices(len(setting.objectives))

    trained: dict[Path, Fit] = {}

    def train(row: Row, group: Sequence[Weights], parts: Mapping[str, Call]) -> Call:
        betas = _betas([trained[part.out] for part in parts.values()])
        fit = fit_of(row, group, fixed={**setting.fixes(row), **betas}, smoke=smoke)
        call = setting.fit(row, fit, {label: part.run for label, part in parts.items()})
        trained[call.out] = fit
        return call

    for row in rows:
        asked, first = setting.asked(row), firsts[row.name]
        parts: dict[str, Call] = {}
        if first is not None:
            parts = {w.label: train(first, [w], {}) for w in corners}
        elif row.specialists_of is not None:
            parts = _vertices_of(row, fits.get(row.specialists_of, {}), corners)
        own, judged = fits.setdefault(row.name, {}), list[Call]()
        calls += parts.values()
        for group in [asked] if row.runs == "family" else [[w] for w in asked]:
            fit = train(row, group, parts)
            own |= {w.label: fit for w in group}
            made = [call for w in group for call in setting.judge(row, fit.run, w)]
            calls += [fit, *made]
            judged += made
        cells[row.name] = tuple(judged)
        specialists[row.name] = parts
    calls += [call for made in controls.values() for call in made]
    return Plan(
        setting=setting, rows=tuple(rows), calls=ordered(calls), fits=fits, specialists=specialists, cells=cells
    )


def vertices(count: int) -> list[Weights]:
    """The preferences that know one objective alone, in the objectives' order."""
    return [Weights.vertex(k, count) for k in range(count)]


def _vertices_of(row: Row, source: Mapping[str, Call], corners: Sequence[Weights]) -> dict[str, Call]:
    """The runs that the row is made of; UserError where its source has no policy at a vertex."""
    for w in corners:
        if w.label not in source:
            raise UserError(f"row {row.name}: specialists_of {row.specialists_of}, which has no policy at {w.label}")
    return {w.label: source[w.label] for w in corners}


def _betas(fits: Sequence[Fit]) -> dict[str, object]:
    """`betas` of a method that mixes these specialists: each one's own; none where one has no beta."""
    values = [getattr(fit.config(), "beta", None) for fit in fits]
    return {"betas": tuple(values)} if values and all(values) else {}


def _check_names(rows: Sequence[Row], *, controls: Iterable[str]) -> None:
    """UserError on a name that is no folder's name, and on two names, a control's too, that share a folder."""
    owners = {name.replace("/", "_"): f"the control {name}" for name in controls}
    for row in rows:
        if row.folder.strip() in ("", ".", ".."):
            raise UserError(f"row {row.name!r} has no name that a folder could have; give it another name")
        if row.folder in owners:
            raise UserError(f"row {row.name} would share its folder with {owners[row.folder]}; give it another name")
        owners[row.folder] = f"row {row.name}"


def trained_first(row: Row, *, smoke: bool = False) -> Row | None:
    """The specialists of a row that combines some and names neither a row nor their directories, as a row to train."""
    from align.engines import specialists
    from align.methods import METHODS

    cls = METHODS[row.method].Config
    settings = settings_of(row, smoke=smoke)
    if row.specialists_of is not None or settings.get("specialists") or not issubclass(cls, specialists.Config):
        return None
    config = section(cls, settings, where="rows", name=row.name)
    changes = {"method": config.method, "settings": config.method_config, "runs": "points", "smoke": {}}
    return dataclasses.replace(row, name=f"{row.name}/specialists", **changes)


def ordered(calls: Iterable[Call]) -> tuple[Call, ...]:
    """Each folder's first call once, as given but after all that it needs."""
    waiting = {call.out: call for call in reversed(list(calls))}
    done: dict[object, Call] = {}

    def add(call: Call) -> None:
        if call.out not in done:
            for folder in call.needs:
                if folder in waiting:
                    add(waiting[folder])
            done[call.out] = call

    for call in reversed(list(waiting.values())):
        add(call)
    return tuple(done.values())
