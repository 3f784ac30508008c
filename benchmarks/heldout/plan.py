"""The held-out benchmark's file and calls: one finished policy, every candidate once for each family held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from align.errors import UserError
from align.preferences import Weights
from align.runs import Call, planned
from align.testbed.controls import Controls
from align.testbed.world import World, spelling_split
from align.training.consistency.settings import ConsistencyConfig
from benchmarks.heldout import stages as own
from benchmarks.shift.plan import Spellings
from benchmarks.shift.stages import graft
from evals.items import Json
from recipes.config import build, read_yaml
from recipes.pipeline.inputs import section
from recipes.pipeline.plan import ordered
from recipes.pipeline.rows import Row, Settings, fit_of
from recipes.testbed import stages
from recipes.testbed.setting import Sizes, budget_of
from recipes.testbed.stages import Judged

NOTHING, REFERENCE = "nothing", "reference"
CLOSED = Controls(temperature=1.0, overspend=1.0, n=1)  # no closed-form row is asked for


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """One way to bring along what was learned, in one of five forms.

    consistency: keys of ConsistencyConfig, the policy trained further on the families that are not held out. augmented:
    the policy's own method, trained on those families as well from the start. graft: of another candidate the `layers`
    or the `embeddings` alone, the rest being the reference's. dictionary: `own.dictionary`. sharpened: `own.sharpened`.
    families: those that are held out (none given: the file's). explains: no candidate, but it shows where the
    effect of one sits.
    """

    name: str
    what: str
    consistency: Settings = field(default_factory=dict)
    augmented: bool = False
    graft: dict[str, str] = field(default_factory=dict)
    dictionary: bool = False
    sharpened: bool = False
    families: tuple[int, ...] = ()
    explains: bool = False


@dataclass(frozen=True, kw_only=True)
class Spec(Sizes):
    """The YAML file: sizes of the reference, the policy (`method` at `weights`), what candidates share, candidates.

    families: those that are held out in turn (none given: all of the world's).
    """

    world: str
    weights: tuple[float, ...]
    method: str
    settings: dict[str, object]
    consistency: dict[str, object]
    candidates: dict[str, object]
    families: tuple[int, ...] = ()

    @property
    def preference(self) -> Weights:
        return Weights(tuple(self.weights))

    def training(self, candidate: Candidate, *, seed: int) -> ConsistencyConfig:
        """The candidate's own keys over the shared ones; UserError naming it on an unknown key."""
        values = {**self.consistency, **candidate.consistency, "seed": seed}
        return section(ConsistencyConfig, values, where="candidates", name=candidate.name)


def read_file(file: Path, *, only: Sequence[str] | None = None) -> tuple[Spec, tuple[Candidate, ...]]:
    """The file, checked, and its candidates: all, or `only` some with those that they are made of."""
    spec = build(Spec, read_yaml(file), where=file.name)
    budget_of(spec, seed=0, where=file.name)
    return spec, checked(spec, only=only, where=file.name)


def checked(spec: Spec, *, only: Sequence[str] | None = None, where: str = "candidates") -> tuple[Candidate, ...]:
    """The candidates; UserError on an unknown key, a form that is missing or double, or a graft of nobody above."""
    found: dict[str, Candidate] = {}
    for name, entry in spec.candidates.items():
        place = f"{where}: candidates: {name}"
        if not isinstance(entry, Mapping):
            raise UserError(f"{place} is {entry!r}; give its keys: what, consistency, ...")
        one = build(Candidate, {**entry, "name": name}, where=place)
        forms = [bool(one.consistency), one.augmented, bool(one.graft), one.dictionary, one.sharpened]
        if forms.count(True) != 1:
            raise UserError(f"{place}: give either consistency, augmented, graft, dictionary or sharpened")
        if one.graft and (set(one.graft) not in ({"layers"}, {"embeddings"}) or source(one) not in {NOTHING, *found}):
            raise UserError(f"{place}: graft takes layers: or embeddings: and the name of a candidate above")
        if one.consistency:
            spec.training(one, seed=0)
        found[name] = one
    unknown = [name for name in only or () if name not in found]
    if unknown:
        raise UserError(f"--candidates: no {unknown[0]!r}; there are {', '.join(found)}")
    kept = set(found if only is None else only)
    for one in reversed(found.values()):
        kept |= {source(one)} if one.graft and one.name in kept else set()
    return tuple(one for one in found.values() if one.name in kept)


def source(candidate: Candidate) -> str:
    """What a graft is made of."""
    return next(iter(candidate.graft.values()))


def families_of(spec: Spec, world: World) -> tuple[int, ...]:
    """The spellings that are held out in turn."""
    return spec.families or tuple(range(1, world.config.spellings + 1))


@dataclass(frozen=True)
class Place:
    """The row in which a candidate answers for a held-out family, and the splits of that family and of one it saw.

    alone: it was trained on no family, and answers for all in one row.
    """

    row: str
    held_out: str
    seen: str | None = None
    alone: bool = False


def places(candidate: Candidate, candidates: Sequence[Candidate], *, families: Sequence[int]) -> dict[int, Place]:
    """Held-out family -> its place; on a family that it saw a candidate is judged while the first is held out."""
    below = next((one for one in candidates if candidate.graft and one.name == source(candidate)), candidate)
    asked = candidate.families or families
    if not (below.consistency or below.augmented):
        return {s: Place(candidate.name, spelling_split(s), alone=True) for s in asked}
    seen = {families[0]: spelling_split(families[1])} if len(families) > 1 else {}
    return {s: Place(f"{candidate.name}_{s}", spelling_split(s), seen.get(s)) for s in asked}


@dataclass(frozen=True)
class Planned:
    """`calls` in order; row -> the call that makes it, and the one that judges it; `shared`: `own.shared_words`."""

    calls: tuple[Call, ...]
    made: Mapping[str, Call]
    cells: Mapping[str, Call]
    shared: Call


@dataclass(frozen=True, kw_only=True)
class Heldout(Spellings):
    """One seed: the policy, and every candidate in every place."""

    spec: Spec
    candidates: tuple[Candidate, ...]

    def policy(self, name: str, spellings: tuple[int, ...]) -> Call:
        """The spec's method on the fine-tuning prompts in some spellings."""
        row = Row(name=name, method=self.spec.method, settings=self.spec.settings)
        fit = dataclasses.replace(fit_of(row, self.preferences, fixed=self.fixes(row)), spellings=spellings)
        return stages.finetune.call(self.rows_in(name), world=self.world, reference=self.made("sft"), fit=fit)

    @property
    def families(self) -> tuple[int, ...]:
        """The spellings that are held out in turn."""
        return families_of(self.spec, self.world)

    def rows_in(self, row: str) -> Path:
        """Where the run of a row lies."""
        return self.out / "rows" / row

    def candidate(self, one: Candidate, row: str, family: int) -> Call:
        """The call that makes a candidate's policy for a family that it does not see."""
        others = tuple(s for s in range(1, self.world.config.spellings + 1) if s != family)
        (weights,), policy = self.preferences, planned(self.rows_in(NOTHING))
        shared: Json = {"world": self.world, "reference": self.made("sft"), "weights": weights}
        if one.augmented:
            return self.policy(row, (0, *others))
        if one.dictionary:
            return own.dictionary.call(self.rows_in(row), policy=policy, **shared)
        if one.consistency:
            training = self.spec.training(one, seed=self.seed)
            return own.consistent.call(self.rows_in(row), policy=policy, spellings=others, training=training, **shared)
        below = [other for other in self.candidates if other.name == source(one)]
        places_below = places(below[0], self.candidates, families=self.families) if below else {}
        part = places_below[family].row if below else NOTHING
        return graft.call(
            self.rows_in(row), part=planned(self.rows_in(part)), reference=self.made("sft"), keep=next(iter(one.graft)),
            weights=self.preferences,
        )  # fmt: skip

    def everything(self) -> Planned:
        """Calls by family, so that a sitting that ends early has all candidates on the first families."""
        made: dict[str, Call] = {NOTHING: self.policy(NOTHING, (0,))}
        everywhere = Judged(weights=self.preferences, shifts=tuple(spelling_split(s) for s in self.families))
        cells = {
            REFERENCE: self.cells(REFERENCE, self.made("sft"), everywhere),
            NOTHING: self.cells(NOTHING, made[NOTHING].run, everywhere),
        }
        held_out = {one: places(one, self.candidates, families=self.families) for one in self.candidates}
        for family in self.families:
            for one, place in ((one, found[family]) for one, found in held_out.items() if family in found):
                splits = everywhere.shifts if place.alone else (place.held_out, *([place.seen] if place.seen else []))
                judged = dataclasses.replace(everywhere, shifts=splits)
                made[place.row], cells[place.row] = self.calls(one, place.row, family, judged)
        words = own.shared_words.call(self.out / "shared", world=self.world, reference=self.made("sft"))
        named = {row: call.named(f"{row}{self.tag}") for row, call in made.items()}
        rest = [call for row in cells for call in (named.get(row), cells[row]) if call is not None]
        calls = ordered([*self.reference(), words.named(f"shared{self.tag}"), *rest])
        return Planned(calls, named, cells, words)

    def calls(self, one: Candidate, row: str, family: int, judged: Judged) -> tuple[Call, Call]:
        """What makes a row and what judges it: one call where it is in closed form."""
        if one.sharpened:
            out = self.cells_in(row) / self.preferences[0].label
            call = own.sharpened.call(out, world=self.world, row=row, reference=self.made("sft"), judged=judged)
            return call, call
        made = self.candidate(one, row, family)
        return made, self.cells(row, made.run, judged)


def plan_of(spec: Spec, candidates: Sequence[Candidate], *, world: World, seed: int, out: Path) -> Planned:
    """Everything at one seed."""
    return Heldout(
        world=world, seed=seed, out=out / f"seed-{seed}", budget=budget_of(spec, seed=seed, where="heldout"),
        preferences=(spec.preference,), closed=CLOSED, tag=f" [{seed}]",
        base=out / f"reference-{world.corpus_key}" / f"seed-{seed}", spec=spec, candidates=tuple(candidates),
    ).everything()  # fmt: skip
