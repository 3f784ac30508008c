"""The table of docs/methods.md from METHODS: a row per method, from its docstring and the signature of its `fit`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any, get_args, get_type_hints

BEGIN = "<!-- The table is generated from align/methods by `make docs`. -->\n"
END = "<!-- The table ends here. -->\n"
FACTS = re.compile(r"^Data: (?P<data>[^.]+)\. Fixed point: (?P<fixed_point>.+?)\.$", flags=re.M)


def asked_by(module: ModuleType) -> tuple[type, ...]:
    """The kinds of preference that a method's `fit` takes, from its annotation."""
    (kinds,) = get_args(_signature(module)["preferences"])
    return get_args(kinds) or (kinds,)


def facts(module: ModuleType) -> dict[str, str]:
    """What a method trains on and where it ends, from the docstring's line `Data: ... . Fixed point: ... .`.

    ValueError naming the module when it has no such line.
    """
    found = FACTS.search(module.__doc__ or "")
    if found is None:
        raise ValueError(f"the docstring of {module.__name__} has no line 'Data: ... . Fixed point: ... .'")
    return found.groupdict()


def table(methods: Mapping[str, ModuleType]) -> str:
    """The table as Markdown, in the order of `methods`."""
    head = "| method | what it is | data | asked by | point | fixed point |"
    rows = [_row(name, module) for name, module in methods.items()]
    return "\n".join([head, "|" + " --- |" * 6, *rows]) + "\n"


def rewritten(page: str, methods: Mapping[str, ModuleType]) -> str:
    """The page with its table, between the lines BEGIN and END, made anew."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(methods)}\n{END}{rest.partition(END)[2]}"


def _row(name: str, module: ModuleType) -> str:
    known = facts(module)
    first = (module.__doc__ or "").splitlines()[0].rstrip(".")
    asked = ", ".join(kind.__name__.lower() + "s" * (not kind.__name__.endswith("s")) for kind in asked_by(module))
    data = known["data"].removeprefix("none")
    point = _signature(module)["return"].point_cost
    cells = (f"`{name}`", first, data, asked, point, known["fixed_point"])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _signature(module: ModuleType) -> dict[str, Any]:
    return get_type_hints(module.fit)
