"""The figure of several policies: two failure rates against each other, with intervals and the undominated ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from evals.items import Fields
from evals.report.figures.svg import COLORS, FORMS, MUTED, Board, Mark, Plot, Scale, Stroke, legend
from evals.report.plain_text import shown
from evals.report.suite_words import pair

NAMES = {"asr": "harmful, answered", "over_refusal": "benign, refused"}
# where a number may stand beside its mark, the likeliest first: (right, down) in pixels
PLACES = [(8, -6), (-8, -6), (8, 14), (-8, 14), (0, -11), (0, 20), (14, 4), (-14, 4), (16, -16), (-16, -16), (16, 24)]
LETTER, LINE = 6.5, 11.0  # pixels of a digit of a label

Box = tuple[float, float, float, float]


def named(label: str) -> str:
    """A metric as an axis names it: harmful, answered (%), under any shift."""
    name, at, shift = label.partition("@")
    return f"{NAMES[name]} (%)" + (f", under {shift}{' prompt' if shift == 'any' else ''}" if at else "")


def families(summary: Fields) -> list[str]:
    """The families of the policies, in order; the empty one is that of single policies."""
    return list(dict.fromkeys(_family(summary, name) for name in summary["policies"]))


def style(summary: Fields, name: str) -> Mark:
    """The mark of a policy: its family's colour and shape, filled where no other policy dominates it."""
    entry = summary["policies"][name]
    place = families(summary).index(_family(summary, name)) % len(COLORS)
    return Mark(COLORS[place], FORMS[place], hollow=entry.get("undominated") is not True, size=5)


def sample(summary: Fields, name: str) -> str:
    """A policy's mark alone, for a table."""
    board = Board(14, 14, "")
    board.mark(7, 7, style(summary, name))
    return board.done()


def scatter(summary: Fields, *, width: int) -> str:
    """Each policy as a numbered point with its two intervals; a bar stands for a rate that is known by its bounds."""
    across, up = summary["metrics"]
    rates = {name: [entry["metrics"][label] for label in (across, up)] for name, entry in summary["policies"].items()}
    board = Board(width, 0, f"{named(up)} against {named(across)}")
    one_of = {_family(summary, name): name for name in rates}
    listed = [(style(summary, one_of[family]), shown(family, 40)) for family in families(summary) if family]
    top = legend(board, listed, left=56, top=0) + 8 if listed else 8.0
    bottom = top + min(0.62 * width, 440) + (60 if width < 480 else 0)
    (left, right), (low, high) = (_reach([r[axis] for r in rates.values()]) for axis in (0, 1))
    plot = Plot(board, Scale(left, right, 56, width - 14), Scale(low, high, bottom, top))
    plot.axes(columns=4 if width < 480 else 6, rows=5, frame=True)
    plot.names(named(across), named(up))
    board.height = bottom + 44
    spots = {name: plot.at(*(100 * _middle(rate) for rate in pair_of)) for name, pair_of in rates.items()}
    _frontier(plot, [spots[n] for n, entry in summary["policies"].items() if entry.get("undominated")])
    for name, (x_rate, y_rate) in rates.items():
        _whiskers(plot, spots[name], x_rate, y_rate, color=style(summary, name).color)
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots.values()]
    for number, (name, (x, y)) in enumerate(spots.items(), start=1):
        if not any("bounds" in rate for rate in rates[name]):
            words = "; ".join(f"{label} {pair(rate)}" for label, rate in zip((across, up), rates[name], strict=True))
            board.mark(x, y, style(summary, name), title=f"{shown(name, 60)}: {words}")
        _number(board, str(number), x, y, taken, edge=width)
    return board.done()


def _family(summary: Fields, name: str) -> str:
    return str(summary["policies"][name].get("family") or "")


def _middle(rate: Fields) -> float:
    return float(sum(rate["bounds"]) / 2 if "bounds" in rate else rate["value"])


def _reach(rates: Sequence[Fields]) -> tuple[float, float]:
    """The percents that an axis shows: all intervals and a margin, within 0 to 100, where it shows a little below."""
    ends = [100 * end for rate in rates for end in (_middle(rate), *(rate.get("ci") or rate.get("bounds") or ()))]
    margin = max(0.05 * (max(ends) - min(ends)), 1.0)
    return max(min(ends) - margin, -1.5), min(max(ends) + margin, 101.5)


def _whiskers(plot: Plot, spot: tuple[float, float], x_rate: Fields, y_rate: Fields, *, color: str) -> None:
    x, y = spot
    thin, thick = Stroke(color, 1.2, opacity=0.45), Stroke(color, 5)
    for rate, across in ((x_rate, True), (y_rate, False)):
        for ends, stroke in ((rate.get("ci"), thin), (rate.get("bounds"), thick)):
            if ends:
                a, b = (plot.x(100 * end) if across else plot.y(100 * end) for end in ends)
                plot.board.path([(a, y), (b, y)] if across else [(x, a), (x, b)], stroke=stroke)


def _frontier(plot: Plot, spots: Sequence[tuple[float, float]]) -> None:
    """Steps through the undominated points: what lies above and right of them is dominated."""
    steps: list[tuple[float, float]] = []
    for (x, y), (then, _) in pairwise([*sorted(spots, key=lambda s: (s[0], -s[1])), (plot.x.end, 0.0)]):
        steps += [(x, y), (then, y)]
    plot.board.path(steps, stroke=Stroke(MUTED, 1, "3 4"))


def _number(board: Board, text: str, x: float, y: float, taken: list[Box], *, edge: float) -> None:
    """A policy's number beside its mark, where it covers no mark and no other number if there is such a place."""
    half = LETTER * len(text) / 2
    best: tuple[float, float, float, Box] | None = None
    for right, down in PLACES:
        centre = x + right + (half if right > 0 else -half if right < 0 else 0)
        box = (centre - half, y + down - LINE, centre + half, y + down)
        cover = sum(_overlap(box, other) for other in taken) + (1e3 if box[2] > edge or box[0] < 0 else 0)
        if best is None or cover < best[0]:
            best = (cover, centre, y + down, box)
    assert best is not None
    board.text(best[1], best[2] - 1, text, anchor="middle", size=11, style="halo")
    taken.append(best[3])


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
