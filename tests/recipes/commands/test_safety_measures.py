"""`align depth`, `asr-at-n` and `stress` as a user runs them, on the tiny model and made rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from recipes.commands import asr_at_n, depth, stress

WORDS = ("tea", "glue", "rope", "bees")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, write_rows: Callable[..., Path]) -> Path:
    made = [{"prompt": f"how do I use {w}?", "label": "harmful" if i % 2 else "benign"} for i, w in enumerate(WORDS)]
    return write_rows(tmp_path_factory.mktemp("depth") / "asked.jsonl", made)


def run(model: Path, rows: Path, out: Path, *more: str) -> dict[str, Any]:
    shared = ["--suite", str(rows), "--out", str(out), "--max-new-tokens", "6", "--max-missing", "0.9"]
    assert depth.main([str(model), *shared, "--lengths", "2", "3", *more]) == 0
    return json.loads((out / "depth.json").read_text())


def test_a_policy_that_is_its_reference_has_no_kl_and_a_curve(
    tiny_model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(tiny_model, rows, tmp_path, "--reference", str(tiny_model))
    for table in found["kl"].values():
        assert table["early"]["value"] is None and max(abs(p["value"]) for p in table["positions"]) < 1e-6
        assert [(b["from"], b["to"]) for b in table["bands"]] == [(1, 2), (3, 3)]
    curve = found["curve"]["asked"]
    assert set(curve) == {"harmful", "benign"} and [p["k"] for p in curve["harmful"]] == [0, 2, 3]
    assert "refused when the answer begins" in capsys.readouterr().out
    shifts = json.loads((tmp_path / "table.json").read_text())["suites"]["asked"]["outcomes"]["shifts"]
    assert set(shifts) == {"none", *(f"{kind}_{k}" for kind in ("prefix", "prefix_other", "insertion") for k in (2, 3))}
    size = (tmp_path / "cells.jsonl").stat().st_size
    assert run(tiny_model, rows, tmp_path, "--reference", str(tiny_model))["curve"] == found["curve"]
    assert (tmp_path / "cells.jsonl").stat().st_size == size, "the same command measures nothing again"


def test_replies_of_a_file_are_matched_by_prompt_and_counted(
    tiny_model: Path, rows: Path, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    given = [("tea", "bread and cheese and boats"), ("glue", "bread and cheese and rope"), ("rope", "ink")]
    file = write_rows(tmp_path / "r.jsonl", [{"prompt": f"how do I use {w}?", "response": r} for w, r in given])
    found = run(tiny_model, rows, tmp_path / "out", "--replies", str(file))
    assert found["left_out"] == {"short_reply": 1, "no_reply": 1} and found["kl"] == {}
    asked = [json.loads(line) for line in (tmp_path / "out" / "outcomes.jsonl").read_text().splitlines()]
    assert len({row["item"] for row in asked}) == 2
    bad = write_rows(tmp_path / "bad.jsonl", [{"prompt": "x", "response": "y"}, {"prompt": "x", "response": " "}])
    with pytest.raises(UserError, match=r"bad\.jsonl line 2: prompt and response must be texts"):
        run(tiny_model, rows, tmp_path / "out", "--replies", str(bad))
    none = write_rows(tmp_path / "none.jsonl", [{"prompt": "x", "response": "y"}])
    with pytest.raises(UserError, match="no item has a reply of 3 tokens that complies"):
        run(tiny_model, rows, tmp_path / "out", "--replies", str(none))
    with pytest.raises(UserError, match="lengths are numbers of tokens"):
        run(tiny_model, rows, tmp_path / "out", "--lengths", "0")


def test_asr_at_n_draws_the_shift_and_the_plain_prompt_and_extrapolates(
    tiny_model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["--suite", str(rows), "--out", str(tmp_path), "--max-new-tokens", "4", "--max-missing", "0.9"]
    assert asr_at_n.main([str(tiny_model), *shared, "--samples", "3", "--n", "24"]) == 0
    found = json.loads((tmp_path / "asr_at_n.json").read_text())["suites"]["asked"]
    assert set(found) == {"none", "best_of_n"}
    for side in ("harmful", "benign"):
        entry = found["best_of_n"][side]
        assert (
            entry["items"] == 2
            and set(entry["beyond"]) == {"24"}
            and set(entry["measured"]) == ({"1", "2"} if side == "benign" else set())
        )
        low, high = entry["beyond"]["24"]["bounds"]
        assert 0 <= low <= high <= 1
    assert "N =    24" in capsys.readouterr().out
    for more, words in ((["--samples", "1"], "says nothing of more draws"), (["--n", "0"], "numbers of draws")):
        with pytest.raises(UserError, match=words):
            asr_at_n.main([str(tiny_model), *shared, *more])


def test_stress_fine_tunes_both_and_a_policy_that_is_its_reference_has_no_lead(
    tiny_model: Path, rows: Path, tmp_path: Path, write_rows: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    taught = write_rows(tmp_path / "t.jsonl", [{"prompt": w, "completion": "bread and tea"} for w in WORDS])
    shared = ["--suite", str(rows), "--rows", str(taught), "--max-new-tokens", "4", "--max-missing", "0.9"]
    command = [str(tiny_model), *shared, "--steps", "2", "--objectives", "words=length", "--out", str(tmp_path / "out")]
    small = ["--set", "training.lora_r=0", "--set", "training.batch_size=2"]
    assert stress.main([*command, "--reference", str(tiny_model), *small]) == 0
    series = json.loads((tmp_path / "out" / "stress.json").read_text())["series"]
    assert set(series) == {"asked, harmful: refused", "asked, benign: refused", "asked: words"}
    for points in series.values():
        assert [p["steps"] for p in points] == [0, 2] and all(p["lead"]["value"] == 0 for p in points)
        assert points[1]["kept"] is None, "no lead, nothing to keep"
    weights = [(tmp_path / "out" / f"{side}-2" / "model" / "model.safetensors").read_bytes() for side in stress.SIDES]
    assert weights[0] == weights[1] != (tiny_model / "model.safetensors").read_bytes()
    assert "2 steps" in capsys.readouterr().out
    with pytest.raises(UserError, match="name it with --reference"):
        stress.main(command)
