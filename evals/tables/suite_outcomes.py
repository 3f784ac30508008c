"""Judged cells to the outcomes that tables count, outcomes.jsonl that evaluations are paired by, comprehension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from align.data.load import iterate_rows
from align.errors import UserError
from evals.items import Json, Missing
from evals.measure.cells import Cell, Evaluated
from evals.tables.export import write_rows
from evals.tables.outcomes import Outcome

FIELDS = ("item", "cluster", "shift", "harmful", "group", "sample", "can_fail")


def outcomes_of(cells: Sequence[Cell]) -> list[Outcome]:
    """One outcome per item x shift x sample; the suite states which items are one base item."""
    outcomes = []
    for cell in cells:
        item, verdict = cell.item, cell.value("verdict")
        outcomes.append(
            Outcome(
                item=item.id, cluster=item.cluster, shift=cell.shift.name,
                verdict=verdict if isinstance(verdict, Missing) else verdict["verdict"],
                harmful=None if item.neutral else item.harmful, group=item.group, sample=cell.sample,
                can_fail=isinstance(verdict, Missing) or verdict.get("can_fail", True),
            )
        )  # fmt: skip
    return outcomes


def write_outcomes(results: Mapping[str, Evaluated], file: Path) -> None:
    """Every judged outcome of all suites as a line; no file where nothing was judged."""
    rows: list[Json] = []
    for name, result in results.items():
        for one in outcomes_of(result.cells) if "verdict" in result.measurements else ():
            missing = one.verdict.reason if isinstance(one.verdict, Missing) else None
            verdict = None if isinstance(one.verdict, Missing) else str(one.verdict)
            rows.append({**one.__dict__, "suite": name, "verdict": verdict, "missing": missing})
    if rows:
        write_rows(rows, file)


def read_outcomes(folder: str | Path) -> dict[str, list[Outcome]]:
    """suite -> its outcomes, as `write_outcomes` left them in an evaluation's folder.

    UserError where the folder holds none, naming file and line for a row that cannot be read.
    """
    file = Path(folder) / "outcomes.jsonl"
    command = f"align suites MODEL --suite ... --out {folder}"
    if not file.is_file():
        raise UserError(f"{folder} holds no outcomes.jsonl; run {command} first")
    suites: dict[str, list[Outcome]] = {}
    for where, row in iterate_rows(str(file), columns=("suite", *FIELDS, "verdict", "missing")):
        try:
            verdict = row["verdict"] if row["missing"] is None else Missing(row["missing"])
            outcome = Outcome(verdict=verdict, **{name: row[name] for name in FIELDS})
        except (ValueError, TypeError) as error:
            raise UserError(f"{where}: not an outcome ({error}); run {command} again") from error
        suites.setdefault(row["suite"], []).append(outcome)
    if not suites:
        raise UserError(f"{file} holds no outcome; run {command} again")
    return suites


def comprehension_of(cells: Sequence[Cell]) -> dict[tuple[str, str], bool | Missing] | None:
    """(item, shift) -> whether the policy read the shift's own harmless question, or why that is not known.

    None where no probe was measured; plain prompts need no reading. Of several samples the first that is known counts.
    """
    read: dict[tuple[str, str], bool | Missing] = {}
    for cell in cells:
        key = cell.item.id, cell.shift.name
        if "comprehension" in cell.values and isinstance(read.get(key, Missing("not_measured")), Missing):
            value = cell.value("comprehension")
            read[key] = value if isinstance(value, Missing) else bool(value["read"])
    return read or None
