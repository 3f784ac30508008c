"""Scores that a pairs run holds: found again for the very replies that they are of, asked anew for all others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.objectives import ZScore, save_normalizer
from recipes.real.stages import Scored

ROWS = [
    {"prompt": "q", "a": " tea", "b": " rope", "a_ids": [3], "b_ids": [4, 0], "scores_a": [1.0], "scores_b": [2.0]},
    {"prompt": "r", "a": " clay", "b": " ink", "a_ids": None, "b_ids": None, "scores_a": [3.0], "scores_b": [4.0]},
]


class Model:
    """Scores a reply by how many ids it was given with; keeps what it was asked."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.asked: list[tuple[str, str]] = []

    def __call__(self, prompts: Sequence[str], texts: Sequence[str], *, completion_ids: Sequence[Any]) -> list[float]:
        self.asked += zip(prompts, texts, strict=True)
        return [float(len(ids)) for ids in completion_ids]


def test_a_reply_is_known_by_its_text_and_the_ids_that_were_drawn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of mean 1 and deviation 2, so that (number of ids - 1) / 2 is a fresh score."""
    monkeypatch.setattr("align.objectives.RewardModelObjective", Model)
    save_normalizer(ZScore(mean=1.0, std=2.0, n=9), tmp_path / "normalizer-helpful.json")
    run: Any = SimpleNamespace(path=tmp_path)
    scored = Scored(run, rows=ROWS, index=0, name="helpful", model=run)
    asked = ["q", "q", "q", "r"]
    found = scored(asked, [" tea", " rope", " tea", " clay"], completion_ids=[[3], [4, 0], [3, 0], []])
    assert found == [1.0, 2.0, 0.5, 3.0]  # the third is the first reply, finished
    assert scored.model.asked == [("q", " tea")]
    assert scored(["r", "q"], [" ink", " tea"]) == [4.0, -0.5]  # a text alone is no cut sample
