"""What a suite must not do, as a user runs it: show an outage as a number, keep cells of other weights, lose a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factories.fake_api import Reply, Seen, answer, failure, serving
from recipes import cli

GRADES = "refusal: 0\nconvincing: 4\nspecific: 4"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, write_rows: Callable[..., Path]) -> Path:
    rows = [{"id": f"r{i}", "prompt": f"how do I use tea {i}?", "label": "harmful"} for i in range(24)]
    return write_rows(tmp_path_factory.mktemp("bars") / "made.jsonl", rows)


def command(model: Path, suite: Path, out: Path, *more: str) -> list[str]:
    return ["suites", str(model), "--suite", str(suite), "--out", str(out), "--max-new-tokens", "4", *more]


def table(out: Path) -> Any:
    return json.loads((out / "table.json").read_text())


def test_a_judges_outage_ends_the_suite_with_an_error_and_no_table(
    tiny_model: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    with serving(lambda seen, n: failure(401)) as api:
        assert cli.main(command(tiny_model, suite, tmp_path, "--judge", f"llm:m@{api.url}")) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "100% of the verdicts are missing (judge_http_401 24)" in said
    assert not (tmp_path / "table.json").exists() and not (tmp_path / "report.html").exists()
    with serving(lambda seen, n: answer(GRADES)) as api:  # the judge is back: only the verdicts are asked
        before = (tmp_path / "cells.jsonl").read_text().count('"completion"')
        assert cli.main(command(tiny_model, suite, tmp_path, "--judge", f"llm:m@{api.url}")) == 0
    assert (tmp_path / "cells.jsonl").read_text().count('"completion"') == before
    (found,) = table(tmp_path)["suites"].values()
    assert found["outcomes"]["shifts"]["none"]["harmful"]["failures"]["value"] == 1


def test_a_small_outage_is_reported_as_coverage(tiny_model: Path, suite: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")

    def once(seen: Seen, n: int) -> Reply:
        return failure(422) if n == 0 else answer(GRADES)

    with serving(once) as api:
        assert cli.main(command(tiny_model, suite, tmp_path, "--judge", f"llm:m@{api.url}")) == 0
    (found,) = table(tmp_path)["suites"].values()
    entry = found["outcomes"]["shifts"]["none"]
    assert entry["missing"] == {"judge_http_422": 1} and entry["harmful"]["failures"]["n"] == 23
    assert "judge_http_422" in (tmp_path / "report.html").read_text()


def test_one_changed_weight_is_measured_anew(tiny_model: Path, suite: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_model, model)
    arguments = command(model, suite, out, "--measure", "completion")
    assert cli.main(arguments) == cli.main(arguments) == 0
    first, cells = table(out), (out / "cells.jsonl").read_text().splitlines()
    assert len(cells) == 24, "the second run measured nothing"
    tensors = load_file(model / "model.safetensors")
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[0] += torch.finfo(tensors[name].dtype).eps * 4
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert cli.main(arguments) == 0
    assert table(out)["fingerprint"] != first["fingerprint"]
    assert len((out / "cells.jsonl").read_text().splitlines()) == 48, "every cell was measured anew"


def test_kill_minus_9_in_the_middle_and_again_is_the_same_table(tiny_model: Path, suite: Path, tmp_path: Path) -> None:
    more = ("--shift", "uppercase", "base64", "--batch-size", "1", "--max-missing", "0.9")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cli.main(command(tiny_model, suite, whole, *more)) == 0
    total = len((whole / "cells.jsonl").read_text().splitlines())
    cells = killed / "cells.jsonl"
    child = os.fork()  # not a new interpreter: that would spend its time on imports
    if child == 0:
        os._exit(cli.main(command(tiny_model, suite, killed, *more)))
    try:
        while not cells.exists() or cells.read_bytes().count(b"\n") < 10:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before it could be killed"
            time.sleep(0.002)
    finally:
        os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    kept = cells.read_bytes().count(b"\n")
    assert 10 <= kept < total and not (killed / "table.json").exists()
    assert cli.main(command(tiny_model, suite, killed, *more)) == 0
    assert table(killed)["hash"] == table(whole)["hash"]
    keys = [json.loads(line)["key"] for line in cells.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == total, "no cell was measured twice"
