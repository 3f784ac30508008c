"""A figure of shares or differences by row: panels side by side, rows under headings, each dot with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evals.report.figures.fronts import short
from evals.report.figures.svg import GRID, INK, MUTED, Board, Scale, tick_label

LINE, HEAD, TOP, FOOT, GAP = 18.0, 24.0, 30.0, 24.0, 22.0  # pixels: a row, a heading, titles, ticks, between panels


@dataclass(frozen=True)
class Dot:
    """One value in [low, high]; filled where `sure`; `told` is read on hovering."""

    value: float
    low: float | None
    high: float | None
    sure: bool
    color: str
    told: str


@dataclass(frozen=True)
class Panel:
    """A column of the figure: its range, a reference line (dashed, if any), and a dot by row name."""

    title: str
    reach: tuple[float, float]
    line: float | None = None
    dots: Mapping[str, Dot] = field(default_factory=dict)


def figure(groups: Sequence[tuple[str, Sequence[str]]], *, panels: Sequence[Panel], width: int, label: str) -> str:
    """(heading, rows) in order against the panels; empty without a dot."""
    if not any(panel.dots for panel in panels):
        return ""
    labels = 190.0 if width > 480 else 116.0
    wide = (width - labels - GAP * (len(panels) - 1) - 10) / len(panels)
    places, bottom = _places(groups)
    board = Board(width, round(bottom + FOOT), label)
    scales = []
    for k, panel in enumerate(panels):
        left = labels + k * (wide + GAP)
        scales.append(Scale(*panel.reach, left, left + wide))
        _ground(board, panel, scales[k], top=TOP, bottom=bottom)
    for heading, y, rows in places:
        if heading:
            board.text(0, y - 4, short(heading, labels - 6), weight=600, size=12)
        for i, row in enumerate(rows):
            middle = y + (i + 0.5) * LINE
            board.text(labels - 8, middle + 4, short(row, labels - 12), anchor="end", size=12)
            if not any(row in panel.dots for panel in panels):
                board.text(labels + 4, middle + 4, "no value", fill=MUTED, size=11)
            for panel, scale in zip(panels, scales, strict=True):
                if row in panel.dots:
                    _dot(board, panel.dots[row], scale, middle)
    return board.done()


def _places(groups: Sequence[tuple[str, Sequence[str]]]) -> tuple[list[tuple[str, float, Sequence[str]]], float]:
    """(heading, top of its rows, rows), and where the last row ends."""
    found, y = [], TOP
    for heading, rows in groups:
        y += HEAD if heading else 4
        found.append((heading, y, rows))
        y += LINE * len(rows)
    return found, y


def _ground(board: Board, panel: Panel, scale: Scale, *, top: float, bottom: float) -> None:
    room = scale.end - scale.start
    board.text(scale.start, top - 14, short(panel.title, room), size=12 if room < 120 else 13, weight=600)
    for tick in scale.ticks(2 if room < 120 else 5):
        board.line(scale(tick), top, scale(tick), bottom, stroke=GRID)
        said = tick_label(round(100 * tick, 6))
        board.text(scale(tick), bottom + 15, said, anchor="middle", fill=MUTED, size=11)
    if panel.line is not None:
        board.line(scale(panel.line), top, scale(panel.line), bottom, stroke=INK, dash="4 3")


def _dot(board: Board, dot: Dot, scale: Scale, y: float) -> None:
    if dot.low is not None and dot.high is not None:
        board.line(scale(dot.low), y, scale(dot.high), y, stroke=dot.color, width=1.8)
    board.marker(scale(dot.value), y, "circle", color=dot.color, hollow=not dot.sure, size=4, title=dot.told)
