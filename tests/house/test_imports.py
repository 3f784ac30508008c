"""Imports: one way between the packages, light where a notebook imports, and every module opens with its promise."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from factories.sources import FILES, PACKAGES, ROOT, imported, module_name, tree

# A package may import itself and those before it; tests are nobody's library.
MAY_IMPORT = {package: set(PACKAGES[: number + 1]) for number, package in enumerate(PACKAGES)}
PURE_FOLDERS = ("align/functional", "evals/stats")
PURE_FILES = ("align/preferences.py", "evals/tables/tradeoffs.py", "evals/tables/under_shift/generalization.py")
PURE = [path for folder in PURE_FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
PURE += map(ROOT.joinpath, PURE_FILES)
IMPURE_LIBRARIES = {
    "transformers", "trl", "peft", "datasets", "accelerate",
    "logging", "pathlib", "os", "io", "json", "yaml", "subprocess",
}  # fmt: skip


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_four_packages_exist() -> None:
    assert {module_name(path).split(".")[0] for path in FILES} == set(PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_packages_import_one_way(path: Path) -> None:
    """align <- evals <- recipes <- benchmarks."""
    ours = {name.split(".")[0] for name in imported(path)} & {*PACKAGES, "tests", "factories", "docs"}
    assert ours <= MAY_IMPORT[path.relative_to(ROOT).parts[0]]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_opens_with_its_promise(path: Path) -> None:
    promise = ast.get_docstring(tree(path))
    assert promise and len(promise.splitlines()[0]) > 15


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_imports(path: Path) -> None:
    importlib.import_module(module_name(path))


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_pure_modules_read_no_file_and_know_no_trainer(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & IMPURE_LIBRARIES
    calls = (node.func for node in ast.walk(tree(path)) if isinstance(node, ast.Call))
    assert not {call.id for call in calls if isinstance(call, ast.Name)} & {"open", "print", "input"}


def test_no_registries_by_decorator() -> None:
    """A method, objective or shift is found in a literal dict: no decorator has `register` in its name."""
    for path in FILES:
        for node in ast.walk(tree(path)):
            for decorator in getattr(node, "decorator_list", []):
                assert "regist" not in ast.unparse(decorator), f"{path}: {ast.unparse(decorator)}"


def test_objectives_import_alone_and_light() -> None:
    """`import align.objectives` in a notebook loads neither the recipes nor a training library."""
    code = (
        "import sys, align.objectives\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'evals', 'recipes'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
