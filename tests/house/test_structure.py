"""Bars of the house: no circles, no imports upward, small folders, short files and signatures, a README of one page.

A rule is a function that gives its breaches as text. KNOWN lists those that still stand: each must be there, so that
the list can only become shorter.
"""

from __future__ import annotations

import ast
import io
import re
import statistics
import tokenize
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path

import pytest

from factories.sources import (
    FILES,
    PACKAGES,
    ROOT,
    circles,
    entry_graph,
    functions,
    layers,
    module_graph,
    module_name,
    parameters,
    tree,
)  # fmt: skip

# The floors of align, the lowest first: a room may import rooms of its own floor and of those below it.
FLOORS = (
    {"__init__", "errors", "checks", "preferences", "turns", "runs", "command"},
    {"functional", "data", "models"},
    {"objectives", "policies"},
    {"training"},
    {"engines"},
    {"methods"},
    {"testbed"},
)
MOST_LAYERS, MOST_ENTRIES, MOST_LINES, MEDIAN_LINES, MOST_PARAMETERS = 7, 15, 400, 120, 8
MOST_ANY, MOST_RECIPE_LINES, README_BYTES = 500, 7_500, 10_240
# one file for each thing of a kind
LONG_LISTS = {"align/methods", "recipes/commands", "recipes/configs", "evals/shifts"}
EVERYWHERE = [path for top in (*PACKAGES, "tests", "docs") for path in sorted((ROOT / top).rglob("*.py"))]
FOLDERS = sorted({path.parent for path in FILES} | {ROOT / name for name in LONG_LISTS})
MODULES = module_graph()


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def circles_among_modules() -> Iterator[str]:
    for circle in circles(MODULES):
        yield ", ".join(sorted(circle))


def circles_within_a_folder() -> Iterator[str]:
    """The entries of a folder, files and folders alike, form no circle."""
    for folder in sorted({module_name(path / "__init__.py") for path in FOLDERS}):
        for circle in circles(entry_graph(folder, MODULES)):
            yield f"{folder}: {', '.join(sorted(circle))}"


def imports_upward_in_align() -> Iterator[str]:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    for room, targets in sorted(entry_graph("align", MODULES).items()):
        yield from (f"{room} -> {target}" for target in sorted(targets) if floor[target] > floor[room])


def too_many_layers_in_align() -> Iterator[str]:
    """Counted where there are no circles: with one there is no longest path."""
    rooms = entry_graph("align", MODULES)
    if not circles(rooms) and layers(rooms) > MOST_LAYERS:
        yield f"{layers(rooms)} layers"


def folders_with_too_many_entries() -> Iterator[str]:
    for folder in FOLDERS:
        if name_of(folder) not in LONG_LISTS:
            entries = [path for path in folder.iterdir() if path.name != "__pycache__"]
            if len(entries) > MOST_ENTRIES:
                yield name_of(folder)


def files_too_long() -> Iterator[str]:
    yield from (name_of(path) for path in FILES if len(path.read_text().splitlines()) > MOST_LINES)


def median_file_too_long() -> Iterator[str]:
    median = statistics.median(len(path.read_text().splitlines()) for path in FILES)
    if median > MEDIAN_LINES:
        yield f"{median:g} lines"


def functions_with_too_many_parameters() -> Iterator[str]:
    for path in FILES:
        for function in functions(path):
            if parameters(function) > MOST_PARAMETERS:
                yield f"{name_of(path)} {function.name}"


def search_path_changed() -> Iterator[str]:
    """`sys.path` is read or changed nowhere: packages are installed, tests have a conftest."""
    for path in EVERYWHERE:
        if "sys.path" not in path.read_text():
            continue
        if any(isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path" for node in ast.walk(tree(path))):
            yield name_of(path)


def imports_below_code_excused() -> Iterator[str]:
    for path in EVERYWHERE:
        if "E402" not in path.read_text():
            continue
        tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        if any(token.type == tokenize.COMMENT and "E402" in token.string for token in tokens):
            yield name_of(path)


def too_many_untyped_values() -> Iterator[str]:
    if sum(len(re.findall(r"\bAny\b", path.read_text())) for path in FILES) > MOST_ANY:
        yield f"more than {MOST_ANY} Any"


def untyped_values_in_signatures_of_the_pipeline() -> Iterator[str]:
    """Public signatures and fields of recipes/pipeline hold no Any, under no alias either."""
    aliases = aliases_of_any({module_name(path): tree(path) for path in FILES})
    for path in FILES:
        if path.relative_to(ROOT).parts[:2] == ("recipes", "pipeline"):
            names = untyped_annotations(tree(path), aliases=aliases[module_name(path)])
            yield from (f"{name_of(path)} {name}" for name in names)


def untyped_annotations(module: ast.Module, *, aliases: Set[str]) -> Iterator[str]:
    """Names of public functions, of fields and of variables whose annotations hold one of `aliases`."""
    for node in ast.walk(module):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            name, annotations = node.name, [*(one.annotation for one in _arguments(node)), node.returns]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name, annotations = node.target.id, [node.annotation]
        else:
            continue
        if any(annotation is not None and _names(annotation) & aliases for annotation in annotations):
            yield name


def aliases_of_any(modules: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Module -> its names for `Any`, for a type made of it (`Json = dict[str, Any]`), or for another module's such."""
    aliases: dict[str, set[str]] = {"typing": {"Any"}, **{name: set() for name in modules}}
    given = [(name, node) for name, module in modules.items() for node in ast.walk(module)]
    imports = [(name, node) for name, node in given if isinstance(node, ast.ImportFrom)]
    types = [
        (name, node) for name in modules for node in modules[name].body
        if isinstance(node, ast.Assign) and isinstance(node.value, (ast.Name, ast.Subscript, ast.BinOp))
    ]  # fmt: skip
    before = -1
    while sum(map(len, aliases.values())) > before:
        before = sum(map(len, aliases.values()))
        for name, node in imports:
            there = aliases.get(node.module or "", set())
            aliases[name] |= {one.asname or one.name for one in node.names if one.name in there}
        for name, node in types:
            if _names(node.value) & aliases[name]:
                aliases[name] |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return aliases


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return [one for one in every if one is not None]


def recipes_and_benchmarks_too_long() -> Iterator[str]:
    files = [path for path in FILES if path.relative_to(ROOT).parts[0] in ("recipes", "benchmarks")]
    if sum(len(path.read_text().splitlines()) for path in files) > MOST_RECIPE_LINES:
        yield f"more than {MOST_RECIPE_LINES} lines"


def readme_too_long() -> Iterator[str]:
    if (ROOT / "README.md").stat().st_size > README_BYTES:
        yield f"more than {README_BYTES} bytes"


RULES: tuple[Callable[[], Iterator[str]], ...] = (
    circles_among_modules, circles_within_a_folder, imports_upward_in_align, too_many_layers_in_align,
    folders_with_too_many_entries, files_too_long, median_file_too_long, functions_with_too_many_parameters,
    search_path_changed, imports_below_code_excused, too_many_untyped_values,
    untyped_values_in_signatures_of_the_pipeline, recipes_and_benchmarks_too_long, readme_too_long,
)  # fmt: skip
KNOWN: dict[str, set[str]] = {
    "recipes_and_benchmarks_too_long": {"more than 7500 lines"},
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule: Callable[[], Iterator[str]]) -> None:
    breaches, known = set(rule()), KNOWN.get(rule.__name__, set())
    assert not breaches - known, "new breaches: fix them, or change the rule and say why"
    assert not known - breaches, "gone: take them out of KNOWN"


def test_known_breaches_belong_to_a_rule() -> None:
    assert set(KNOWN) <= {rule.__name__ for rule in RULES}


def test_an_alias_of_any_is_seen_through_across_modules() -> None:
    items = "from typing import Any\nJson = dict[str, Any]\nPlain = dict[str, object]\n"
    user = "from items import Json as J, Plain\nRows = list[J]\nclass C:\n    a: Rows\n    b: Plain\n"
    user += "def f(x: J | None) -> int: ...\ndef g(x: int) -> Plain: ...\ndef _h() -> J: ...\n"
    other = "Json = dict[str, object]\ndef f(x: Json) -> int: ...\n"
    modules = {name: ast.parse(text) for name, text in {"user": user, "items": items, "other": other}.items()}
    aliases = aliases_of_any(modules)
    assert aliases["items"] == {"Any", "Json"} and aliases["user"] == {"J", "Rows"} and aliases["other"] == set()
    assert sorted(untyped_annotations(modules["user"], aliases=aliases["user"])) == ["a", "f"]


def test_circles_and_layers_on_a_graph_drawn_by_hand() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]
    assert layers({"a": {"b", "c"}, "b": {"c"}, "c": set(), "d": set()}) == 3


def test_entries_of_a_folder_are_joined_by_what_lies_inside_them() -> None:
    modules = {"p": {"p.x"}, "p.x": set(), "p.f.one": {"p.x"}, "p.f.two": {"p.f.one"}, "q": {"p"}}
    assert entry_graph("p", modules) == {"__init__": {"x"}, "x": set(), "f": {"x"}}
