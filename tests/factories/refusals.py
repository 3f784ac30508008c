"""A command that must refuse: its one line of error, exit code 2, and no run."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes import cli

Rows = dict[str, Path]


def refused(capsys: pytest.CaptureFixture[str], out: Path, *arguments: str | Path) -> str:
    """The one line of the error, after checking the exit code and that no run appeared."""
    code = cli.main([*map(str, arguments), "--out", str(out)])
    error = capsys.readouterr().err
    assert code == 2, error
    lines = [line for line in error.splitlines() if line.startswith("align: error: ")]
    assert len(lines) == 1 and error.rstrip().splitlines()[-1] == lines[0], error
    assert not out.exists(), "something that looks finished was left behind"
    return lines[0]
