"""Which families of shifts a safety training reaches: failures by families trained on (rows) and measured (columns).

    align held-out-families none=runs/suites/sft encoding=runs/suites/a encoding,persona=runs/suites/b

Each folder is an evaluation (`align suites MODEL --suite ... --shift ...`) with the families that its model was
trained on before the equals sign. All were asked the same items under the same shifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align import checks
from align.errors import UserError
from evals.items import Json
from evals.report.suite_summary import read_summary
from recipes.config import option, parse

if TYPE_CHECKING:
    from evals.tables.outcomes import Outcome


@dataclass(frozen=True, kw_only=True)
class Config:
    evaluations: tuple[str, ...] = option(help="FAMILY[,FAMILY...]=FOLDER, or none=FOLDER")
    suite: str | None = option(None, help="which suite, where an evaluation has several")
    benign: bool = option(False, help="over-refusal of benign items instead of failures")
    max_missing: float = option(0.05, help="largest share of missing verdicts")
    out: str | None = option(None, help="file for the numbers as JSON")


def lines_of(matrix: Json) -> list[str]:
    """What the terminal shows: percent, held-out cells marked."""
    width = max(10, *(len(column) + 2 for column in matrix["columns"]))
    labels = [",".join(row["trained"]) or "none" for row in matrix["rows"]]
    left = max(len("trained on"), *map(len, labels))
    lines = [f"{'trained on':{left}}" + "".join(f"{column:>{width}}" for column in matrix["columns"])]
    for label, row in zip(labels, matrix["rows"], strict=True):
        cells = [row["cells"][column] for column in matrix["columns"]]
        shown = [f"{100 * cell['value']:.1f}{'*' if cell['held_out'] else ' '}" for cell in cells]
        lines.append(f"{label:{left}}" + "".join(f"{text:>{width}}" for text in shown))
    lines.append("% of items that fail; * the family was held out from training")
    for family, entry in matrix["transfer"].items():
        change = entry["change"]
        if change is not None:
            low, high = (100 * end for end in change["ci"] or (float("nan"), float("nan")))
            interval = f"[{low:+.1f}, {high:+.1f}]"
            lines.append(f"{family}: held out minus trained on {100 * change['value']:+.1f} points {interval}")
    return lines


def read_evaluation(folder: str, *, suite: str | None) -> tuple[Sequence[Outcome], dict[str, str]]:
    """(outcomes of one suite, shift -> family without controls) of an evaluation's folder."""
    from evals.tables.suite_outcomes import read_outcomes

    facts = read_summary(folder).get("shifts")
    if facts is None:
        raise UserError(f"{folder}/summary.json: no such file, or no shifts in it; write it with align suites")
    suites = read_outcomes(folder)
    if suite is None and len(suites) > 1:
        raise UserError(f"{folder} holds the suites {', '.join(suites)}; choose one with --suite")
    chosen = suite or next(iter(suites))
    if chosen not in suites:
        raise UserError(f"{folder} holds no suite {chosen!r} (it has: {', '.join(suites)})")
    families = {name: fact["family"] for name, fact in facts.items() if fact["mode"] not in ("none", "control")}
    return suites[chosen], families


def main(argv: Sequence[str] | None = None) -> int:
    about = __doc__ or ""
    config, where = parse(Config, argv, program="align held-out-families", about=about, positional=("evaluations",))
    checks.shares(config, "max_missing", place=f"{where}: ")
    from evals.tables.under_shift.heldout_families import transfer_matrix
    from recipes.pipeline.numbers import check_target, files_of, write_numbers

    if config.out:
        folders = [entry.partition("=")[2] for entry in config.evaluations]
        check_target(Path(config.out), inputs=files_of(folders), where=where)
    outcomes: dict[frozenset[str], Sequence[Outcome]] = {}
    families: dict[str, str] = {}
    for entry in config.evaluations:
        label, equals, folder = entry.partition("=")
        if not equals or not label or not folder:
            raise UserError(f"{entry!r} is not FAMILY=FOLDER; write none=FOLDER for a model trained on no shift")
        trained = frozenset() if label == "none" else frozenset(label.split(","))
        if trained in outcomes:
            raise UserError(f"two evaluations are labelled {label}; give one")
        outcomes[trained], measured = read_evaluation(folder, suite=config.suite)
        families |= measured
    matrix = transfer_matrix(
        outcomes, families=families, harmful=not config.benign, max_missing=config.max_missing
    )  # fmt: skip
    print("\n".join(lines_of(matrix)))
    if config.out:
        write_numbers(Path(config.out), matrix, kind="held-out-families", config=config, seed=0)
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("held-out-families")
