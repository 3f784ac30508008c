"""A row of a comparison: one method, how it is trained and asked; one dataclass and one reader for every experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from align.errors import UserError
from align.preferences import Weights
from align.runs.values import later
from recipes.config import build
from recipes.pipeline.inputs import section

Settings = Mapping[str, object]
FIXED_POINTS = ("none", "scalarised", "learned", "best_of_n", "token_kl", "group", "batch", "gdpo", "token_mod")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table. `settings` are keys of the method's Config; a setting's own (beta, seed) stand below them.

    runs: points trains once per preference, family once for all of them. asks: weights, or thresholds at the exact
    optimum's values. specialists_of: a row above, whose vertices this one is made of. shifts: true for all that are
    shifts, or their names. fixed_point: what the expected update converges to, where the settings do not say it.
    contender: false for a row that is shown and never called the best. smoke: settings of a quick check.
    """

    name: str
    method: str
    settings: Settings = field(default_factory=dict)
    rewards: Literal["gold", "learned"] = "gold"
    runs: Literal["points", "family"] = "points"
    asks: Literal["weights", "thresholds"] = "weights"
    specialists_of: str | None = None
    shifts: bool | tuple[str, ...] = True
    fixed_point: str | None = None
    worlds: tuple[str, ...] = ()
    note: str = ""
    contender: bool = True
    smoke: Settings = field(default_factory=dict)

    @property
    def learned(self) -> bool:
        """Whether reward models train it, in place of the objectives themselves."""
        return self.rewards == "learned"

    @property
    def folder(self) -> str:
        """Its name as a folder's name."""
        return self.name.replace("/", "_")

    @property
    def target(self) -> str:
        """What the row's expected update converges to: as given, or as its method and settings say; "none": unknown."""
        return self.fixed_point or ("none" if self.learned else _fixed_point(self.method, self.settings))

    @property
    def draws(self) -> int:
        """Samples of a prompt that one update sees: n of best-of-n, else the size of a group; 0 without."""
        size = self.settings.get("n", self.settings.get("num_generations", 0))
        return size if isinstance(size, int) else 0

    @property
    def changed(self) -> tuple[str, ...]:
        """Its keys that differ from their defaults; those without a default, too."""
        keys: list[str] = []
        for one in dataclasses.fields(self):
            default = one.default_factory() if callable(one.default_factory) else one.default
            if one.name != "name" and getattr(self, one.name) != default:
                keys.append(one.name)
        return tuple(keys)

    def given(self) -> dict[str, object]:
        """What differs from the defaults, with the fixed point where it is known: the row as its file could hold it."""
        values: dict[str, object] = {}
        known = {one.name for one in dataclasses.fields(Row)}
        for key in self.changed:
            if key in known:
                value = getattr(self, key)
                values[key] = list(value) if isinstance(value, tuple) else value
        return values | ({} if self.target == "none" else {"fixed_point": self.target})


def _fixed_point(method: str, settings: Settings) -> str:
    """Of a method on gold rewards at one preference; "none" where no update rule describes it."""
    if method in ("best_of_n", "best_sft"):
        return "best_of_n"
    if method == "mod":
        return "token_mod"
    if method in ("ppo", "rebel", "lagrangian", "mocan", "astar_po"):
        return "scalarised"
    if method != "morlhf":
        return "none"
    if settings.get("aggregation") == "normalize_then_sum":
        return "gdpo"
    scaled = settings.get("scale_rewards", "none")
    if scaled in ("group", "batch"):
        return str(scaled)
    return "token_kl" if settings.get("kl") == "token" else "scalarised"


R = TypeVar("R", bound=Row)


def read_rows(
    values: Mapping[str, object], *, where: str, kind: type[R], every: Mapping[str, object] | None = None,
    name: str = "rows",
) -> tuple[R, ...]:  # fmt: skip
    """The rows of a file's section `name`, checked; `every` holds keys that all of them share (a row's own win).

    UserError naming file and row on an unknown key, method, shift or setting, and on specialists of no row above.
    """
    rows: list[R] = []
    for row_name, entry in values.items():
        place = f"{where}: {name}: {row_name}"
        if not isinstance(entry, Mapping):
            raise UserError(f"{place} is {entry!r}; give a row's keys: method, settings, rewards, ...")
        row = build(kind, {**(every or {}), **entry, "name": str(row_name)}, where=place)
        check_row(row, above=rows, where=place)
        rows.append(row)
    return tuple(rows)


def check_row(row: Row, *, above: Sequence[Row], where: str) -> None:
    """UserError beginning with `where` on what no plan could run; `above` are the rows before it."""
    from align.methods import METHODS
    from align.testbed.world import SHIFTS

    if row.method not in METHODS:
        raise UserError(f"{where}: method {row.method!r} is not one of {', '.join(METHODS)}")
    if not isinstance(row.shifts, bool) and not set(row.shifts) <= set(SHIFTS):
        raise UserError(f"{where}: shifts must be true, false or a list of {', '.join(SHIFTS)}")
    if row.fixed_point is not None and row.fixed_point not in FIXED_POINTS:
        raise UserError(f"{where}: fixed_point {row.fixed_point!r} is not one of {', '.join(FIXED_POINTS)}")
    if row.fixed_point == "learned" and not row.learned:
        raise UserError(f"{where}: fixed_point learned needs rewards: learned")
    if row.asks == "thresholds" and row.runs == "family":
        raise UserError(f"{where}: asks: thresholds trains one run per preference; leave out runs: family")
    for name, settings in (("settings", row.settings), ("smoke", row.smoke)):
        section(METHODS[row.method].Config, settings, where=where, name=name)
    _check_specialists(row, above=above, where=where)


def _check_specialists(row: Row, *, above: Sequence[Row], where: str) -> None:
    """UserError on specialists that could not be trained, or that the row or the method cannot be made of."""
    from align.engines import specialists
    from align.methods import METHODS
    from recipes.pipeline.specialists import makes_specialists, specialist_settings

    cls = METHODS[row.method].Config
    if row.specialists_of is not None:
        source = next((other for other in above if other.name == row.specialists_of), None)
        if source is None:
            raise UserError(f"{where}: specialists_of names {row.specialists_of!r}, which is no row above it")
        if not issubclass(cls, specialists.Config):
            raise UserError(f"{where}: method {row.method} takes no specialists; leave out specialists_of")
        if source.runs == "family" or not makes_specialists(METHODS[source.method]):
            raise UserError(f"{where}: specialists_of names {source.name!r}, which trains no policy per preference")
    elif issubclass(cls, specialists.Config):
        for smoke in (False, True):
            config = section(cls, settings_of(row, smoke=smoke), where=where, name="settings")
            if not config.specialists:
                specialist_settings(config, where=f"{where}: ")


def settings_of(row: Row, *, smoke: bool) -> Settings:
    """The row's own settings; those of a quick check win, key by key also within a section such as method_config."""
    settings = dict(row.settings)
    for key, value in (row.smoke if smoke else {}).items():
        below = settings.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = {**below, **value}
        settings[key] = value
    return settings


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One training run: a method, the settings that differ from its defaults, the preferences that it is to answer.

    spellings: of the testbed's fine-tuning prompts, () for the usual ones alone. covers: share of topics that come in
    others than the first.
    """

    method: str
    settings: Settings
    preferences: tuple[Weights, ...]
    spellings: tuple[int, ...] = ()
    covers: float = later(1.0)

    def config(self, **more: object) -> object:
        """The method's Config; UserError on a setting that it does not have."""
        from align.methods import METHODS

        return section(METHODS[self.method].Config, {**self.settings, **more}, where="settings", name=self.method)


def fit_of(row: Row, preferences: Sequence[Weights], *, fixed: Settings, smoke: bool = False) -> Fit:
    """A row's training run: of what the setting fixes, the fields that its method has, under the row's own settings."""
    from align.methods import METHODS

    known = {one.name for one in dataclasses.fields(METHODS[row.method].Config)}
    below = {name: value for name, value in fixed.items() if name in known}
    settings = {**below, **settings_of(row, smoke=smoke)}
    return Fit(method=row.method, settings=settings, preferences=tuple(preferences))
