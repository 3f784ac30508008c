"""Rewards of the parts of a drop: objectives are told what was drawn, and what of it was cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from align.errors import Outage, UserError
from align.models.sampling import Drawn
from align.preferences import Weights
from evals.measure.sampling import Point, Sampling
from recipes.pipeline import drop_parts


def test_a_response_that_was_cut_is_scored_as_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """.7 of what one objective pays for an end and .3 of what the other pays for a token, on the plain prompt."""
    read: dict[str, Any] = {}

    def parts_of(policy: Any, reference: Any, *, asked: Any, reward: Any, **_: Any) -> dict[str, Any]:
        prompts = [one.plain for one in asked]
        read["rewards"] = reward(prompts, [Drawn((3, 0), True, " tea"), Drawn((3,), False, " tea")])
        return {"competing": {}}

    def ends(prompts: Sequence[str], completions: Sequence[str], **told: Any) -> list[float]:
        read["prompts"] = list(prompts)
        return [float(ended) for ended in told["completion_ended"]]

    def tokens(prompts: Sequence[str], completions: Sequence[str], **told: Any) -> list[float]:
        return [float(len(ids)) for ids in told["completion_ids"]]

    monkeypatch.setattr(drop_parts, "parts_of", parts_of)
    rows = [{"item": item, "prompt": item} for item in "ab"]
    judged = drop_parts.Judged(
        prompts={"none": rows, "dressed": [{**row, "prompt": f"{row['prompt']}!"} for row in rows]}, controls={},
        objectives={"ends": ends, "tokens": tokens}, sampling=Sampling(samples=1),
    )  # fmt: skip
    point: Any = Point("row", Weights((0.7, 0.3)), object())
    reference: Any = object()
    drop_parts.drop_parts([point], reference=reference, judged=judged, betas={"row": 0.1}, conflict=True)
    assert read["rewards"] == pytest.approx(np.array([0.7 + 0.6, 0.3])) and read["prompts"] == ["a", "b"]


def test_an_outage_is_no_reason_to_print_no_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the rows is a line; a judge that is away ends the command, so that the same one goes on later."""
    errors = iter([UserError("no base item is on both sides"), Outage("the judge is away")])

    def parts_of(policy: Any, reference: Any, **_: Any) -> dict[str, Any]:
        raise next(errors)

    monkeypatch.setattr(drop_parts, "parts_of", parts_of)
    rows = [{"item": "a", "prompt": "a"}]
    judged = drop_parts.Judged(
        prompts={"none": rows, "dressed": rows}, controls={}, objectives={}, sampling=Sampling(samples=1)
    )
    point: Any = Point("row", Weights((0.7, 0.3)), object())
    asked: dict[str, Any] = {"reference": object(), "judged": judged, "betas": {"row": 0.1}, "conflict": True}
    assert drop_parts.drop_parts([point], **asked)[0].why == "no base item is on both sides"
    with pytest.raises(Outage):
        drop_parts.drop_parts([point], **asked)
