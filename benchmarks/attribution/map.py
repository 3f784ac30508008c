"""The map of the attribution page: recognition left against pull, one mark per planted case, bounds as lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.attribution.regions import CLASSES
from evals.report.attribution import COLORS
from evals.report.figures.svg import GRID, INK, MUTED, Board, Scale, padded, tick_label

WIDTH, HEIGHT = 760, 460
SHAPES = {"competing": "circle", "mismatched": "square", "both": "diamond", "capability": "triangle"}


def draw(table: Mapping[str, Any]) -> str:
    """The figure as SVG."""
    known = [r for r in table["cases"] if r["signals"]["pull"] and r["signals"]["recognition"]]
    spots = [(r, r["signals"]["pull"]["value"], r["signals"]["recognition"]["value"]) for r in known]
    bounds = table["thresholds"]
    board = Board(WIDTH, HEIGHT, "Pull in nats against the recognition that is left, one mark per planted case")
    x = Scale(*padded([p for _, p, _ in spots] + [bounds["pull"]]), start=60, end=WIDTH - 20)
    y = Scale(*padded([s for _, _, s in spots] + [bounds["recognition"], 1.0]), start=HEIGHT - 90, end=20)
    for tick in x.ticks(7):
        board.line(x(tick), y.start, x(tick), y.end, stroke=GRID)
        board.text(x(tick), y.start + 16, tick_label(tick), anchor="middle", fill=MUTED)
    for tick in y.ticks(6):
        board.line(x.start, y(tick), x.end, y(tick), stroke=GRID)
        board.text(x.start - 6, y(tick) + 4, tick_label(tick), anchor="end", fill=MUTED)
    board.line(x(bounds["pull"]), y.start, x(bounds["pull"]), y.end, stroke=INK, dash="4 3")
    board.line(x.start, y(bounds["recognition"]), x.end, y(bounds["recognition"]), stroke=INK, dash="4 3")
    board.text((x.start + x.end) / 2, y.start + 36, "pull, nats", anchor="middle", size=13)
    board.text(14, (y.start + y.end) / 2, "recognition left", anchor="middle", size=13, turn=True)
    fresh = set(table["seeds"]["fresh"])
    for r, pull, left in spots:
        title = f"{r['model']}, {r['shift']}: planted {r['truth']}, found {r['region']}"
        hollow = r["seed"] in fresh
        board.marker(x(pull), y(left), SHAPES[r["truth"]], color=COLORS[r["truth"]], hollow=hollow, title=title)
    for k, name in enumerate(CLASSES):
        board.marker(70 + 150 * k, HEIGHT - 20, SHAPES[name], color=COLORS[name])
        board.text(80 + 150 * k, HEIGHT - 16, f"planted: {name}", size=12)
    return board.done()
