"""The summary of a finished plan: cells, ledgers and claims on disk -> summary.json, whose fields the report reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from align.data.answers import ExactAnswer, SampledAnswer
from align.preferences import Weights
from align.runs import Call, Run, open_run
from evals.tables.tradeoffs import Front
from recipes.pipeline.conflict_summary import training_conflict
from recipes.pipeline.inputs import joined_claims
from recipes.pipeline.plan import Plan
from recipes.pipeline.provenance import ledger_table, provenance
from recipes.pipeline.rows import Row
from recipes.pipeline.sampled import conflict_of, reference_point, shown_samples
from recipes.pipeline.setting import REFERENCE

Table = Mapping[str, object]
Tables = Mapping[str, Table]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The schema of summary.json. `methods`: row -> its numbers; `shifts`: shift -> row -> its numbers.

    A field that is None is no key of the file: what an experiment does not have, the report leaves out.
    """

    title: str
    kind: str  # testbed: exact cells; sampled: drawn responses under judges
    world: str | None
    world_details: Table
    methods: Tables
    shifts: Mapping[str, Tables]
    controls: Tables
    conflict: Table
    optimum: Table | None = None
    samples: Sequence[Table] | None = None
    reward_models: Sequence[Table] | None = None
    reward_model_leads: Sequence[Table] | None = None
    second_judge: Table | None = None
    tables: Sequence[Table] | None = None  # further ones: title, how, head, rows of text
    notes: Sequence[str] = ()
    provenance: Table = field(default_factory=dict)
    ledger: Tables = field(default_factory=dict)

    def jsonable(self) -> dict[str, object]:
        """As it is written; `world` is there even where it is null."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None or name == "world"}


@dataclass(frozen=True, kw_only=True)
class About:
    """What a setting's tables need beside the cells.

    headline: the objective whose loss under a shift heads the tables. point: of hypervolumes (None: that of
    `sampled.reference_point`). apart: rows with cells that stand in no table. info: more on a row.
    """

    title: str
    headline: str
    point: Sequence[float] | None = None
    front_at_kl: Front | None = None
    apart: tuple[str, ...] = ()
    info: Tables = field(default_factory=dict)


def summary(plan: Plan, *, about: About, config: object, seed: int) -> Summary:
    """The summary of a plan whose calls are all finished."""
    from evals.tables.tradeoffs import controls_table, exact_table, sampled_table
    from evals.tables.under_shift.generalization import shifts_table

    names = plan.setting.objectives
    every = [a for row, made in plan.cells.items() if row not in about.apart for a in answers_of(made)]
    exact = [answer for answer in every if isinstance(answer, ExactAnswer)]
    drawn = [answer for answer in every if isinstance(answer, SampledAnswer)]
    point = list(about.point) if about.point is not None else reference_point(drawn)
    info = row_info(plan, about=about)
    if exact:
        methods = exact_table(exact, objectives=names, reference_point=point, front_at_kl=about.front_at_kl, info=info)
    else:
        methods = sampled_table(drawn, objectives=names, reference_point=point, info=info, seed=seed)
    controls = [row for row in plan.cells if row not in plan.fits and row not in about.apart]
    conflict = {} if exact else conflict_of(drawn, names=names)
    fits = {row: {label: call.out for label, call in points.items()} for row, points in plan.fits.items()}
    return Summary(
        title=about.title,
        kind="testbed" if exact else "sampled",
        world=None,
        world_details={
            "objectives": list(names),
            "reference_point": point,
            "prompts": len({answer.prompt for answer in every if answer.shift == "none"}),
        },
        methods=methods,
        shifts=shifts_table(
            every, objectives=names, reference_point=point, headline=about.headline, seed=0 if exact else seed
        ),
        controls=controls_table(methods, controls={row: row for row in controls}),
        conflict={"names": list(names), **conflict, "training": training_conflict(fits)},
        samples=None if exact else shown_samples(drawn),
        provenance=provenance(config, seed=seed, runs=[open_run(call.out) for call in plan.calls]),
        ledger=ledger_table(costs(plan)),
    )


def answers_of(calls: Sequence[Call]) -> list[ExactAnswer | SampledAnswer]:
    """All answers of some evaluation runs, read through the checked reader."""
    from evals.measure.answers import read_answers

    return [answer for call in calls for answer in read_answers(call.out / "cells.jsonl")]


def row_info(plan: Plan, *, about: About) -> dict[str, dict[str, object]]:
    """What each row says about itself: what it optimises, its rewards, cost, samples per response, alignment tax."""
    before = open_run(plan.cells[REFERENCE][0].out).metrics.get("bits_per_byte")
    info: dict[str, dict[str, object]] = {}
    for name, calls in plan.cells.items():
        if name in about.apart:
            continue
        measured = {call.out.name: open_run(call.out).metrics for call in calls}
        bits = {label: m["bits_per_byte"] for label, m in measured.items() if m.get("bits_per_byte") is not None}
        after = sum(bits.values()) / len(bits) if bits else None
        tax: dict[str, object] = {"before": before, "after": after}
        if after is not None:
            tax["change"] = after - before
            tax |= {} if name == REFERENCE else {"per_preference": bits}
        entry = info[name] = {"note": "", "rewards": "none" if name == REFERENCE else "gold", "ledger": {}}
        entry["samples_per_response"] = max(m["samples_per_response"] for m in measured.values())
        entry["bits_per_byte"] = tax
        row = plan.row(name)
        if row is not None:
            points = {label: open_run(call.out).metrics for label, call in plan.fits[name].items()}
            claims = {label: claim_at(metrics["optimises"], label) for label, metrics in points.items()}
            entry |= {"optimises": joined_claims(claims), "note": row.note, "rewards": plan.rewards_of(row)}
            entry["ledger"] = ledger_table({str(path): run.ledger for path, run in charged(plan, row).items()})["total"]
        entry |= about.info.get(name, {})
    return info


def claim_at(claims: Mapping[str, str], label: str) -> str:
    """What a run says that its point at a label optimises; a run of one point asked otherwise has one claim."""
    return claims[label] if label in claims else next(iter(claims.values()))


def charged(plan: Plan, row: Row) -> dict[Path, Run]:
    """All that a row is made of: its own runs, its specialists', the comparisons and reward models that it reads."""
    calls = [*plan.runs_of(row.name), *plan.specialists.get(row.name, {}).values(), *shared(plan, row)]
    return {call.out: open_run(call.out) for call in calls}


def shared(plan: Plan, row: Row) -> list[Call]:
    """Runs that a row has in common with others: what learned rewards are made of, or the pairs that it trains on."""
    pairs = list(plan.setting.comparisons())[-1:]
    if plan.rewards_of(row) == "learned":
        return [*pairs, *plan.setting.reward_models().values()]
    return pairs if trains_on_pairs(row) else []


def trains_on_pairs(row: Row) -> bool:
    """Whether a row's method reads comparisons: its Config then says where their labels or scores come from."""
    from align.methods import METHODS

    known = {one.name: one.default for one in dataclasses.fields(METHODS[row.method].Config)}
    on_policy = {**known, **row.settings}.get("data") == "on_policy"
    return bool({"labels", "scores"} & set(known)) and not on_policy


def costs(plan: Plan) -> dict[str, dict[str, float]]:
    """Ledgers by stage; a row's points are added up, and so are its evaluations, and those of all controls."""
    groups = {call.out: f"{row} (all points)" for row, points in plan.fits.items() for call in points.values()}
    for row, calls in plan.cells.items():
        name = f"evaluate {row} (all points)" if row in plan.fits or row == REFERENCE else "controls and closed forms"
        groups |= {call.out: name for call in calls}
    by_group: dict[str, dict[str, Mapping[str, float]]] = {}
    for call in plan.calls:
        by_group.setdefault(groups.get(call.out, call.name), {})[call.name] = open_run(call.out).ledger
    return {name: ledger_table(group)["total"] for name, group in by_group.items()}


def preferences(weights: Sequence[Weights]) -> list[list[float]]:
    """Weights as the summary's lists."""
    return [list(w.values) for w in weights]
