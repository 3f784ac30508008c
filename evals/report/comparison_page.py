"""The page of policies compared on the same items, from the comparison's JSON to the template."""

from __future__ import annotations

from evals.items import Fields, Json
from evals.report import suite_words, template
from evals.report.figures import policies as policy_figure
from evals.report.figures import suite as suite_figure
from evals.report.page import FRONT, NARROW, PANELS, provenance_parts
from evals.report.suite_page import MODES


def build(summary: Fields) -> str:
    """The page as text; all values are escaped by the template."""
    return template.render("comparison.html", sections(summary))


def sections(summary: Fields) -> Json:
    """Everything the template shows, by name."""
    shifts = summary.get("shifts") or {}
    modes = [mode for mode in MODES if any(facts.get("mode") == mode for facts in shifts.values())]
    suites = summary["suites"]
    in_detail = [s for n, table in suites.items() for s in suite_words.comparison_findings(n, table)]
    return {
        "summary": summary, "shifts": shifts, "pair": list(summary["policies"]),
        "scatter": {
            "wide": policy_figure.scatter(summary, width=FRONT), "narrow": policy_figure.scatter(summary, width=NARROW),
        },
        "named": {label: policy_figure.named(label) for label in summary["metrics"]},
        "swatches": {name: policy_figure.sample(summary, name) for name in summary["policies"]},
        "suites": {name: _suite(table, shifts) for name, table in suites.items()},
        "findings": [*suite_words.policy_findings(summary), *in_detail],
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
