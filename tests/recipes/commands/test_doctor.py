"""`align doctor` says what a report of a fault needs, and its self-test fails when training does."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.methods import METHODS
from recipes.commands import doctor


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    assert doctor.main([]) == 0
    shown = capsys.readouterr().out
    assert f"torch {torch.__version__.split('+')[0]}" in shown and "GFLOP/s in float32 on one core" in shown
    assert f"packages in {Path(doctor.__file__).parents[2]}" in shown
    for method in ("dpo", "morlhf"):
        assert f"self-test: {method}: trained, saved, loaded, drew " in shown
    assert shown.splitlines()[-1] == "self-test: passed"


def test_without_self_test_nothing_is_trained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "self_test", lambda folder: 1 / 0)
    assert doctor.main(["--no-self-test"]) == 0
    assert "self-test" not in capsys.readouterr().out


def test_a_training_that_fails_is_not_passed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(METHODS, "morlhf")
    with pytest.raises(KeyError, match="morlhf"):
        doctor.self_test(tmp_path)
    assert (tmp_path / "dpo").is_dir()


def test_speed_in_milliseconds_a_token() -> None:
    """27 GFLOP/s: 2 x 135M operations a token are 10 ms."""
    assert doctor.said_of_speed(27e9) == (
        "27 GFLOP/s in float32 on one core: a forward pass of 135M weights takes about 10.0 ms a token"
    )
    assert 1e8 < doctor.speed(width=64, tokens=64, rounds=3) < 1e13


def test_no_value_of_the_environment_but_the_cache_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is pasted into public issues."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-value")
    monkeypatch.setenv("HF_TOKEN", "hf-secret-value")
    doctor.main(["--no-self-test"])
    assert "secret" not in capsys.readouterr().out
