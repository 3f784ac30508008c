"""The table of docs/methods.md from METHODS: a row per method, from its docstring, ASKED_BY and FAMILY."""

from __future__ import annotations

import re
from collections.abc import Mapping

from align.methods import Method

BEGIN = "<!-- The table is generated from align/methods by `make docs`. -->\n"
END = "<!-- The table ends here. -->\n"
FACTS = re.compile(r"^Data: (?P<data>[^.]+)\. Fixed point: (?P<fixed_point>.+?)\.$", flags=re.M)


def facts(module: Method) -> dict[str, str]:
    """What a method trains on and where it ends, from the docstring's line `Data: ... . Fixed point: ... .`.

    ValueError naming the module when it has no such line.
    """
    found = FACTS.search(module.__doc__ or "")
    if found is None:
        raise ValueError(f"the docstring of {module} has no line 'Data: ... . Fixed point: ... .'")
    return found.groupdict()


def table(methods: Mapping[str, Method]) -> str:
    """The table as Markdown, in the order of `methods`."""
    head = "| method | what it is | data | asked by | point | fixed point |"
    rows = [_row(name, module) for name, module in methods.items()]
    return "\n".join([head, "|" + " --- |" * 6, *rows]) + "\n"


def rewritten(page: str, methods: Mapping[str, Method]) -> str:
    """The page with its table, between the lines BEGIN and END, made anew."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(methods)}\n{END}{rest.partition(END)[2]}"


def _row(name: str, module: Method) -> str:
    known = facts(module)
    first = (module.__doc__ or "").splitlines()[0].rstrip(".")
    asked = ", ".join(kind.__name__.lower() + "s" * (not kind.__name__.endswith("s")) for kind in module.ASKED_BY)
    data = known["data"].removeprefix("none")
    cells = (f"`{name}`", first, data, asked, module.FAMILY.point_cost, known["fixed_point"])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
