"""summary.json of an evaluation on suites: what its report and later commands read, written and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from align.errors import UserError
from evals.items import Json
from evals.measure.cells import Evaluated
from evals.tables.examples import examples


def shift_facts(results: Mapping[str, Evaluated]) -> dict[str, Json]:
    """shift -> what a reader should know of it, for every shift that was asked."""
    return {
        name: {
            "family": shift.family, "mode": shift.mode, "about": shift.about, "placebo": shift.control,
            "version": shift.version,
        }
        for result in results.values()
        for name, shift in result.shifts.items()
    }  # fmt: skip


def summary_of(
    table: Json, results: Mapping[str, Evaluated], *, title: str, judge: Sequence[str], max_missing: float
) -> Json:
    """The table with examples of cells and facts about its shifts; the caller adds command and provenance."""
    suites = {name: {**table["suites"][name], "examples": examples(result.cells)} for name, result in results.items()}
    judged = any("verdict" in result.measurements for result in results.values())
    return {
        **table, "title": title, "kind": "suites", "suites": suites, "shifts": shift_facts(results),
        "judge": list(judge) if judged else [], "max_missing": max_missing,
    }  # fmt: skip


def read_summary(folder: str) -> Json:
    """summary.json of an evaluation, empty where it has none; UserError where it cannot be read."""
    file = Path(folder) / "summary.json"
    if not file.is_file():
        return {}
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        shifts = summary.get("shifts", {})
        if not all(isinstance(fact["family"], str) and isinstance(fact["mode"], str) for fact in shifts.values()):
            raise TypeError("a shift without family and mode")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: not the summary of an evaluation ({error!r}); run align suites again") from error
    return summary
