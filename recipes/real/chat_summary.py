"""The summary of a chat model's run: that of real data, and beside it refusals, tax, shifts, best-of-n and claims."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from align.data.load import iterate_rows
from align.runs import Call, open_run
from evals.items import NO_SHIFT, Json
from evals.report.against_reference import (
    SIDES,
    Measured,
    changes,
    claim_sentences,
    claims,
    curves_table,
    points_table,
    refusals,
    rewards,
    shifts_table,
)
from evals.tables.suite_outcomes import read_outcomes
from recipes.pipeline.plan import Plan, vertices
from recipes.pipeline.provenance import ledger_table
from recipes.pipeline.setting import REFERENCE
from recipes.pipeline.summary import Summary, costs
from recipes.real.chat import Calls, Config
from recipes.real.setting import RealData
from recipes.real.summary import real_summary, sampled_of

LIMITS = (
    "Refusals are found by patterns near the start of a response (English). What shows no pattern counts as no "
    "refusal, whether it complies, evades or is nonsense; a disclaimer that an answer follows counts as one. A share "
    "refused bounds the share not complied with from neither side, and says nothing of harm. Each interval is for "
    "one number alone: with so many changes some exclude 0 by chance."
)


def measured(suites: Call, cells: Call, *, names: tuple[str, ...]) -> dict[str, Measured]:
    """Shift -> all that was measured of one policy there, by item; rewards, bits and choices without a shift only."""
    outcomes = [one for group in read_outcomes(suites.out / "safety").values() for one in group]
    clusters = {one.item: one.cluster for one in outcomes}
    under = {
        shift: Measured(refused=refusals(outcomes, shift=shift), clusters=clusters)
        for shift in dict.fromkeys(one.shift for one in outcomes)
    }
    texts = open_run(cells.out).metrics.get("bits_per_byte_of_texts") or []
    under[NO_SHIFT] = dataclasses.replace(
        under[NO_SHIFT],
        right=right_choices(suites.out / "standard"),
        rewards=rewards(sampled_of([cells]), names=names),
        bits={str(i): value for i, value in enumerate(texts)},
    )
    return under


def right_choices(folder: Path) -> dict[str, float]:
    """Item -> whether the choice of highest likelihood is the right one, of all choice suites in a folder."""
    rows = [row for _, row in iterate_rows(folder / "cells.jsonl") if row["measurement"] == "choices"]
    return {f"{row['suite']}:{row['item']}": float(row["value"]["correct"]) for row in rows if "value" in row}


def chat_summary(
    config: Config, plan: Plan, setting: RealData, calls: Calls, *, command: str
) -> tuple[Summary, dict[str, Json]]:
    """(The summary of a finished run, its claims, each with the `command` that made it)."""
    names, start = setting.objectives, (REFERENCE, "")
    every = {
        (row, label): measured(suites, next(c for c in plan.cells[row] if label in ("", c.out.name)), names=names)
        for (row, label), suites in calls.suites.items()
    }
    ends = [(setting.spender.name, w.label) for w in vertices(len(names))]
    plain = {one: found[NO_SHIFT] for one, found in every.items()}
    claimed = claims_of(*(plain[one] for one in (start, *ends)), row=setting.spender.name, command=command)
    under = {shift: {one: every[one][shift] for one in (start, *ends)} for shift in every[start]}
    tables = [
        points_table(plain, reference=start),
        shifts_table(under, reference=start),
        curves_table(open_run(calls.best_of.out).metrics["curves"], names=names),
    ]
    made = real_summary(config, plan, setting)
    causes = open_run(calls.attribution.out).metrics["sentences"]
    notes = [*made.notes, *claim_sentences(claimed), *causes, LIMITS]
    title = f"Helpful against harmless on {Path(str(config.model)).name}, seed {config.seed}"
    spent = ledger_table({**costs(plan), **{call.name: open_run(call.out).ledger for call in calls.every}})
    return dataclasses.replace(made, title=title, tables=tables, notes=notes, ledger=spent), claimed


def claims_of(reference: Measured, kind: Measured, safe: Measured, *, row: str, command: str) -> dict[str, Json]:
    """What the helpful and the harmless policy of a row changed against the reference, and against each other."""
    made: dict[str, Json] = {}
    found = changes(safe, reference=reference)
    named = {
        "unsafe_refusal_gain": "unsafe_refusal", "safe_refusal_cost": "safe_refusal", "harmless_gain": "harmless",
        "helpful_cost": "helpful", "tax_bits_per_byte": "bits_per_byte", "choices_right_change": "choices_right",
    }  # fmt: skip
    words = f"the harmless policy of {row} against the reference"
    made |= claims({name: found.get(key) for name, key in named.items()}, compared=words, command=command)
    found = changes(kind, reference=reference)
    named = {
        "helpful_gain": "helpful", "harmless_change_helpful": "harmless",
        "unsafe_refusal_change_helpful": "unsafe_refusal", "safe_refusal_change_helpful": "safe_refusal",
        "tax_bits_per_byte_helpful": "bits_per_byte", "choices_right_change_helpful": "choices_right",
    }  # fmt: skip
    words = f"the helpful policy of {row} against the reference"
    made |= claims({name: found.get(key) for name, key in named.items()}, compared=words, command=command)
    found = changes(kind, reference=safe)
    named = {f"{key}_helpful_against_harmless": key for key in (*SIDES, "helpful", "harmless")}
    words = f"the helpful policy of {row} against its harmless policy"
    made |= claims({name: found.get(key) for name, key in named.items()}, compared=words, command=command)
    return made


def about(summary: Summary, *, command: str) -> list[str]:
    """What a page of results says before its numbers: what made them, at which cost, and how they are to be read."""
    total = summary.ledger["total"]
    spent = f"{float(str(total['cpu_seconds'])) / 60:.0f} core-minutes in all stages"
    versions = summary.provenance["versions"]
    assert isinstance(versions, dict)
    stack = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "trl", "peft"))
    return [
        f"Made by the command below: {spent}, {summary.provenance['platform']}, {stack}. One training seed: intervals "
        "are over items, not over trainings.", "", f"    {command}", "", LIMITS,
    ]  # fmt: skip
