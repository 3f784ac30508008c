"""A hub id that cannot be had: one line that says what to give, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from factories.refusals import refused


def test_a_hub_id_that_cannot_be_had_is_told_before_any_work(capsys: Any, tmp_path: Path) -> None:
    """The tests are offline, as many machines are."""
    error = refused(capsys, tmp_path / "out", "chat", "--data", tmp_path, "--model", "nobody/nothing")
    assert "nobody/nothing is no folder here, and the hub did not give it" in error and "a .gguf file" in error
    assert not list(tmp_path.iterdir())
