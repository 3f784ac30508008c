"""align.engines.points: a reference that no stage made is known by its contents, a run by its fingerprint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from align.engines.points import known_as
from align.errors import UserError
from align.methods import METHODS
from align.preferences import Weights
from align.runs import Ledger, Workspace, open_run, run_stage
from factories.tiny_bandit import PAIRS, make_reference, pair_rows, problem_of, same_weights


def test_a_plain_folder_is_known_by_its_weights_and_not_by_its_path(tmp_path: Path) -> None:
    first, copy = make_reference(tmp_path / "model"), shutil.copytree(tmp_path / "model", tmp_path / "copy")
    known = known_as(first)
    assert known == known_as(str(copy)) and first not in known
    (copy / "notes.txt").write_text("no part of the model")
    assert known_as(str(copy)) == known
    assert known_as(make_reference(tmp_path / "model", seed=1)) != known
    assert known_as(make_reference(tmp_path / "model")) == known
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    assert known_as(str(copy)) != known
    assert known_as("someone/a-model") == "someone/a-model"


def test_a_run_is_known_by_its_fingerprint(tmp_path: Path) -> None:
    def body(folder: Path, _: Ledger) -> dict[str, object]:
        make_reference(folder / "model")
        return {}

    run_stage(tmp_path / "sft", stage="sft", config={"seed": 3}, body=body)
    expected = open_run(tmp_path / "sft").fingerprint
    assert known_as(str(tmp_path / "sft")) == known_as(str(tmp_path / "sft" / "model")) == expected


def test_points_of_a_reference_that_was_since_retrained_at_its_path_are_not_reused(tmp_path: Path) -> None:
    weights = Weights((0.5, 0.5))

    def fit(seed: int, *, out: str) -> str:
        reference = make_reference(tmp_path / "model", seed=seed)
        problem = problem_of(reference, preferences=[weights], comparisons=pair_rows(8))
        family = METHODS["dpo"].fit(METHODS["dpo"].Config(**PAIRS), problem, Workspace(tmp_path / out, Ledger()))
        return str(family.points[weights.label])

    first = fit(0, out="out")
    with pytest.raises(UserError, match="another input reference"):
        fit(1, out="out")
    assert not same_weights(first, fit(1, out="elsewhere"))
    made = Path(first).stat().st_mtime_ns
    assert Path(fit(0, out="out")).stat().st_mtime_ns == made  # the reference of these points again: reused
