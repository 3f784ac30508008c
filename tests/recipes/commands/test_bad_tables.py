"""Bad input of the tables made from finished evaluations: one line naming the file, exit code 2, no traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from evals.attribution.from_cells import read_thresholds
from recipes import cli


@pytest.mark.parametrize(("outcomes", "word"), [("", "outcome"), ('{"suite":', "JSON"), ('{"suite": "s"}\n', "item")])
def test_outcomes_that_cannot_be_read(outcomes: str, word: str, capsys: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        (folder / "outcomes.jsonl").write_text(outcomes)
        (folder / "summary.json").write_text('{"shifts": {}}')
    assert cli.main(["held-out-families", f"none={first}", f"encoding={first}"]) == 2
    error = capsys.readouterr().err
    assert str(first / "outcomes.jsonl") in error and word in error
    assert cli.main(["compare", str(first), str(second)]) == 2
    error = capsys.readouterr().err
    assert str(first / "outcomes.jsonl") in error and word in error


def test_score_that_is_not_finite(capsys: Any, tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    rows = [{"item": "a", "p": 0.5, "g": g} for g in (1.0, float("nan"), 0.0)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["over-optimisation", str(file), "--proxy", "p", "--gold", "g"]) == 2
    error = capsys.readouterr().err
    assert str(file) in error and "finite" in error


def test_thresholds_that_are_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="benchmarks/attribution/run.py"):
        read_thresholds(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"config": {}}'])
def test_attribute_names_a_folder_that_no_evaluation_wrote(text: str, tmp_path: Path) -> None:
    from recipes.commands.attribute import Config, evaluation_of

    (tmp_path / "cells.jsonl").touch()
    (tmp_path / "provenance.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="align suites"):
        evaluation_of(Config(run=str(tmp_path)))
