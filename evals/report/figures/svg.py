"""A small drawing board for inline SVG: scales with round ticks, lines, text and markers, every word escaped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

INK, MUTED, GRID = "#1b1f24", "#57606a", "#e3e7eb"


@dataclass(frozen=True)
class Scale:
    """A linear map from data to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values inside the range."""
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


def tick_label(value: float) -> str:
    text = f"{value:.6g}"
    return text.replace("-", "\u2212") if float(text) else "0"


@dataclass
class Board:
    """SVG parts in drawing order."""

    width: float
    height: float
    label: str
    parts: list[str] = field(default_factory=list)

    def line(
        self, x1: float, y1: float, x2: float, y2: float, *, stroke: str = INK, width: float = 1, dash: str = ""
    ) -> None:
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}" '
            f'stroke-width="{width}"{dashes}/>'
        )

    def path(
        self,
        points: Sequence[tuple[float, float]],
        *,
        stroke: str,
        width: float = 1.5,
        dash: str = "",
        opacity: float = 1,
    ) -> None:
        if len(points) < 2:
            return
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(
            f'<polyline points="{steps}" fill="none" stroke="{stroke}" stroke-width="{width}" '
            f'stroke-linejoin="round" opacity="{opacity}"{dashes}/>'
        )

    def bar(self, x: float, y: float, width: float, height: float, *, fill: str, title: str = "") -> None:
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
        anchor: str = "start",
        size: float = 12,
        fill: str = INK,
        weight: int = 400,
        turn: bool = False,
        halo: bool = False,
    ) -> None:
        edge = ' paint-order="stroke" stroke="#ffffff" stroke-width="3"' if halo else ""
        rotated = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}" '
            f'font-weight="{weight}"{edge}{rotated}>{escape(words)}</text>'
        )

    def marker(
        self,
        x: float,
        y: float,
        shape: str,
        *,
        color: str,
        hollow: bool = False,
        size: float = 4.5,
        opacity: float = 1,
        title: str = "",
    ) -> None:
        paint = f'fill="#ffffff" stroke="{color}"' if hollow else f'fill="{color}" stroke="#ffffff"'
        look = f'{paint} stroke-width="{1.8 if hollow else 0.8}" opacity="{opacity}"'
        name = f"<title>{escape(title)}</title>" if title else ""
        if shape == "circle":
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" {look}>{name}</circle>')
        else:
            corners = " ".join(f"{x + dx * size:.1f},{y + dy * size:.1f}" for dx, dy in SHAPES[shape])
            self.parts.append(f'<polygon points="{corners}" {look}>{name}</polygon>')

    def done(self) -> str:
        """The finished element; its size is fixed, so text keeps the size it was set in."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(self.label)}" '
            f'viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" height="{self.height:g}">'
            f"{''.join(self.parts)}</svg>"
        )


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
