"""Tables of the summary from sampled answers: the point of hypervolumes, conflict, completions shown, shifts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from align.data.answers import SampledAnswer
from evals.measure.sampling import REFERENCE

if TYPE_CHECKING:
    import numpy as np


BELOW = 2.0  # specialists of one objective were seen to lose up to one standard deviation of the other
POINT_IS = "the reference model's mean score minus two standard deviations of its single responses, per objective"


def reference_point(answers: Sequence[SampledAnswer]) -> list[float]:
    """The corner of hypervolumes (POINT_IS): fixed before any method is seen, and below every ordinary specialist."""
    import numpy as np

    values_NK = np.array([c.values for c in answers if c.row == REFERENCE and c.shift == "none"])
    return (values_NK.mean(0) - BELOW * values_NK.std(0)).tolist()


def conflict_of(answers: Sequence[SampledAnswer], *, names: Sequence[str]) -> dict[str, object]:
    """How far the objectives disagree on the reference model's own samples, pairs taken within a prompt."""
    import numpy as np

    from align.functional.conflict import label_disagreement, rank_correlation

    by_prompt: dict[str, list[Sequence[float]]] = {}
    for answer in answers:
        if answer.row == REFERENCE and answer.shift == "none":
            by_prompt.setdefault(answer.prompt, []).append(answer.values)
    tables = [np.array(values) for values in by_prompt.values() if len(values) > 1]
    if not tables:
        reason = "null: one sample per prompt; draw at least two"
        return {"names": list(names), "disagreement": None, "rank_correlation": None, "n": 0, "reason": reason}
    disagreement = label_disagreement(np.stack([table[0] - table[1] for table in tables]))
    return {
        "names": list(names),
        "disagreement": _finite(disagreement.values_KK),
        "rank_correlation": _finite(rank_correlation(tables).values_KK),
        "n": len(tables),
    }


def _finite(values_KK: np.ndarray) -> list[list[float | None]]:
    return [[float(value) if math.isfinite(value) else None for value in row] for row in values_KK]


def shown_samples(answers: Sequence[SampledAnswer], *, prompts: int = 4) -> list[dict[str, object]]:
    """The first sample of every row and preference on the first few prompts, for reading."""
    first = list(dict.fromkeys(answer.prompt for answer in answers if answer.shift == "none"))[:prompts]
    kept = [c for c in answers if c.shift == "none" and c.sample == 0 and c.prompt in first]
    names = ("prompt", "row", "preference", "completion", "values")
    rows = [answer.jsonable() for answer in kept]
    rows.sort(key=lambda row: first.index(str(row["prompt"])))
    return [{name: row[name] for name in names} for row in rows]


def sampled_summary(
    answers: Sequence[SampledAnswer],
    *,
    title: str,
    names: Sequence[str],
    headline: str,
    info: Mapping[str, Mapping[str, object]],
    seed: int,
) -> dict[str, object]:
    """The tables of summary.json from sampled answers; the caller adds provenance and ledger."""
    from evals.tables.tradeoffs import sampled_table
    from evals.tables.under_shift.generalization import shifts_table

    point = reference_point(answers)
    table = sampled_table(answers, objectives=names, reference_point=point, info=info, seed=seed)
    shifts = shifts_table(answers, objectives=names, headline=headline, reference_point=point, seed=seed)
    return {
        "title": title,
        "kind": "sampled",
        "world": None,
        "world_details": {
            "objectives": list(names),
            "reference_point": point,
            "reference_point_is": POINT_IS,
            "prompts": len({answer.prompt for answer in answers if answer.shift == "none"}),
        },
        "methods": table,
        "shifts": shifts,
        "controls": {},
        "conflict": conflict_of(answers, names=names),
        "samples": shown_samples(answers),
    }
