"""The page of two evaluations compared item by item, from the comparison's JSON to the template."""

from __future__ import annotations

from evals.items import Fields, Json
from evals.report import suite_words, template
from evals.report.figures import suite as suite_figure
from evals.report.page import NARROW, PANELS, provenance_parts
from evals.report.suite_page import MODES


def build(summary: Fields) -> str:
    """The page as text; all values are escaped by the template."""
    return template.render("comparison.html", sections(summary))


def sections(summary: Fields) -> Json:
    """Everything the template shows, by name."""
    shifts = summary.get("shifts") or {}
    modes = [mode for mode in MODES if any(facts.get("mode") == mode for facts in shifts.values())]
    return {
        "summary": summary, "shifts": shifts,
        "suites": {name: _suite(table, shifts) for name, table in summary["suites"].items()},
        "findings": [s for n, table in summary["suites"].items() for s in suite_words.comparison_findings(n, table)],
        "modes": {mode: (suite_figure.COLORS[mode], MODES[mode]) for mode in modes},
        "provenance": provenance_parts(summary.get("provenance") or {}),
    }  # fmt: skip


def _suite(table: Fields, shifts: Fields) -> Json:
    return {
        "table": table,
        "figure": {
            "wide": suite_figure.differences(table, shifts, width=PANELS),
            "narrow": suite_figure.differences(table, shifts, width=NARROW),
        },
        "order": suite_figure.families(list(table["shifts"]), shifts),
        "sides": [side for side in ("harmful", "benign") if any(e.get(side) for e in table["shifts"].values())],
    }
