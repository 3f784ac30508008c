"""The fixed points page: the numbers of fixed_points.json in tables and in the words of page.md.j2."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pages import filled, render
from evals.items import Json


def page(result: Json) -> str:
    """The Markdown page; a function of the JSON alone. Paragraphs of the template are filled to 130 columns."""
    numbers = Numbers(result)
    return filled(render(
        Path(__file__).with_name("page.md.j2"), result=result, row=numbers.row, extent=numbers.extent,
        above=numbers.above, residual=numbers.residual(), unsettled=numbers.unsettled, show=show, span=span, tail=tail,
        exp=math.exp,
    ))  # fmt: skip


def show(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def span(interval: Json | None, *, by: Callable[[float], float] = float) -> str:
    """Mean [low, high]; "0" where the mean vanishes to printing."""
    if interval is None:
        return ""
    mean, low, high = (by(interval[key]) for key in ("mean", "low", "high"))
    if max(abs(mean), abs(low), abs(high)) < 5e-4:
        return "0"
    return f"{show(mean)} [{show(low)}, {show(high)}]"


def tail(row: Json) -> str:
    return f"{show(row['median'])}, {show(row['worst'])}, {100 * row['worse_than_reference']:.0f} %"


@dataclass(frozen=True)
class Numbers:
    """What the template asks the table for."""

    result: Json

    def row(self, name: str, *, part: str = "sequences") -> dict[str, Json]:
        """World -> numbers of a row, where the world has it."""
        return {world: f["rows"][name] for world, f in self.result[part].items() if name in f["rows"]}

    def telling(self, row: str, key: str, *, part: str = "sequences") -> dict[str, Json]:
        """World -> interval, without worlds of one token or one prompt where row or key is exact by construction."""
        intervals = {}
        for world, numbers in self.row(row, part=part).items():
            shape = self.result["sequences"].get(world, {}).get("world", {})
            one_token = shape.get("length") == 1 and row in ("token_kl", "token_mod")
            of_prompts = key in ("log_ratio_range", "share_best_weights") or (row, key) == ("group", "share_best_beta")
            if key in numbers and not one_token and not (shape.get("prompts") == 1 and of_prompts):
                intervals[world] = numbers[key]
        return intervals

    def extent(
        self, row: str, key: str = "share", *, part: str = "sequences", by: Callable[[float], float] = float
    ) -> str:
        """Smallest and largest mean over worlds: "0.03 [0.02, 0.04] (sharp pairs) to 0.07 [0.06, 0.08] (triples)"."""
        intervals = self.telling(row, key, part=part)
        low, high = (pick(intervals, key=lambda w: intervals[w]["mean"]) for pick in (min, max))
        first, last = (f"{span(intervals[w], by=by)} ({w})" for w in (low, high))
        return first if low == high else f"{first} to {last}"

    def above(self, row: str, key: str) -> tuple[int, int]:
        """In how many worlds the whole interval is above 0.01, and of how many."""
        intervals = self.telling(row, key).values()
        return sum(one["low"] > 0.01 for one in intervals), len(intervals)

    def residual(self) -> float:
        """The largest anywhere, but for rules that are judged by whether their share still moves."""
        rows = (row for world in self.result["sequences"].values() for row in world["rows"].values())
        return max(row["residual"] for row in rows if "unsettled" not in row)

    def unsettled(self, name: str) -> str:
        """Where a rule's share still moved: "3 of 180 (triples)"."""
        counts = {world: numbers["unsettled"] for world, numbers in self.row(name).items()}
        still = [f"{one['count']} of {one['of']} ({world})" for world, one in counts.items() if one["count"]]
        return ", ".join(still) or "none"
