"""The summary's conflict before and during training: gradient cosines, and what each trained point logged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from align.runs import RUN_FILE, Run, open_run


def training_conflict(rows: Mapping[str, Mapping[str, Path]]) -> dict[str, list[dict[str, object]]]:
    """Row -> what its points logged (conflict_log.py), each with the preference that it was `asked` for.

    `rows[row]` maps labels to fine-tuning runs; one run may hold all points. Rows that logged nothing are left out:
    offline methods, points of one objective, policies that were not trained but interpolated.
    """
    table: dict[str, list[dict[str, object]]] = {}
    for row, runs in rows.items():
        for folder in dict.fromkeys(runs.values()):
            for part in sorted([*folder.glob(f"*/{RUN_FILE}"), *folder.glob(f"points/*/{RUN_FILE}")]):
                logged = open_run(part.parent).metrics.get("conflict")
                if logged:
                    asked = part.parent.name if part.parent.parent.name == "points" else "every preference"
                    table.setdefault(row, []).append({"asked": asked, **logged})
    return table


def gradient_cosines(run: Run) -> dict[str, object]:
    """The summary's entries from the run of `demo_stages.gradient_cosines`."""
    found = run.metrics
    rows: dict[str, object] = {
        "gradient_cosines": found["policy"],
        "gradient_cosines_over": f"{found['samples']:,} reference samples, all {found['weights']:,} weights; "
        + _halves(found["reliability"]),
    }
    if found["dpo"] is None:
        return rows
    return rows | {
        "dpo_gradient_cosines": found["dpo"],
        "dpo_gradient_cosines_over": f"{found['comparisons']:,} comparisons, mean labels of the annotator; "
        + _halves(found["dpo_reliability"]),
    }


def _halves(reliability: list[float | None]) -> str:
    each = ", ".join("none" if r is None else f"{r:.2f}" for r in reliability)
    return f"cosine of each objective's gradient between two halves of them {each}"
