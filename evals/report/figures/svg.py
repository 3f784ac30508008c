"""What every figure is drawn with: scales, axes, strokes, marks and a legend, as SVG text with every word escaped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

INK, MUTED, GRID, GREY = "#1b1f24", "#57606a", "#e3e7eb", "#8c959f"
# Okabe and Ito's colours, distinguishable with any colour vision; the shapes distinguish them in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195")
FORMS = ("circle", "square", "triangle", "diamond", "down", "left", "right")
LETTER = 7.2  # pixels of a letter in the size of plain text, at most


@dataclass(frozen=True)
class Scale:
    """A map from data to pixels, linear or (`log`) in powers of ten, where `low` and `high` are above 0."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values inside the range; every power of ten of a logarithmic scale."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [10.0**k for k in range(first, last + 1)]
        raw = (self.high - self.low) / max(count, 1)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def padded(values: Sequence[float], *, share: float = 0.06) -> tuple[float, float]:
    """Range of the values with a margin; never empty."""
    low, high = min(values), max(values)
    margin = (high - low) * share or max(abs(high), 1.0) * share
    return low - margin, high + margin


def decades(values: Sequence[float]) -> tuple[float, float]:
    """The whole powers of ten around positive values; at least one decade."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def tick_label(value: float) -> str:
    """The value in six digits at most, with a minus sign in place of a hyphen."""
    text = f"{value:.6g}"
    return text.replace("-", "\u2212") if float(text) else "0"


def short(text: str, room: float) -> str:
    """The text, its end cut off where it needs more than `room` pixels."""
    most = max(int(room / LETTER), 4)
    return text if len(text) <= most else text[: most - 1] + "\u2026"


@dataclass(frozen=True)
class Stroke:
    """How a line looks; width in pixels."""

    color: str = INK
    width: float = 1
    dash: str = ""
    opacity: float = 1


@dataclass(frozen=True)
class Mark:
    """How a point looks: a shape of SHAPES or a circle, filled or hollow; `size` is about its radius in pixels."""

    color: str = INK
    shape: str = "circle"
    hollow: bool = False
    size: float = 4.5
    opacity: float = 1


_RULE = Stroke(GRID)


@dataclass
class Board:
    """SVG parts in drawing order; all coordinates are pixels from the upper left corner."""

    width: float
    height: float
    label: str
    parts: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, *, stroke: Stroke = _RULE) -> None:
        """From one point to another."""
        dashes = f' stroke-dasharray="{stroke.dash}"' if stroke.dash else ""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke.color}" '
            f'stroke-width="{stroke.width}"{dashes}/>'
        )

    def path(self, points: Sequence[tuple[float, float]], *, stroke: Stroke) -> None:
        """Through all points; nothing for fewer than two."""
        if len(points) < 2:
            return
        dashes = f' stroke-dasharray="{stroke.dash}"' if stroke.dash else ""
        steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(
            f'<polyline points="{steps}" fill="none" stroke="{stroke.color}" stroke-width="{stroke.width}" '
            f'stroke-linejoin="round" opacity="{stroke.opacity}"{dashes}/>'
        )

    def bar(self, x: float, y: float, width: float, height: float, *, fill: str, title: str = "") -> None:
        """A filled rectangle; `title` is shown on hovering."""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" fill="{fill}">'
            f"<title>{escape(title)}</title></rect>"
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        anchor: Literal["start", "middle", "end"] = "start",
        size: float = 12,
        fill: str = INK,
        style: Literal["plain", "bold", "turned", "halo"] = "plain",
    ) -> None:
        """Words at a baseline. Turned: upwards, for a vertical axis. Halo: readable over other marks."""
        edge = ' paint-order="stroke" stroke="#ffffff" stroke-width="3"' if style == "halo" else ""
        rotated = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if style == "turned" else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}" '
            f'font-weight="{600 if style == "bold" else 400}"{edge}{rotated}>{escape(words)}</text>'
        )

    def mark(self, x: float, y: float, mark: Mark, *, title: str = "") -> None:
        """A point; `title` is shown on hovering."""
        paint = f'fill="#ffffff" stroke="{mark.color}"' if mark.hollow else f'fill="{mark.color}" stroke="#ffffff"'
        look = f'{paint} stroke-width="{1.8 if mark.hollow else 0.8}" opacity="{mark.opacity}"'
        name = f"<title>{escape(title)}</title>" if title else ""
        if mark.shape == "circle":
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{mark.size}" {look}>{name}</circle>')
        else:
            corners = " ".join(f"{x + dx * mark.size:.1f},{y + dy * mark.size:.1f}" for dx, dy in SHAPES[mark.shape])
            self.parts.append(f'<polygon points="{corners}" {look}>{name}</polygon>')

    def done(self) -> str:
        """The finished element; its size is fixed, so text keeps the size it was set in."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(self.label)}" '
            f'viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" height="{self.height:g}">'
            f"{''.join(self.parts)}</svg>"
        )


@dataclass(frozen=True)
class Plot:
    """A rectangle with two scales on a board. `y` runs up, from the larger pixel to the smaller."""

    board: Board
    x: Scale
    y: Scale

    def axes(self, *, columns: int = 5, rows: int = 5, frame: bool = False) -> None:
        """Grid lines at about `columns` and `rows` round values, labelled below and at the left."""
        x_axis(self.board, self.x, top=self.y.end, bottom=self.y.start, count=columns)
        y_axis(self.board, self.y, left=self.x.start, right=self.x.end, count=rows)
        if frame:
            self.board.line(self.x.start, self.y.start, self.x.end, self.y.start, stroke=Stroke(MUTED))
            self.board.line(self.x.start, self.y.start, self.x.start, self.y.end, stroke=Stroke(MUTED))

    def names(self, across: str, up: str) -> None:
        """What the two axes measure, below and at the left."""
        middle = (self.x.start + self.x.end) / 2, (self.y.start + self.y.end) / 2
        self.board.text(middle[0], self.y.start + 34, across, anchor="middle", size=13)
        self.board.text(self.x.start - 44, middle[1], up, anchor="middle", size=13, style="turned")

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixels of a value."""
        return self.x(x), self.y(y)


def x_axis(
    board: Board,
    scale: Scale,
    *,
    top: float,
    bottom: float,
    count: int = 5,
    label: Callable[[float], str] = tick_label,
) -> None:
    """Upright grid lines from `top` to `bottom`, their values below."""
    for tick in scale.ticks(count):
        board.line(scale(tick), top, scale(tick), bottom)
        board.text(scale(tick), bottom + 15, label(tick), anchor="middle", fill=MUTED, size=11)


def y_axis(board: Board, scale: Scale, *, left: float, right: float, count: int = 5, labelled: bool = True) -> None:
    """Level grid lines from `left` to `right`, their values at the left."""
    for tick in scale.ticks(count):
        board.line(left, scale(tick), right, scale(tick))
        if labelled:
            board.text(left - 6, scale(tick) + 4, tick_label(tick), anchor="end", fill=MUTED, size=11)


def whisker(board: Board, scale: Scale, ends: tuple[float, float], *, y: float, color: str) -> None:
    """A level interval at the height `y`, cut at the ends of the scale."""
    low, high = (min(max(scale(end), scale.start), scale.end) for end in ends)
    board.line(low, y, high, y, stroke=Stroke(color, 1.8))


def legend(
    board: Board, entries: Sequence[tuple[Mark | Stroke, str]], *, left: float, top: float, down: bool = False
) -> float:
    """Sample and name of each entry, in lines of the board's width or one below another; where the last one ends."""
    x, y = left, top
    for sample, name in entries:
        wide = 22 if isinstance(sample, Stroke) else 10
        room = wide + 6 + LETTER * len(name) + 18
        if not down and x > left and x + room > board.width:
            x, y = left, y + 18
        if isinstance(sample, Stroke):
            board.line(x, y + 8, x + wide, y + 8, stroke=sample)
        else:
            board.mark(x + wide / 2, y + 8, sample)
        board.text(x + wide + 6, y + 12, name)
        x, y = (x, y + 20) if down else (x + room, y)
    return y if down else y + 18


def swatch(sample: Mark | Stroke) -> str:
    """A small picture of a mark, on its line, or of a line alone: for a legend in text."""
    board = Board(22, 14, "")
    if isinstance(sample, Stroke):
        board.line(0, 7, 22, 7, stroke=sample)
    else:
        board.line(0, 7, 22, 7, stroke=Stroke(sample.color, 1.5, "4 3" if sample.hollow else ""))
        size = 3.6 if sample.shape == "star" else 4.5
        board.mark(11, 7, Mark(sample.color, sample.shape, sample.hollow, size))
    return board.done()


def _star(points: int = 5) -> list[tuple[float, float]]:
    corners = []
    for i in range(2 * points):
        radius, angle = (1.5 if i % 2 == 0 else 0.62), math.pi * i / points - math.pi / 2
        corners.append((radius * math.cos(angle), radius * math.sin(angle)))
    return corners


SHAPES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
    "diamond": [(0, -1.3), (1.15, 0), (0, 1.3), (-1.15, 0)],
    "down": [(0, 1.2), (1.1, -0.8), (-1.1, -0.8)],
    "left": [(-1.2, 0), (0.8, -1.1), (0.8, 1.1)],
    "right": [(1.2, 0), (-0.8, -1.1), (-0.8, 1.1)],
    "star": _star(),
}
