"""The four packages as source text: their files, what each module imports at any depth, and circles among names."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("align", "evals", "recipes", "benchmarks")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    """The dotted name of a file: of its folder where it is an `__init__.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, inside functions, too; `from a import b` gives both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def module_graph() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports. `from a import b` is an import of a.b where that is a module."""
    modules = {module_name(path) for path in FILES}
    graph: dict[str, set[str]] = {}
    for path in FILES:
        targets: set[str] = set()
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                full = [f"{node.module}.{alias.name}" for alias in node.names]
                targets |= {name if name in modules else node.module for name in full}
        graph[module_name(path)] = (targets & modules) - {module_name(path)}
    return graph


def entry_graph(folder: str, modules: Mapping[str, Set[str]]) -> dict[str, set[str]]:
    """Entry (file or folder) of a dotted folder -> the other entries of it that anything inside imports."""

    def entry(module: str) -> str | None:
        if module == folder:
            return "__init__"
        return module.removeprefix(f"{folder}.").split(".")[0] if module.startswith(f"{folder}.") else None

    graph: dict[str, set[str]] = {}
    for module, targets in modules.items():
        if (name := entry(module)) is not None:
            graph.setdefault(name, set()).update(e for t in targets if (e := entry(t)) is not None and e != name)
    return graph


def circles(graph: Mapping[str, Set[str]]) -> list[set[str]]:
    """Every set of two or more nodes that reach each other."""
    reach = {node: _reachable(node, graph) for node in graph}
    together = {node: frozenset(other for other in reach[node] if node in reach[other]) for node in graph}
    return [set(group) for group in {group for group in together.values() if len(group) > 1}]


def layers(graph: Mapping[str, Set[str]]) -> int:
    """The number of nodes on the longest path of a graph without circles."""

    @cache
    def height(node: str) -> int:
        return 1 + max((height(below) for below in graph[node]), default=0)

    return max(map(height, graph))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a file, nested ones too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many parameters a function takes, `*args` and `**kwargs` among them, self and cls not."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return sum(argument is not None and argument.arg not in ("self", "cls") for argument in every)


def _reachable(start: str, graph: Mapping[str, Set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for node in graph[waiting.pop()]:
            if node not in seen:
                seen.add(node)
                waiting.append(node)
    return seen
