"""summary.json of an evaluation on suites: what its report and later commands read, written and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from align.errors import UserError
from evals.items import Json, number_of
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
    """The table with examples of cells, facts about its suites and shifts, and how they were measured; the caller adds
    command and provenance.
    """
    suites = {
        name: {**table["suites"][name], "version": result.suite.version, "examples": examples(result.cells)}
        for name, result in results.items()
    }
    how = {name: config for result in results.values() for name, config in result.how.items()}
    return {
        **table, "title": title, "kind": "suites", "suites": suites, "shifts": shift_facts(results), "how": how,
        "judge": list(judge) if "verdict" in how else [], "max_missing": max_missing,
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


SETTINGS = ("judge", "max_new_tokens", "temperature", "stop", "template", "versions")  # that comparable runs share


def settings_of(summary: Json) -> dict[str, str]:
    """Setting -> what it was, in words; of versions the numbers, for the letter changes no result."""
    how = summary["how"]
    completion, verdict = how.get("completion", {}), how.get("verdict", {})
    versions = {**summary["shifts"], **{f"suite {name}": entry for name, entry in summary["suites"].items()}}
    numbers = {name: number_of(facts["version"]) for name, facts in sorted(versions.items())}
    return {
        "judge": f"{verdict.get('judge')} {number_of(verdict.get('version', ''))} {verdict.get('fingerprint')}",
        **{name: str(completion.get(name)) for name in ("max_new_tokens", "temperature", "stop")},
        "template": str(how.get("template")), "versions": json.dumps(numbers),
    }  # fmt: skip


def unlike(summaries: Mapping[str, Json]) -> dict[str, dict[str, str]]:
    """Setting -> run -> what it was, of the settings in which the runs differ; UserError where one does not say."""
    silent = [name for name, summary in summaries.items() if "how" not in summary]
    if silent:
        raise UserError(f"{silent[0]}: its summary.json does not say how it was measured; run align suites again")
    found = {name: settings_of(summary) for name, summary in summaries.items()}
    by_setting = {setting: {name: own[setting] for name, own in found.items()} for setting in SETTINGS}
    return {setting: values for setting, values in by_setting.items() if len({*values.values()}) > 1}
