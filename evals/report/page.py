"""The report's page: what each section shows, gathered from the summary and handed to the HTML template."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from evals.items import Fields, Json
from evals.report import plain_text, template, words
from evals.report.figures import conflict as conflict_figure
from evals.report.figures import fronts as figures
from evals.report.figures import svg
from evals.tables.under_shift.parts import PARTS

FRONT, PANELS, NARROW = 760, 1040, 330  # pixel widths that figures are drawn at; the style sheet shows what fits


def build(summary: Fields) -> str:
    """The page as text; all values are escaped by the template."""
    return template.render("page.html", sections(summary))


def sections(summary: Fields) -> Json:
    """Everything the template shows, by name."""
    rows, looks = words.ranked(summary), figures.styles(summary)
    names = words.objectives(summary)
    controls = words.controls_of(summary)
    return {
        "summary": summary,
        "exact": summary["kind"] == "testbed",
        "names": names,
        "rows": rows,
        "controls": controls,
        "findings": words.findings(summary),
        "swatches": {row: svg.swatch(look) for row, look in looks.items()},
        "optimum_swatch": svg.swatch(figures.OPTIMUM),
        "fronts": [
            _both(figures.front, summary, FRONT, pair=pair) for pair in itertools.combinations(range(len(names)), 2)
        ],
        "gaps": _both(figures.gaps, summary, PANELS),
        "split": _both(figures.split, summary, PANELS),
        "part_names": ("reward_drop", *PARTS),
        "headline": _headline(summary),
        "gap_words": _gap_words(summary),
        "gain_words": sorted({str(r["raw_hypervolume_over"]) for r in rows.values() if r.get("raw_hypervolume_over")}),
        "share_words": sorted({str(r["regret_share_ci_over"]) for r in rows.values() if r.get("regret_share_ci_over")}),
        "gate_bar": next((row["gate_bar"] for row in rows.values() if "gate_bar" in row), None),
        "bar_full": _bar_full(rows),
        "matrices": _matrices(summary.get("conflict") or {}),
        "trained_down": _both(conflict_figure.training, summary, PANELS),
        "trained_ranks": _both(conflict_figure.training, summary, PANELS, key="rank_correlation"),
        "trained_words": conflict_figure.caption(summary),
        "reward_models": _reward_models(summary.get("reward_models") or []),
        "samples": _samples(summary.get("samples") or []),
        "point_words": next((p["ci_over"] for r in rows.values() for p in r.get("front") or [] if "ci_over" in p), ""),
        "ledger": _ledger(summary.get("ledger") or {}),
        "row_ledger": _ledger({name: row["ledger"] for name, row in rows.items() if row.get("ledger")}),
        "provenance": provenance_parts(summary.get("provenance") or {}),
        "world": _world(summary.get("world_details") or {}),
    }


def _both(draw: Any, summary: Fields, width: int, **options: Any) -> dict[str, str]:
    return {"wide": draw(summary, width=width, **options), "narrow": draw(summary, width=NARROW, **options)}


def _bar_full(rows: Mapping[str, Fields]) -> float:
    """The regret share at which a bar is full: the largest share, but at most 1.5, so that small ones stay visible."""
    return min(1.5, max([1.0, *(row["regret_share"] for row in rows.values() if row.get("regret_share") is not None)]))


def _headline(summary: Fields) -> str:
    """The objective whose gap heads the shift section."""
    shifts = summary.get("shifts") or {}
    return next((str(e["gap_of"]["objective"]) for rows in shifts.values() for e in rows.values() if "gap_of" in e), "")


def _gap_words(summary: Fields) -> dict[str, list[str]]:
    """Per shift, what its intervals run over (usually one sentence for all rows)."""
    groups: dict[str, list[str]] = {}
    for shift, entries in (summary.get("shifts") or {}).items():
        said = [entry["gap_of"]["over"] for entry in entries.values() if entry.get("gap") is not None]
        groups[shift] = list(dict.fromkeys(said))
    return groups


def _matrices(conflict: Fields) -> list[Json]:
    """The conflict tables with a tint per cell: share of opposed labels (0 to 1), correlations, cosines (-1 to 1)."""
    over = "".join((f"; n = {conflict['n']}" if conflict.get("n") else "", f", {conflict.get('over') or ''}"))
    over = over.rstrip(", ")
    tables = []
    for key, title, how, of in (
        (
            "disagreement",
            "Opposed preferences",
            "share of response pairs on which two objectives prefer different ones",
            over,
        ),
        (
            "rank_correlation",
            "Rank correlation",
            "of two objectives over responses to one prompt, \u22121 is full conflict",
            over,
        ),
        (
            "gradient_cosines",
            "Policy gradients",
            "cosine of the directions that raise two objectives fastest, before training; \u22121: what raises one "
            "lowers the other",
            f"; {conflict.get('gradient_cosines_over') or ''}",
        ),
        (
            "dpo_gradient_cosines",
            "Gradients of DPO losses",
            "cosine of the directions in which comparisons of two objectives push first",
            f"; {conflict.get('dpo_gradient_cosines_over') or ''}",
        ),
    ):
        values = conflict.get(key)
        if values:
            tints = [
                [_tint(v if key == "disagreement" else (1 - v) / 2 if v is not None else None) for v in r]
                for r in values
            ]
            cells = [list(zip(row, tint, strict=True)) for row, tint in zip(values, tints, strict=True)]
            rows = list(zip(conflict["names"], cells, strict=True))
            tables.append({"title": title, "how": how + of.rstrip("; "), "rows": rows})
    return tables


def _tint(conflict: float | None) -> str:
    """White for agreement to a soft orange for full conflict: dark text stays readable on it."""
    share = 0.0 if conflict is None else min(max(float(conflict), 0.0), 1.0)
    white, orange = (255, 255, 255), (244, 178, 102)
    return "#" + "".join(f"{round(w + share * (o - w)):02x}" for w, o in zip(white, orange, strict=True))


def _reward_models(rows: Sequence[Fields]) -> Json:
    """Rows {scorer, trained_on, tested_on, pairs, accuracy, ci, n, over}: a line per scorer, a column per test."""
    columns = list(dict.fromkeys((str(r.get("tested_on")), str(r.get("pairs", "all pairs"))) for r in rows))
    lines: dict[tuple[str, str], dict[object, Any]] = {}
    for row in rows:
        line = lines.setdefault((str(row.get("scorer")), str(row.get("trained_on"))), {})
        line[str(row.get("tested_on")), str(row.get("pairs", "all pairs"))] = row
    over = sorted({str(row["over"]) for row in rows if row.get("over")})
    return {"columns": columns, "lines": lines, "over": over}


def _samples(rows: Sequence[Fields]) -> dict[str, list[Json]]:
    """Sample completions by prompt, cut to a readable length; the cut is marked."""
    grouped: dict[str, list[Json]] = {}
    for row in rows:
        entry = dict(row)
        for key in ("completion", "prompt"):
            entry[key] = plain_text.shown(row.get(key, ""))
        grouped.setdefault(entry["prompt"], []).append(entry)
    return grouped


LEDGER_COLUMNS = (
    ("seconds", "wall time", "duration"),
    ("cpu_seconds", "CPU time", "duration"),
    ("tokens", "tokens", "amount"),
    ("flops", "FLOPs", "amount"),
    ("peak_memory_mb", "peak memory", "memory"),
    ("samples_drawn", "samples drawn", "amount"),
    ("scores_read", "scores read", "amount"),
)


def _ledger(ledger: Fields) -> Json:
    """The compute ledger with only the columns that some stage has, the total last."""
    stages = {name: entry for name, entry in ledger.items() if isinstance(entry, Mapping)}
    columns = [c for c in LEDGER_COLUMNS if any(entry.get(c[0]) is not None for entry in stages.values())]
    form = {"duration": words.duration, "amount": words.amount, "memory": lambda v: words.amount(_times(v, 1e6)) + "B"}
    lines = {
        name: [form[kind](entry.get(key)) if entry.get(key) is not None else words.DASH for key, _, kind in columns]
        for name, entry in sorted(stages.items(), key=lambda item: item[0] == "total")
    }
    return {"columns": [title for _, title, _ in columns], "lines": lines}


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else float(value) * factor


def provenance_parts(provenance: Fields) -> Json:
    """Short entries as a list, nested ones as JSON text."""
    short = {key: value for key, value in provenance.items() if not isinstance(value, (Mapping, list))}
    nested = {key: value for key, value in provenance.items() if isinstance(value, (Mapping, list))}
    return {
        "short": short,
        "nested": {key: json.dumps(value, indent=2, ensure_ascii=False, default=str) for key, value in nested.items()},
    }


def _world(details: Fields) -> list[tuple[str, str]]:
    """The world's details as lines of text."""

    def shown(value: object) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key}: {shown(entry)}" for key, entry in value.items())
        if isinstance(value, (list, tuple)):
            return ", ".join(map(shown, value))
        return f"{value:g}" if isinstance(value, float) else str(value)

    return [(key.replace("_", " "), shown(value)) for key, value in details.items()]
