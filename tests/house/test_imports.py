"""The shape of the house: import direction, light imports, file length, and a README that names every file.

python tests/test_imports.py --write    # brings the README's file tree up to date
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("align", "evals", "recipes", "benchmarks")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# A package may import itself and the packages on its right.
MAY_IMPORT = {"align": {"align"}, "evals": {"align", "evals"}, "recipes": {"align", "evals", "recipes"}}
PURE = (
    "preferences", "losses", "fronts", "conflict", "stats", "tradeoffs", "generalization", "policy_gradient",
    "gradients",
)  # fmt: skip
NAMES = [str(path.relative_to(ROOT)) for path in FILES]


def imported(tree: ast.AST) -> set[str]:
    """Dotted names that the code imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module}
    return names


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_three_packages_exist() -> None:
    assert {module_name(path).split(".")[0] for path in FILES} == set(PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_point_one_way(path: Path) -> None:
    """align <- evals <- recipes; tests are nobody's library."""
    package = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))} & {*PACKAGES, "tests"}
    assert ours <= MAY_IMPORT[package]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_stay_short_and_open_with_their_promise(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 450
    promise = ast.get_docstring(ast.parse(text))
    assert promise and len(promise.splitlines()[0]) > 15


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_module_imports(path: Path) -> None:
    importlib.import_module(module_name(path))


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_read_no_file_and_know_no_trainer(name: str) -> None:
    path = next(path for path in FILES if path.stem == name)
    tree = ast.parse(path.read_text())
    roots = {dotted.split(".")[0] for dotted in imported(tree)}
    assert not roots & {"transformers", "trl", "datasets", "logging", "pathlib", "os", "json"}
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"open", "print", "input"}


def test_no_registries_by_decorator() -> None:
    """A method, objective or shift is found in a literal dict: no decorator has `register` in its name."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
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


def readme_tree() -> dict[str, str]:
    """Path -> promise, from the indented file tree of the README."""
    block = re.search(r"```text\n(align/.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert block, "README.md has no file tree"
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block.group(1).splitlines():
        entry, _, promise = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [entry] if entry.endswith("/") else []
        found["".join(folders) + ("" if entry.endswith("/") else entry)] = promise.strip()
    return found


def test_readme_names_every_module_with_its_promise() -> None:
    """A promise in the tree is the first line of the module's docstring, word for word; `__init__` is the folder."""
    shown = readme_tree()
    for path in FILES:
        name = str(path.relative_to(ROOT)).removesuffix("__init__.py")
        promise = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0].rstrip(".")
        assert shown.get(name) == promise, f"README.md: {name} should read {promise!r}"
    gone = [name for name in shown if name.startswith(PACKAGES) and not (ROOT / name).exists()]
    assert not gone


def tree() -> str:
    """The file tree for the README, from the files themselves."""
    lines: list[str] = []
    for package in PACKAGES:
        files = [path for path in FILES if path.relative_to(ROOT).parts[0] == package]
        for path in sorted(files, key=lambda p: (p.parent, p.name != "__init__.py", p.name)):
            parts = path.relative_to(ROOT).parts
            promise = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0].rstrip(".")
            folder = path.name == "__init__.py"
            name, depth = (parts[-2] + "/", len(parts) - 2) if folder else (path.name, len(parts) - 1)
            lines.append(f"{'  ' * depth}{name:<{26 - 2 * depth}} {promise}")
    return "\n".join(lines)


if __name__ == "__main__":  # `python tests/test_imports.py --write` puts the tree into README.md
    print(tree())
    if "--write" in sys.argv:
        readme = ROOT / "README.md"
        parts = re.split(r"(?<=```text\n)align/.*?(?=```)", readme.read_text(), maxsplit=1, flags=re.S)
        readme.write_text((tree() + "\n").join(parts))
