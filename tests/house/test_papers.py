"""docs/papers.md: no method and no paper that a module cites is left out, and whatever it tells to run exists."""

from __future__ import annotations

import ast
import re

import pytest

from align.methods import METHODS
from align.testbed.theory.hypotheses import LIBRARY
from evals.judges import JUDGES
from evals.shifts import SHIFTS
from evals.shifts.by_model import LLM_SHIFTS
from evals.suites import SUITES
from factories.sources import FILES, ROOT, tree
from recipes.cli import COMMANDS

PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("| ").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| paper |", "| --- |"))
]
ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")
OPTIONS = {
    "--shift": {*SHIFTS, *LLM_SHIFTS, "jailbroken"}, "--suite": set(SUITES), "--judge": set(JUDGES),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_row(method: str) -> None:
    rows = [row for row in ROWS if f"`align/methods/{method}.py`" in row[1]]
    assert rows, f"add a row with `align/methods/{method}.py` to docs/papers.md: paper, what is here, run, deviation"
    assert any(f"`align finetune {method}`" in row[2] for row in ROWS) or len(rows) > 1


def test_every_arxiv_number_of_a_module_is_on_the_page() -> None:
    cited = {
        number: path.name
        for path in FILES if path.parts[len(ROOT.parts)] in ("align", "evals")
        for number in ARXIV.findall(path.read_text(encoding="utf-8"))
    }  # fmt: skip
    assert len(cited) > 10
    assert not {number: file for number, file in cited.items() if number not in PAGE}, "add a row to docs/papers.md"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_a_row_says_where_how_and_what_differs(row: list[str]) -> None:
    assert len(row) == 4 and all(row), "a row is: paper, what is here and where, run, deviation"
    paths = re.findall(r"`((?:align|evals)/[\w/.]+)`", row[1])
    assert paths and all((ROOT / path).is_file() for path in paths)
    runs = re.findall(r"`([^`]+)`", row[2])
    assert runs
    for run in runs:
        check(run)


def check(run: str) -> None:
    """AssertionError unless a command with its names, or an import, exists."""
    if run.startswith("from "):
        module, name = re.fullmatch(r"from ([\w.]+) import (\w+)", run).groups()  # type: ignore[union-attr]
        path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        named = [node.name for node in tree(path).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        assert name in named, run
        return
    words = run.split()
    assert words[0] == "align" and words[1] in COMMANDS, run
    if words[1] == "finetune":
        assert words[2] in METHODS, run
    if words[1] == "conformance" and words[2].startswith("rule:"):
        assert words[2].removeprefix("rule:") in {one.name for one in LIBRARY}, run
    for option, value in zip(words, words[1:], strict=False):
        if option in OPTIONS and not value.startswith("many_shot:"):
            assert re.split("[:@]", value)[0] in OPTIONS[option], run


def test_a_command_that_is_none_is_found_out() -> None:
    for wrong in ("align no-such", "align finetune nothing", "from align.preferences import Nothing",
                  "align suites MODEL --shift nothing", "align conformance rule:nothing"):  # fmt: skip
        with pytest.raises(AssertionError):
            check(wrong)
