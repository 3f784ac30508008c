"""What the benchmarks' pages share: Markdown tables, values with their intervals, the stack they ran on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evals.items import Fields
from evals.report.words import interval, num, signed

Entry = Fields  # a published table, or a part of it


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int | None = None) -> list[str]:
    """A Markdown table and the empty line behind it; columns from `numbers` on are aligned to the right."""
    left = len(head) if numbers is None else numbers
    ruler = "|" + " --- |" * left + " ---: |" * (len(head) - left)
    return [line(head), ruler, *map(line, rows), ""]


def line(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


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


def stack(environment: Entry, *, packages: Sequence[str] = ("torch", "transformers", "trl", "peft")) -> str:
    """The versions that numbers were made with."""
    return ", ".join(f"{name} {environment['versions'][name]}" for name in packages)


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Write a page and its figures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
