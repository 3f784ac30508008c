"""Every published page regenerates from its committed numbers: no number in its tables changes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def numbers(text: str) -> Counter[str]:
    """The numbers in a page's tables, whose lines may stand in another order: keys are sorted in the file."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return Counter(re.findall(r"\d+(?:\.\d+)?", "\n".join(lines)))


def read(name: str) -> dict:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def world_page(folder: str, out: Path) -> None:
    from benchmarks.testbed.page import write_page

    write_page(read(f"{folder}/testbed.json"), folder=out, command="")


def pairs(out: Path) -> None:
    from benchmarks.testbed.pairs import lines

    (out / "testbed_pairs.md").write_text("\n".join(lines(read("testbed.json")["methods"], command="")))


def shift(out: Path) -> None:
    from benchmarks.shift.page import write_page

    write_page(read("shift.json"), folder=out, command="")


def hh_methods(out: Path) -> None:
    from benchmarks.hh.methods import lines

    (out / "hh_methods.md").write_text("\n".join(lines(read("hh_methods.json"))))


def fixed_points(out: Path) -> None:
    from benchmarks.fixed_points.page import page

    (out / "fixed_points.md").write_text(page(read("fixed_points.json")))


def rewards(out: Path) -> None:
    from benchmarks.rewards.page import write_page

    write_page(read("rewards.json"), folder=out)


def attribution(out: Path) -> None:
    from benchmarks.attribution.page import write_page

    write_page(read("attribution.json"), folder=out, command="")


PAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "testbed": (".", lambda out: world_page(".", out)),
    "best": ("best", lambda out: world_page("best", out)),
    "harder": ("harder", lambda out: world_page("harder", out)),
    "pairs": (".", pairs),
    "shift": (".", shift),
    "hh": (".", hh_methods),
    "fixed_points": (".", fixed_points),
    "rewards": (".", rewards),
    "attribution": (".", attribution),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_published_page_regenerates_without_a_changed_number(name: str, tmp_path: Path) -> None:
    folder, write = PAGES[name]
    write(tmp_path)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert any(file.endswith(".md") for file in made)
    for file in made:
        published = (RESULTS / folder / file).read_text(encoding="utf-8")
        again = (tmp_path / file).read_text(encoding="utf-8")
        if file.endswith(".json"):
            assert json.loads(again) == json.loads(published), file
        elif file.endswith(".md"):
            assert numbers(again) == numbers(published), file


def test_the_coverage_tables_are_those_of_their_json() -> None:
    from benchmarks.coverage.page import BEGIN, END, tables

    page = (RESULTS.parent / "statistics.md").read_text(encoding="utf-8")
    found = read("coverage.json")
    assert page.split(BEGIN)[1].split(END)[0] == tables(found)
    assert all(row["share"] >= 0.93 for row in found["rare"]), "the bar of rare paired changes"


def test_published_controls_have_nothing_mismatched() -> None:
    """What carries over all that it learned loses nothing by not carrying over. The best of 256 is no tilt of the
    reference by a function of the response, so that its transported policy is a near one, and not itself.
    """
    parts = read("shift.json")["parts"]["default"]
    divided = {shift: rows for shift, rows in parts.items() if rows}  # held-out topics have prompts of their own
    assert set(divided) == {"cipher", "compliance", "control"}
    for shift, rows in divided.items():
        for row in ("reference", "kl_overspender", "length_only"):
            assert abs(rows[row]["mismatched"]["value"]) < 1e-6, (shift, row)
        assert abs(rows["best_of_256"]["mismatched"]["value"]) < 2e-4
        assert all({"value", "ci"} == set(part) for row in rows.values() for part in row.values())
