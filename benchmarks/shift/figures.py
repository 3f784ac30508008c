"""The shift page's figures: points moved by each shift, mismatched parts with intervals, held-out families by arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.report.figures.fronts import COLORS
from evals.report.figures.svg import GRID, INK, MUTED, Board, Scale, padded, tick_label

Entry = Mapping[str, Any]
PANEL, GAP, TOP, LEFT = 300, 60, 64, 60
GREY = "#8c959f"


def front(found: Entry) -> str:
    """One panel per shift: every method's point of each preference, hollow on plain prompts, solid under the shift."""
    shifts = list(found["shifts"])
    shown = [*found["methods"], "reference"]
    values = [p["values"] for row in shown for side in found["fronts"][row].values() for p in side]
    x_range, y_range = (padded([v[k] for v in values]) for k in (0, 1))
    columns = 2
    lines = -(-len(shifts) // columns)
    board = Board(LEFT + columns * (PANEL + GAP) + 130, TOP + lines * (PANEL + GAP + 10), "Fronts under shift")
    for number, shift in enumerate(shifts):
        left, top = LEFT + number % columns * (PANEL + GAP), TOP + number // columns * (PANEL + GAP + 10)
        x, y = Scale(*x_range, left, left + PANEL), Scale(*y_range, top + PANEL, top)
        _frame(board, x, y, title=shift, names=("helpful", "harmless"))
        for place, row in enumerate(shown):
            color = INK if row == "reference" else COLORS[place % len(COLORS)]
            for before, after in zip(found["fronts"][row]["none"], found["fronts"][row][shift], strict=True):
                (x1, y1), (x2, y2) = ((x(p["values"][0]), y(p["values"][1])) for p in (before, after))
                board.line(x1, y1, x2, y2, stroke=color, width=1)
                label = f"{row} at {', '.join(f'{w:g}' for w in after['preference'])}"
                board.marker(x1, y1, "circle", color=color, hollow=True, size=3.2)
                board.marker(x2, y2, "circle", color=color, size=3.8, title=label)
    _legend(board, shown, x=LEFT + columns * (PANEL + GAP) - 20)
    board.text(LEFT, 22, "Hollow: plain prompts. Solid: under the shift, joined by preference.", size=13)
    return board.done()


def _frame(board: Board, x: Scale, y: Scale, *, title: str, names: Sequence[str]) -> None:
    for tick in x.ticks(5):
        board.line(x(tick), y.start, x(tick), y.end, stroke=GRID)
        board.text(x(tick), y.start + 15, tick_label(tick), anchor="middle", size=11, fill=MUTED)
    for tick in y.ticks(5):
        board.line(x.start, y(tick), x.end, y(tick), stroke=GRID)
        board.text(x.start - 5, y(tick) + 4, tick_label(tick), anchor="end", size=11, fill=MUTED)
    board.text(x.start, y.end - 8, title, size=13, weight=600)
    board.text((x.start + x.end) / 2, y.start + 32, names[0], anchor="middle", size=12)
    board.text(x.start - 38, (y.start + y.end) / 2, names[1], anchor="middle", size=12, turn=True)


def _legend(board: Board, rows: Sequence[str], *, x: float) -> None:
    for place, row in enumerate(rows):
        color = INK if row == "reference" else COLORS[place % len(COLORS)]
        board.marker(x, TOP + 10 + 20 * place, "circle", color=color)
        board.text(x + 10, TOP + 14 + 20 * place, row, size=12)


def split(front: Entry) -> str:
    """Mismatched part of every method under every shift as dots with intervals; the competing part as a line."""
    rows, shifts = front["methods"], list(front["shifts"])
    parts = {(row, s): front["shifts"][s]["rows"][row]["mismatched"] for row in rows for s in shifts}
    competing = {s: front["shifts"][s]["rows"][rows[0]]["competing"]["value"] for s in shifts}
    ends = [v for part in parts.values() for v in (*_wider(part), part["value"])]
    scale = padded([0.0, *ends, *competing.values()])
    width, height = 230, 40 + 22 * len(rows)
    board = Board(150 + len(shifts) * (width + 20), height + 60, "Mismatched part by method and shift")
    for number, shift in enumerate(shifts):
        left = 140 + number * (width + 20)
        x = Scale(*scale, left, left + width)
        board.text(left, 16, shift, size=13, weight=600)
        for tick in x.ticks(4):
            board.line(x(tick), 26, x(tick), height, stroke=GRID)
            board.text(x(tick), height + 15, tick_label(tick), anchor="middle", size=11, fill=MUTED)
        board.line(x(0), 26, x(0), height, stroke=MUTED)
        board.line(x(competing[shift]), 26, x(competing[shift]), height, stroke="#b35900", width=1.5, dash="4 3")
        for place, row in enumerate(rows):
            y, part = 42 + 22 * place, parts[row, shift]
            low, high = _wider(part)
            board.line(x(low), y, x(high), y, stroke=COLORS[place % len(COLORS)], width=2)
            board.marker(x(part["value"]), y, "circle", color=COLORS[place % len(COLORS)], title=f"{row}, {shift}")
            if number == 0:
                board.text(130, y + 4, row, anchor="end", size=12)
    note = "Dots: mismatched part with the wider of its two intervals. Dashed: the competing part. In units of J."
    board.text(140, height + 40, note, size=12, fill=MUTED)
    return board.done()


def _wider(entry: Entry) -> tuple[float, float]:
    """The wider of an entry's two intervals; the value itself where it has none."""
    pairs = [pair for pair in (entry["ci_seeds"], entry["ci_items"]) if pair is not None]
    if not pairs:
        return entry["value"], entry["value"]
    low, high = max(pairs, key=lambda pair: pair[1] - pair[0])
    return low, high


def mitigation(found: Entry) -> str:
    """Mismatched part and regret on held-out families, and J lost on plain prompts, one line per kind of training."""
    every = found["groups"].items()
    groups = {name: g for name, g in every if g["held_out"] is not None and name != "graft_embeddings"}
    panels = (
        ("mismatched part, held-out families", {n: g["held_out"]["mismatched"] for n, g in groups.items()}),
        ("regret, held-out families", {n: g["held_out"]["regret"] for n, g in groups.items()}),
        ("change of J on plain prompts", {n: g["cost"]["J"] for n, g in groups.items()}),
    )
    width, height = 250, 40 + 22 * len(groups)
    board = Board(260 + 3 * (width + 35), height + 50, "Mitigation on held-out families")
    for number, (title, entries) in enumerate(panels):
        left = 250 + number * (width + 35)
        x = Scale(*padded([0.0, *(v for e in entries.values() for v in _wider(e))]), left, left + width)
        board.text(left, 16, title, size=13, weight=600)
        for tick in x.ticks(4):
            board.line(x(tick), 26, x(tick), height, stroke=GRID)
            board.text(x(tick), height + 15, tick_label(tick), anchor="middle", size=11, fill=MUTED)
        board.line(x(0), 26, x(0), height, stroke=MUTED)
        for place, (name, entry) in enumerate(entries.items()):
            y, color = 42 + 22 * place, GREY if name == "plain" else COLORS[0]
            low, high = _wider(entry)
            board.line(x(low), y, x(high), y, stroke=color, width=2)
            board.marker(x(entry["value"]), y, "circle", color=color, title=name)
            if number == 0:
                board.text(240, y + 4, name, anchor="end", size=12)
    board.text(250, height + 38, "The wider of the intervals over seeds and over topics.", size=12, fill=MUTED)
    return board.done()
