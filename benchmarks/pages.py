"""What the benchmarks' pages share: templates, Markdown tables, values with their intervals, the stack they ran on."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from evals.items import Fields
from evals.report.words import amount, interval, num, signed

Entry = Fields  # a published table, or a part of it


def render(template: Path, **values: object) -> str:
    """The page of a template that lies beside its module.

    Templates call the functions of this file and those of evals/report/words.py by their names. A backslash at the end
    of a line joins it to the next, so that one line of Markdown may stand on several lines of the template; a block tag
    takes the end of its line with it, unless it closes with +%}.
    """
    shared: dict[str, Callable[..., object]] = {function.__name__: function for function in SHARED}
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["at"] = at
    source = template.read_text(encoding="utf-8").replace("\\\n", "")
    return environment.from_string(source).render(shared | values).rstrip() + "\n"


def filled(page: str) -> str:
    """The page with its paragraphs filled to 130 columns; tables, titles and lists stay as they are."""
    wrapper = textwrap.TextWrapper(width=130, break_long_words=False, break_on_hyphens=False)
    blocks = page.strip().split("\n\n")
    kept = ("|", "#", "- ")
    return "\n\n".join(b if b.startswith(kept) else wrapper.fill(" ".join(b.split())) for b in blocks) + "\n"


def heading(head: Sequence[str], *, align: str = "l") -> str:
    """Head and ruler of a table; `align`: l or r for each column, the last letter for all the rest, too."""
    letters = align.ljust(len(head), align[-1])
    return f"| {' | '.join(head)} |\n|" + "".join(" ---: |" if letter == "r" else " --- |" for letter in letters)


def stated(entry: Entry, digits: int = 3) -> str:
    """A value and its interval."""
    return f"{num(entry['value'], digits)} {interval(entry['ci'], digits)}"


def ranged(entry: Entry, *, digits: int = 3, sign: bool = False) -> str:
    """A value and one interval, over training seeds, else over base items; null where there is no value.

    The other interval stays in the JSON. Fewer than three seeds have no interval: then the items' is marked as such.
    """
    if entry["value"] is None:
        return "null"
    value = (signed if sign else num)(entry["value"], digits)
    seeds, items = (interval(entry[name], digits) for name in ("ci_seeds", "ci_items"))
    return f"{value} {seeds}" if seeds else f"{value} {items} (items)" if items else value


def excludes_zero(entry: Entry) -> bool:
    """Whether both intervals are there and leave 0 out."""
    pairs = [entry["ci_seeds"], entry["ci_items"]]
    return all(pair is not None and (pair[0] > 0 or pair[1] < 0) for pair in pairs)


def named(row: str, controls: Sequence[str]) -> str:
    """A row's name, in italics where it is a control."""
    return f"*{row}*" if row in controls else row


def at(preference: Sequence[float]) -> str:
    """A preference in a table's head."""
    return ", ".join(f"{w:g}" for w in preference)


def listed(words: Sequence[object], *, mark: str = "") -> str:
    """Words with commas between them, each between two marks, or "none"."""
    return ", ".join(f"{mark}{word}{mark}" for word in words) or "none"


def stack(environment: Entry, *, packages: Sequence[str] = ("torch", "transformers", "trl", "peft")) -> str:
    """The versions that numbers were made with."""
    return ", ".join(f"{name} {environment['versions'][name]}" for name in packages)


SHARED = (amount, at, excludes_zero, heading, interval, listed, named, num, ranged, signed, stack, stated)


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Write a page and its figures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
