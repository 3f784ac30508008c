"""Another project's package under one of our names is one line before anything of it is imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from align.runs import packages
from recipes import cli


def _another_evals(folder: Path, monkeypatch: pytest.MonkeyPatch, *, text: str) -> None:
    """A package `evals` in `folder`, which Python finds before ours."""
    (folder / "evals").mkdir()
    (folder / "evals" / "__init__.py").write_text(text, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "evals", raising=False)
    monkeypatch.syspath_prepend(folder)


def test_our_own_packages_pass_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    packages.check_packages()
    assert capsys.readouterr().err == ""


def test_another_projects_evals_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _another_evals(tmp_path, monkeypatch, text="raise ImportError('never imported')\n")
    assert cli.main(["suites", "m", "--suite", "s.jsonl"]) == 2
    place = tmp_path / "evals" / "__init__.py"
    assert capsys.readouterr().err == (
        f"align: error: the package evals is another project's ({place}); "
        "install align-tradeoffs in an environment of its own\n"
    )


def test_a_project_whose_files_lie_among_ours_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """evals 3.0.1, then align-tradeoffs over it: `evals/__init__.py` is ours, `evals/api.py` is theirs."""
    _another_evals(tmp_path, monkeypatch, text='__project__ = "align-tradeoffs"\n')
    info = tmp_path / "evals-3.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evals\nVersion: 3.0.1\n", encoding="utf-8")
    (info / "RECORD").write_text("evals/__init__.py,,\nevals/api.py,,\n", encoding="utf-8")
    packages.check_packages()
    assert capsys.readouterr().err == (
        "align: note: evals 3.0.1 has its files in the package evals, too, and is broken; "
        "install align-tradeoffs in an environment of its own\n"
    )
