"""A figure of values by row: panels over one list of rows, each value a dot with its interval, or bars from zero."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from evals.report.figures.svg import INK, MUTED, Board, Mark, Scale, Stroke, legend, short, tick_label, whisker, x_axis

HEAD, TOP, FOOT, GAP = 24.0, 30.0, 24.0, 22.0  # pixels: a heading, titles, ticks, between panels
ZERO, HOME = Stroke(INK), Stroke(INK, dash="4 3")  # the line of no difference; the line of a value to compare with

Groups = Sequence[tuple[str, Sequence[str]]]  # (heading, rows), in order


@dataclass(frozen=True)
class Dot:
    """One value, its interval if there is one, and how it looks; `title` is shown on hovering, `note` at the right.
    Where only `bounds` of the value are known, a bar between them stands for it.
    """

    value: float | None
    ends: tuple[float, float] | None
    mark: Mark
    title: str
    note: str = ""
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Bar:
    """A bar from zero; the bars of a row lie one below another."""

    value: float
    color: str
    title: str


@dataclass(frozen=True)
class Panel:
    """A column of the figure: its range, lines of reference, what each row shows; percent: ticks are 100 times."""

    title: str
    reach: tuple[float, float]
    rows: Mapping[str, Dot | Sequence[Bar]]
    lines: Sequence[tuple[float, Stroke]] = ()
    percent: bool = False
    log: bool = False


@dataclass(frozen=True)
class Layout:
    """Pixels and words around the panels. A panel narrower than `least` goes below, with the rows' names again."""

    width: float
    label: str
    labels: float | None = None  # room for the rows' names
    least: float = 0.0
    line: float = 18.0
    right: float = 10.0
    muted: Collection[str] = ()
    legend: Sequence[tuple[Mark | Stroke, str]] = field(default=())
    foot: str = ""


def figure(groups: Groups, *, panels: Sequence[Panel], layout: Layout) -> str:
    """(heading, rows) in order against the panels; empty without a value."""
    if not any(panel.rows for panel in panels):
        return ""
    left = layout.labels if layout.labels is not None else 190.0 if layout.width > 480 else 116.0
    room = layout.width - left - layout.right
    columns = max(1, min(len(panels), int((room + GAP) // (layout.least + GAP)))) if layout.least else len(panels)
    wide = (room - GAP * (columns - 1)) / columns
    board = Board(layout.width, 0, layout.label)
    top = legend(board, layout.legend, left=left, top=0) + 6 if layout.legend else 0.0
    for start in range(0, len(panels), columns):
        shown = panels[start : start + columns]
        spots = list(_spots(groups, top + TOP, layout.line))
        bottom = spots[-1][1] + layout.line if spots else top + TOP
        scales = []
        for k, panel in enumerate(shown):
            edge = left + k * (wide + GAP)
            scales.append(Scale(*panel.reach, edge, edge + wide, panel.log))
            _ground(board, panel, scales[k], top=top + TOP, bottom=bottom)
        _names(board, groups, top=top, left=left, layout=layout)
        for row, y in spots:
            if not any(row in panel.rows for panel in panels):
                board.text(left + 4, y + layout.line / 2 + 4, "no value", fill=MUTED, size=11)
            for panel, scale in zip(shown, scales, strict=True):
                if row in panel.rows:
                    _value(board, panel.rows[row], scale, y, layout.line)
        top = bottom + FOOT + (10 if start + columns < len(panels) else 0)
    if layout.foot:
        board.text(left, top + 14, layout.foot, fill=MUTED)
    board.height = round(top + (20 if layout.foot else 0))
    return board.done()


def _spots(groups: Groups, top: float, line: float) -> Iterator[tuple[str, float]]:
    """(row, the upper edge of its line)."""
    y = top
    for heading, rows in groups:
        y += HEAD if heading else 4
        for row in rows:
            yield row, y
            y += line


def _names(board: Board, groups: Groups, *, top: float, left: float, layout: Layout) -> None:
    y = top + TOP
    for heading, rows in groups:
        y += HEAD if heading else 4
        if heading:
            board.text(0, y - 4, short(heading, left - 6), style="bold")
        for i, row in enumerate(rows):
            fill = MUTED if row in layout.muted else INK
            board.text(left - 8, y + (i + 0.5) * layout.line + 4, short(row, left - 10), anchor="end", fill=fill)
        y += layout.line * len(rows)


def _ground(board: Board, panel: Panel, scale: Scale, *, top: float, bottom: float) -> None:
    room = scale.end - scale.start
    board.text(scale.start, top - 14, short(panel.title, room), size=12 if room < 120 else 13, style="bold")
    count = 2 if room < 120 else 4 if room < 220 else 5
    x_axis(board, scale, top=top, bottom=bottom, count=count, label=_percent if panel.percent else tick_label)
    for value, stroke in panel.lines:
        board.line(scale(value), top, scale(value), bottom, stroke=stroke)


def _percent(tick: float) -> str:
    return tick_label(round(100 * tick, 6))


def _value(board: Board, value: Dot | Sequence[Bar], scale: Scale, y: float, line: float) -> None:
    """What a row shows, from the upper edge of its line."""
    if isinstance(value, Dot):
        if value.ends is not None:
            whisker(board, scale, value.ends, y=y + line / 2, color=value.mark.color)
        if value.value is not None:
            board.mark(scale(value.value), y + line / 2, value.mark, title=value.title)
        if value.bounds is not None:
            left, right = map(scale, value.bounds)
            board.bar(left, y + line / 2 - 3, max(right - left, 1), 6, fill=value.mark.color, title=value.title)
        if value.note:
            board.text(scale.end + 12, y + line / 2 + 4, value.note, size=11, fill=MUTED)
        return
    thick = (line - 8) / len(value)
    for i, bar in enumerate(value):
        left, right = sorted((scale(0), scale(bar.value)))
        board.bar(left, y + 4 + thick * i, right - left, thick - 1, fill=bar.color, title=bar.title)
