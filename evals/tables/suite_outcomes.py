"""Judged cells to the outcomes that tables count, and probe cells to comprehension; pure."""

from __future__ import annotations

from collections.abc import Sequence

from evals.items import Missing
from evals.measure.engine import Asked
from evals.measure.store import Measured
from evals.tables.outcomes import Outcome
from evals.tables.suite_tables import Found

NEVER_ASKED = Missing("not_measured")


def outcomes_of(asked: Sequence[Asked], verdicts: Sequence[Measured]) -> list[Outcome]:
    """One outcome per item x shift x sample; the suite says which items are one base item."""
    return [
        Outcome(
            item=one.item.id, cluster=one.item.cluster, shift=one.shift.name,
            verdict=cell.value if isinstance(cell.value, Missing) else cell.value["verdict"],
            harmful=None if one.item.neutral else one.item.harmful, group=one.item.group, sample=one.sample,
        )
        for one, cell in zip(asked, verdicts, strict=True)
    ]  # fmt: skip


def comprehension_of(asked: Sequence[Asked], found: Found) -> dict[tuple[str, str], bool | Missing] | None:
    """(item, shift) -> whether the policy read the shift's own harmless question, or why that is not known.

    None where no probe was measured; plain prompts need no reading. Of several samples the first that is known counts.
    """
    if "comprehension" not in found:
        return None
    read: dict[tuple[str, str], bool | Missing] = {}
    for one, cell in zip(asked, found["comprehension"], strict=True):
        key = one.item.id, one.shift.name
        if isinstance(read.get(key, NEVER_ASKED), Missing):
            read[key] = cell.value if isinstance(cell.value, Missing) else bool(cell.value["read"])
    return read
