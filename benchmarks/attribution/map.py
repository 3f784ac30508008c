"""The map of the attribution page: recognition left against pull, one mark per planted case, bounds as lines."""

from __future__ import annotations

from benchmarks.pages import Entry
from evals.attribution.regions import REGIONS
from evals.report.attribution import COLORS
from evals.report.figures.dots import HOME
from evals.report.figures.svg import Board, Mark, Plot, Scale, legend, padded

WIDTH, HEIGHT = 760, 460
SHAPES = {"competing": "circle", "mismatched": "square", "both": "diamond", "capability": "triangle", "neither": "star"}


def draw(table: Entry) -> str:
    """The figure as SVG."""
    known = [r for r in table["cases"] if r["signals"]["pull"] and r["signals"]["recognition"]]
    spots = [(r, r["signals"]["pull"]["value"], r["signals"]["recognition"]["value"]) for r in known]
    bounds = table["thresholds"]
    board = Board(WIDTH, HEIGHT, "Pull in nats against the recognition that is left, one mark per planted case")
    x = Scale(*padded([p for _, p, _ in spots] + [bounds["pull"]]), start=60, end=WIDTH - 20)
    y = Scale(*padded([s for _, _, s in spots] + [bounds["recognition"], 1.0]), start=HEIGHT - 90, end=20)
    plot = Plot(board, x, y)
    plot.axes(columns=7, rows=6)
    plot.names("pull, nats", "recognition left")
    board.line(x(bounds["pull"]), y.start, x(bounds["pull"]), y.end, stroke=HOME)
    board.line(x.start, y(bounds["recognition"]), x.end, y(bounds["recognition"]), stroke=HOME)
    marks = {name: Mark(COLORS[name], SHAPES[name]) for name in REGIONS}
    fresh = set(table["seeds"]["fresh"])
    for r, pull, left in spots:
        title = f"{r['model']}, {r['shift']}: planted {r['truth']}, found {r['region']}"
        mark = Mark(COLORS[r["truth"]], SHAPES[r["truth"]], hollow=r["seed"] in fresh)
        board.mark(*plot.at(pull, left), mark, title=title)
    legend(board, [(mark, f"planted: {name}") for name, mark in marks.items()], left=64, top=HEIGHT - 28)
    return board.done()
