"""Judged cells to the outcomes that tables count, and probe cells to comprehension; pure."""

from __future__ import annotations

from collections.abc import Sequence

from evals.engine import Asked
from evals.outcomes import Outcome
from evals.prompts import Missing
from evals.store import Measured
from evals.suite_tables import Found


def outcomes_of(asked: Sequence[Asked], verdicts: Sequence[Measured]) -> list[Outcome]:
    """One outcome per item x shift x sample; the suite says which items are one base item."""
    return [
        Outcome(
            item=one.item.id, cluster=one.item.cluster, shift=one.shift.name,
            verdict=cell.value if isinstance(cell.value, Missing) else cell.value["verdict"],
            harmful=one.item.harmful, group=one.item.group, sample=one.sample,
        )
        for one, cell in zip(asked, verdicts, strict=True)
    ]  # fmt: skip


def comprehension_of(asked: Sequence[Asked], found: Found) -> dict[tuple[str, str], bool] | None:
    """(item, shift) -> whether the policy read the shift's own harmless question; plain prompts need no reading.

    None where no probe was measured; of several samples the first counts.
    """
    if "comprehension" not in found:
        return None
    read: dict[tuple[str, str], bool] = {}
    for one, cell in zip(asked, found["comprehension"], strict=True):
        if not isinstance(cell.value, Missing):
            read.setdefault((one.item.id, one.shift.name), bool(cell.value["read"]))
    return read
