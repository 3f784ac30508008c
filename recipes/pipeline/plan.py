"""The plan of an experiment: a setting and rows -> calls in order, and which of them hold each row's runs and cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from align.preferences import Weights
from align.runs import Call
from recipes.pipeline.inputs import section
from recipes.pipeline.rows import Row, fit_of
from recipes.pipeline.setting import Setting


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

    def runs_of(self, row: str) -> tuple[Call, ...]:
        """The row's own training runs, each once: a family is one run for all preferences."""
        return tuple({call.out: call for call in self.fits.get(row, {}).values()}.values())


def plan(setting: Setting, rows: Sequence[Row], *, smoke: bool = False) -> Plan:
    """Every call of the experiment; `smoke` trains rows at the budget of a quick check."""
    calls = [*setting.reference(), *setting.comparisons(), *setting.more()]
    if any(row.learned for row in rows):
        calls += setting.reward_models().values()
    controls = setting.controls()
    fits: dict[str, dict[str, Call]] = {}
    specialists: dict[str, dict[str, Call]] = {}
    cells = {row: tuple(made) for row, made in controls.items()}
    corners = vertices(len(setting.objectives))

    def train(row: Row, group: Sequence[Weights], parts: Mapping[str, Call]) -> Call:
        fit = fit_of(row, group, fixed=setting.fixes(row), smoke=smoke)
        return setting.fit(row, fit, {label: call.run for label, call in parts.items()})

    for row in rows:
        asked, first = setting.asked(row), trained_first(row)
        parts: dict[str, Call] = {}
        if first is not None:
            parts = {w.label: train(first, [w], {}) for w in corners}
        elif row.specialists_of is not None:
            parts = {w.label: fits[row.specialists_of][w.label] for w in corners}
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


def trained_first(row: Row) -> Row | None:
    """The specialists of a row that combines some and names neither a row nor their directories, as a row to train."""
    from align.engines import specialists
    from align.methods import METHODS

    cls = METHODS[row.method].Config
    if row.specialists_of is not None or row.settings.get("specialists") or not issubclass(cls, specialists.Config):
        return None
    config = section(cls, row.settings, where="rows", name=row.name)
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
