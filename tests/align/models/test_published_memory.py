"""The published memory of one GRPO step: the page is made from its numbers, and the bar is held by the worst round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


def test_the_published_page_is_made_from_the_published_numbers() -> None:
    """Also that the bar was met at its size, and against separate models that are no cheaper than they are."""
    from benchmarks.cost.memory import page

    result = json.loads((ROOT / "docs" / "results" / "memory.json").read_text(encoding="utf-8"))
    assert page(result) == (ROOT / "docs" / "results" / "memory.md").read_text(encoding="utf-8")
    variants = result["variants"]
    assert result["objectives"] == 2 and result["backbone_parameters"] >= 50e6
    assert variants["shared"]["ratio_high"] <= 1.25 < variants["separate"]["ratio_low"]
    four_networks = 4 * 4 * result["backbone_parameters"]  # float32
    assert variants["separate"]["parameters"] == pytest.approx(four_networks, rel=0.01)


def made_up(peaks: dict[str, list[int]], *, score: float = 1.0) -> dict[str, Any]:
    fixed = {"loaded": 1, "parameters": 1, "optimizer": 1, "gradients": 1, "cpu_seconds_per_step": 1.0}
    sizes = {"backbone_parameters": 1, "policy_parameters": 1}
    return {
        name: [{"peak": x, "scores": [[score if name == "shared" else 1.0]], **fixed, **sizes} for x in row]
        for name, row in peaks.items()
    }


def test_the_bar_is_held_by_the_worst_round_of_equal_models() -> None:
    from benchmarks.cost.memory import result_of

    peaks = {"policy": [100, 200], "reference": [100, 200], "shared": [130, 220], "separate": [300, 500]}
    result = result_of(made_up(peaks), objectives=1)
    shared = result["variants"]["shared"]
    assert (shared["ratio"], shared["ratio_low"], shared["ratio_high"]) == pytest.approx((1.2, 1.1, 1.3))
    assert not result["met"] and result["variants"]["separate"]["ratio"] == pytest.approx(2.75)
    assert result_of(made_up({**peaks, "shared": [125, 220]}), objectives=1)["met"]
    with pytest.raises(RuntimeError, match="not the same models"):
        result_of(made_up(peaks, score=1.1), objectives=1)
