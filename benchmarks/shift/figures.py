"""The shift page's figures: points moved by each shift, rises of regret with intervals, held-out families by arm."""

from __future__ import annotations

from benchmarks.pages import Entry
from evals.report.figures.dots import ZERO, Dot, Layout, Panel, figure
from evals.report.figures.svg import COLORS, GREY, INK, Board, Mark, Plot, Scale, Stroke, legend, padded

PANEL, GAP, TOP, LEFT, COLUMNS = 300, 60, 64, 60, 2


def front(table: Entry) -> str:
    """One panel per shift: every method's point of each preference, hollow on plain prompts, solid under the shift."""
    shifts, fronts = list(table["shifts"]), table["fronts"]
    colors = {row: COLORS[i % len(COLORS)] for i, row in enumerate(table["methods"])} | {"reference": INK}
    values = [p["values"] for row in colors for side in fronts[row].values() for p in side]
    x_range, y_range = (padded([v[k] for v in values]) for k in (0, 1))
    across, down = PANEL + GAP, PANEL + GAP + 10
    board = Board(LEFT + COLUMNS * across + 130, TOP + -(-len(shifts) // COLUMNS) * down, "Fronts under shift")
    for number, shift in enumerate(shifts):
        left, top = LEFT + number % COLUMNS * across, TOP + number // COLUMNS * down
        plot = Plot(board, Scale(*x_range, left, left + PANEL), Scale(*y_range, top + PANEL, top))
        plot.axes()
        plot.names("helpful", "harmless")
        board.text(left, top - 8, shift, size=13, style="bold")
        for row, color in colors.items():
            for before, after in zip(fronts[row]["none"], fronts[row][shift], strict=True):
                start, end = plot.at(*before["values"][:2]), plot.at(*after["values"][:2])
                board.line(*start, *end, stroke=Stroke(color))
                title = f"{row} at {', '.join(f'{w:g}' for w in after['preference'])}"
                board.mark(*start, Mark(color, hollow=True, size=3.2))
                board.mark(*end, Mark(color, size=3.8), title=title)
    legend(board, [(Mark(c), row) for row, c in colors.items()], left=LEFT + COLUMNS * across - 24, top=TOP, down=True)
    board.text(LEFT, 22, "Hollow: plain prompts. Solid: under the shift, joined by preference.", size=13)
    return board.done()


def split(table: Entry) -> str:
    """Rise of the regret of every method under every shift as dots with intervals; what the optimum loses as a line."""
    rows, shifts = table["methods"], table["shifts"]
    optimum = {s: entry["rows"][rows[0]]["optimum"]["value"] for s, entry in shifts.items()}
    dots = {
        s: {
            row: _dot(entry["rows"][row]["regret_rise"], color=COLORS[i % len(COLORS)], title=f"{row}, {s}")
            for i, row in enumerate(rows)
        }
        for s, entry in shifts.items()
    }
    reach = padded([0.0, *optimum.values(), *(v for by in dots.values() for dot in by.values() for v in _span(dot))])
    dashed = Stroke("#b35900", 1.5, "4 3")
    panels = [Panel(s, reach, by, [(0.0, ZERO), (optimum[s], dashed)]) for s, by in dots.items()]
    foot = "Dots: rise of the regret with the wider of two intervals. Dashed: what the optimum loses. In units of J."
    width = 150 + 250 * len(shifts)
    layout = Layout(width, "Rise of the regret by method and shift", labels=140, line=22, foot=foot)
    return figure([("", rows)], panels=panels, layout=layout)


def mitigation(table: Entry) -> str:
    """Rise of regret and regret on held-out families, and J lost on plain prompts, one line per kind of training."""
    groups = {n: g for n, g in table["groups"].items() if g["held_out"] is not None and n != "graft_embeddings"}
    values = {
        "rise of regret, held-out families": {n: g["held_out"]["regret_rise"] for n, g in groups.items()},
        "regret, held-out families": {n: g["held_out"]["regret"] for n, g in groups.items()},
        "change of J on plain prompts": {n: g["cost"]["J"] for n, g in groups.items()},
    }
    panels = []
    for title, entries in values.items():
        dots = {n: _dot(e, color=GREY if n == "plain" else COLORS[0], title=n) for n, e in entries.items()}
        reach = padded([0.0, *(v for dot in dots.values() for v in _span(dot))])
        panels.append(Panel(title, reach, dots, [(0.0, ZERO)]))
    foot = "The wider of the intervals over seeds and over topics."
    layout = Layout(1115, "Mitigation on held-out families", labels=250, line=22, foot=foot)
    return figure([("", list(groups))], panels=panels, layout=layout)


def _dot(entry: Entry, *, color: str, title: str) -> Dot:
    """The value with the wider of its two intervals, if it has one."""
    pairs = [tuple(pair) for pair in (entry["ci_seeds"], entry["ci_items"]) if pair is not None]
    ends = max(pairs, key=lambda pair: pair[1] - pair[0], default=None)
    return Dot(entry["value"], ends, Mark(color), title)


def _span(dot: Dot) -> tuple[float, ...]:
    return (dot.value, *(dot.ends or ()))
