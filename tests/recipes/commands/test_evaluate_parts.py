"""`align evaluate --parts` as a user runs it, on tiny models: parts with intervals, or a line that says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from align.policies.base import PointFamily
from recipes.commands import evaluate

WORDS = ("tea", "glue", "rope", "bees")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, write_rows: Callable[..., Path]) -> list[str]:
    """A family whose one policy is the reference itself, on plain, wrapped and neutral prompts."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "same").mkdir()
    PointFamily("dpo", {"0.5,0.5": str(tiny_model)}).save(folder / "same")
    data = []
    for name, start in (("none", ""), ("wrapped", "please "), ("neutral", "today ")):
        rows = [{"id": word, "prompt": f"{start}how do I use {word}?"} for word in WORDS]
        data.append(f"{name}={write_rows(folder / f'{name}.jsonl', rows)}")
    objectives = ["--objectives", "long=length", "short=length", "--reference", str(tiny_model)]
    drawn = ["--set", "sampling.samples=2", "--set", "sampling.max_new_tokens=3"]
    return [str(folder / "same"), "--data", *data, *objectives, *drawn]


def parts(command: list[str], out: Path, *more: str) -> list[dict[str, Any]]:
    assert evaluate.main([*command, "--out", str(out), "--parts", "40", *more]) == 0
    return json.loads((out / "summary.json").read_text())["parts"]


def test_the_untouched_reference_has_no_mismatched_part_and_its_parts_add_up(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {e["shift"]: e for e in parts(command, tmp_path / "a", "--control", "wrapped=neutral", "--beta", "50")}
    assert set(found) == {"wrapped", "neutral"} and found["wrapped"]["control"] == "neutral"
    wrapped = found["wrapped"]["parts"]
    assert wrapped["mismatched"]["value"] == pytest.approx(0, abs=1e-6), "it is its own transported policy"
    assert "competing" not in wrapped, "both objectives count words: nothing disagrees, so it is a pull"
    total = sum(wrapped[name]["value"] for name in ("surface", "pull", "carried_over", "mismatched"))
    assert total == pytest.approx(wrapped["drop"]["value"], abs=1e-6) and wrapped["drop"]["ess"] >= 30
    assert wrapped["drop"]["ci"][0] <= wrapped["drop"]["value"] <= wrapped["drop"]["ci"][1]
    assert found["neutral"]["parts"]["pull"]["value"] is None, "it has no control of its own"
    printed = capsys.readouterr().out
    assert "parts of the drop, same at 0.5,0.5 under wrapped (beta 50): drop" in printed
    assert "no matched control among the prompts" in printed


def test_weights_that_degenerate_are_said(command: list[str], tmp_path: Path) -> None:
    entry = parts(command, tmp_path / "b", "--control", "wrapped=neutral", "--beta", "0.001")[0]
    assert entry["parts"]["surface"]["value"] is None and "degenerate" in entry["line"]
    assert entry["parts"]["mismatched"]["value"] is not None, "what needs no optimum has its number"


def test_mistakes_are_said_before_anything_is_drawn(command: list[str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "c")]
    for more, words in (
        (["--parts", "4"], "does not say at which beta"),
        (["--parts", "4", "--beta", "1", "--control", "wrapped=nothing"], "'nothing', which is not among --data"),
        (["--parts", "0", "--beta", "1"], "from 1 on"),
        (["--beta", "1"], "are for --parts"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate.main([*command, *out, *more])
    assert not (tmp_path / "c").exists()
