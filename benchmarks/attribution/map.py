"""The map of the attribution page: distance against pull, one mark per planted case, bounds as lines."""

from __future__ import annotations

from benchmarks.pages import Entry
from evals.attribution.regions import REGIONS
from evals.report.attribution import COLORS
from evals.report.figures.dots import HOME
from evals.report.figures.svg import Board, Mark, Plot, Scale, legend, padded

WIDTH, HEIGHT = 760, 480
SHAPES = {"competing": "circle", "mismatched": "square", "both": "diamond", "capability": "triangle", "neither": "star"}


def draw(table: Entry) -> str:
    """The figure as SVG."""
    known = [r for r in table["cases"] if r["signals"]["pull"] and r["signals"]["distance"]]
    spots = [(r, r["signals"]["pull"]["value"], r["signals"]["distance"]["value"]) for r in known]
    bounds = table["thresholds"]
    board = Board(WIDTH, HEIGHT, "Distance from the fine-tuning data against pull in nats, one mark per planted case")
    x = Scale(*padded([p for _, p, _ in spots] + [bounds["pull"]]), start=60, end=WIDTH - 20)
    y = Scale(*padded([d for _, _, d in spots] + [bounds["distance"], 0.0]), start=HEIGHT - 110, end=20)
    plot = Plot(board, x, y)
    plot.axes(columns=7, rows=6)
    plot.names("pull, nats", "log distance")
    board.line(x(bounds["pull"]), y.start, x(bounds["pull"]), y.end, stroke=HOME)
    board.line(x.start, y(bounds["distance"]), x.end, y(bounds["distance"]), stroke=HOME)
    marks = {name: Mark(COLORS[name], SHAPES[name]) for name in REGIONS}
    fresh = set(table["seeds"]["fresh"])
    for r, pull, far in spots:
        title = f"{r['model']}, {r['shift']}: planted {r['truth']}, found {r['region']}"
        mark = Mark(COLORS[r["truth"]], SHAPES[r["truth"]], hollow=r["seed"] in fresh)
        board.mark(*plot.at(pull, far), mark, title=title)
    legend(board, [(mark, f"planted: {name}") for name, mark in marks.items()], left=64, top=HEIGHT - 48)
    return board.done()
