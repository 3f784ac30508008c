"""The page of a suite run: what each section shows, gathered from its summary.json and handed to the template."""

from __future__ import annotations

from collections import Counter

from evals.items import NO_SHIFT, Fields, Json
from evals.report import suite_words, template
from evals.report.figures import suite as suite_figure
from evals.report.page import NARROW, PANELS, provenance_parts
from evals.tables.outcomes import NOT_APPLICABLE

MODES = {  # what the authors of an attack expect of it; nothing here is measured
    "competing": "expected to set two of the model's objectives against each other",
    "mismatched": "expected to be covered by pretraining and not by safety training",
    "both": "expected to do both",
    "control": "no attack: it shows what the wrapper alone does",
}


def build(summary: Fields) -> str:
    """The page as text; all values are escaped by the template."""
    return template.render("suite.html", sections(summary))


def sections(summary: Fields) -> Json:
    """Everything the template shows, by name."""
    shifts = suite_figure.ordered(summary.get("shifts") or {}, summary.get("shifts") or {})
    suites = {name: _suite(name, entry, shifts) for name, entry in summary["suites"].items()}
    findings = [
        sentence for name, entry in summary["suites"].items() for sentence in suite_words.suite_findings(name, entry)
    ]
    modes = [mode for mode in MODES if any(facts.get("mode") == mode for facts in shifts.values())]
    return {
        "summary": summary, "suites": suites, "findings": findings, "shifts": shifts,
        "modes": {mode: (suite_figure.COLORS[mode], MODES[mode]) for mode in modes},
        "neither": any((entry.get("labels") or {}).get("neither") for entry in summary["suites"].values()),
        "provenance": provenance_parts(summary.get("provenance") or {}),
    }  # fmt: skip


def _suite(name: str, entry: Fields, shifts: Fields) -> Json:
    outcomes = suite_figure.ordered((entry.get("outcomes") or {}).get("shifts") or {}, shifts)
    return {
        "entry": entry,
        "figure": {
            "wide": suite_figure.by_shift(entry, shifts, width=PANELS),
            "narrow": suite_figure.by_shift(entry, shifts, width=NARROW),
        },
        "order": suite_figure.families(list(outcomes), shifts),
        "accuracies": {
            "wide": suite_figure.accuracies(entry, shifts, width=PANELS),
            "narrow": suite_figure.accuracies(entry, shifts, width=NARROW),
        },
        "sides": [side for side in ("harmful", "benign") if any(side in e for e in outcomes.values())],
        "reads": any(e.get("read") for e in outcomes.values()),
        "groups": _groups(outcomes),
        "missing": _missing(entry),
        "numbers": _numbers(entry, shifts),
        "outcomes": outcomes,
        "rewards": suite_figure.ordered((entry.get("rewards") or {}).get("shifts") or {}, shifts),
        "examples": _by_shift(entry.get("examples") or []),
    }


def _groups(outcomes: Fields) -> list[tuple[str, str, Fields]]:
    """(shift, side, its worst group) where there is more than one group."""
    return [
        (shift, side, entry[side]["worst_group"])
        for shift, entry in outcomes.items()
        for side in ("harmful", "benign")
        if (entry.get(side) or {}).get("worst_group")
    ]


def _missing(entry: Fields) -> list[tuple[str, str, int, list[str], bool]]:
    """(measurement, reason, cells, shifts, whether it never applied) of what has no value, most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], list[str]] = {}
    for measured, table in (entry.get("numbers") or {}).items():
        for shift, reasons in (table.get("missing") or {}).items():
            for reason, count in reasons.items():
                counts[measured, reason] += count
                where.setdefault((measured, reason), []).append(shift)
    return [(*key, count, where[key], key[1].startswith(NOT_APPLICABLE)) for key, count in counts.most_common()]


def _numbers(entry: Fields, shifts: Fields) -> dict[str, Json]:
    """measurement -> its fields as columns, and shift -> field -> mean, interval and change."""
    groups = {}
    for measured, table in (entry.get("numbers") or {}).items():
        fields = table.get("fields") or {}
        if not fields:
            continue
        rows: dict[str, Json] = {}
        for column, values in fields.items():
            for shift, value in values.items():
                rows.setdefault(shift, {})[column] = value
        groups[measured] = {"columns": list(fields), "rows": suite_figure.ordered(rows, shifts)}
    return groups


def _by_shift(examples: list[Json]) -> dict[str, list[Json]]:
    groups: dict[str, list[Json]] = {}
    for row in examples:
        groups.setdefault(row["shift"], []).append(row)
    return dict(sorted(groups.items(), key=lambda group: group[0] != NO_SHIFT))
