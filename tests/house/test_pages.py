"""The pages of docs/: generated ones are up to date; links, files, modules and commands that a page names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate.__main__ import pages
from docs.generate.files_page import tree
from factories.sources import FILES, ROOT
from recipes.cli import COMMANDS

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]+)(?:#[^)]*)?\)")
PATH = re.compile(r"`((?:align|evals|recipes|benchmarks|tests|docs)/[\w./-]*[\w-])`")
MODULE = re.compile(r"python -m ((?:benchmarks|evals|recipes|docs)[\w.]*)")
COMMAND = re.compile(r"(?:^\s*|`)align ([a-z-]+)", flags=re.M)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", pages(), ids=name_of)
def test_generated_page_is_up_to_date(path: Path) -> None:
    assert path.read_text() == pages()[path], "run make docs"


def test_the_page_of_files_names_every_module() -> None:
    lines = (ROOT / "docs" / "files.md").read_text().splitlines()
    named = [line for line in lines if re.match(r" +\w+\.py ", line)]
    assert len(named) == len([path for path in FILES if path.name != "__init__.py"])


def test_tree_puts_files_before_folders_and_drops_the_full_stop(tmp_path: Path) -> None:
    modules = {"__init__": "All.", "b": "B.", "a/__init__": "Inner", "a/x": "X: more\n\nThe rest."}
    for name, docstring in modules.items():
        path = tmp_path / "top" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""{docstring}"""\n')
    lines = [line.split(maxsplit=1) for line in tree(tmp_path / "top").splitlines()]
    assert lines == [["top/", "All"], ["b.py", "B"], ["a/", "Inner"], ["x.py", "X: more"]]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_to_files(path: Path) -> None:
    targets = LINK.findall(path.read_text())
    assert not [target for target in targets if not (path.parent / target).exists()]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_files_modules_and_commands_that_a_page_names_exist(path: Path) -> None:
    text = path.read_text()
    gone = [name for name in PATH.findall(text) if not (ROOT / name).exists() and "NAME" not in name]
    gone += [name for name in MODULE.findall(text) if not is_module(name)]
    gone += [name for name in COMMAND.findall(text) if name not in COMMANDS]
    assert not gone


def is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").exists() or (place / "__main__.py").exists()
