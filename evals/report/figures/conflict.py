"""The report's figure of the conflict during training: small multiples over steps, one panel per trained policy.

Reads `conflict.training` of the summary: row -> [{asked, names, pairs, advantage, trace: [{step, covariance (one per
name), rank_correlation (one per pair)}]}], None where undefined (align/engines/on_policy/conflict_log.py writes them).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evals.report import words
from evals.report.figures.fronts import COLORS, short
from evals.report.figures.svg import GRID, INK, MUTED, Board, Scale, padded, tick_label

MOST = 12  # panels; of more policies the first are drawn, and the caption says so
DASHES = ("", "6 3", "2 2", "8 3 2 3", "10 4")  # the lines are told apart in print, too
LEFT, GAP, PLOT, TITLES = 54.0, 16.0, 104.0, 34.0  # pixels: tick labels, between panels, height of a plot, of a title


def panels(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(row, what one of its policies logged) in the order of the summary."""
    training = (summary.get("conflict") or {}).get("training") or {}
    return [(str(row), point) for row, points in training.items() for point in points if point["trace"]]


def caption(summary: Mapping[str, Any]) -> str:
    """What the figure shows, in words; empty without panels."""
    found = panels(summary)
    if not found:
        return ""
    said = list(dict.fromkeys(str(point["advantage"]) for _, point in found))
    text = (
        "How each objective varies with the advantage among the responses to one prompt, step by step (covariance). "
        "An objective above zero is being trained up, an objective below zero is being trained down. "
        f"Advantage: {'; or '.join(said)}."
    )
    if any("without" in advantage for advantage in said):
        text += (
            " Without the penalty, lines show where the rewards alone pull; the penalty pulls back to the reference "
            "model, and at the optimum as strongly."
        )
    return text + left_out(len(found))


def left_out(count: int) -> str:
    """How many policies have no panel."""
    return f" The first {MOST} of {count} policies; the others are in summary.json." if count > MOST else ""


def training(summary: Mapping[str, Any], *, width: int, key: str = "covariance") -> str:
    """A line per objective (`key` covariance) or per pair of objectives (rank_correlation); empty without panels."""
    found = panels(summary)[:MOST]
    series = [list(_series(point, key)) for _, point in found]
    values = [v for lines in series for _, spots in lines for _, v in spots if v is not None]
    if not values:
        return ""
    names = list(dict.fromkeys(name for lines in series for name, _ in lines))
    if key == "covariance":
        known = words.objectives(summary)
        names.sort(key=lambda name: known.index(name) if name in known else len(known))
    columns = max(1, min(len(found), int((width - LEFT + GAP) // 196)))
    wide = (width - LEFT - GAP * (columns - 1) - 8) / columns
    legend, top = _legend(names, width)
    tall = TITLES + PLOT + 24
    lines_of_panels = (len(found) + columns - 1) // columns
    title = {"covariance": "Covariance with the advantage", "rank_correlation": "Rank correlation"}[key]
    board = Board(width, round(top + lines_of_panels * tall + 22), f"{title} during training")
    for left, baseline, name in legend:
        color, dash = _look(names, name)
        board.line(left, baseline - 4, left + 22, baseline - 4, width=2, stroke=color, dash=dash)
        board.text(left + 28, baseline, name)
    reach = (-1.0, 1.0) if key == "rank_correlation" else padded([*values, 0.0], share=0.08)
    for i, ((row, point), lines) in enumerate(zip(found, series, strict=True)):
        start, above = LEFT + (i % columns) * (wide + GAP), top + (i // columns) * tall + TITLES
        x = Scale(0, max(p["step"] for p in point["trace"]), start, start + wide)
        y = Scale(*reach, above + PLOT, above)
        _panel(board, x, y, row=row, asked=str(point["asked"]), labelled=i % columns == 0)
        for name, spots in lines:
            _line(board, x, y, spots, told=f"{row}, {point['asked']}: {name}", look=_look(names, name))
    board.text(width / 2, board.height - 4, "training step", anchor="middle", size=13)
    return board.done()


def _series(point: Mapping[str, Any], key: str) -> Iterator[tuple[str, list[tuple[float, float | None]]]]:
    """(name, [(step, value)]) of each line."""
    names = point["names"] if key == "covariance" else [" with ".join(map(str, pair)) for pair in point["pairs"]]
    for k, name in enumerate(names):
        yield str(name), [(entry["step"], entry[key][k]) for entry in point["trace"]]


def _look(names: Sequence[str], name: str) -> tuple[str, str]:
    """Colour and dashes of a line."""
    k = names.index(name)
    return COLORS[k % len(COLORS)], DASHES[k % len(DASHES)]


def _legend(names: Sequence[str], width: float) -> tuple[list[tuple[float, float, str]], float]:
    """(x, y, shortened name) of each entry, on as many lines as they need, and where the panels begin."""
    spots, x, y = [], 0.0, 16.0
    for name in names:
        room = 28 + 7.2 * len(name) + 18
        if x and x + room > width:
            x, y = 0.0, y + 18
        spots.append((x, y, name))
        x += room
    return spots, y + 10


def _panel(board: Board, x: Scale, y: Scale, *, row: str, asked: str, labelled: bool) -> None:
    room = x.end - x.start
    board.text(x.start, y.end - 20, short(row, room), size=13, weight=600)
    board.text(x.start, y.end - 6, short(f"asked for {asked}", room), size=11, fill=MUTED)
    for tick in y.ticks(4):
        board.line(x.start, y(tick), x.end, y(tick), stroke=GRID)
        if labelled:
            board.text(x.start - 6, y(tick) + 4, tick_label(tick), anchor="end", fill=MUTED, size=11)
    for tick in x.ticks(3):
        board.text(x(tick), y.start + 14, tick_label(tick), anchor="middle", fill=MUTED, size=11)
    board.line(x.start, y(0), x.end, y(0), stroke=INK, width=1.2)


def _line(
    board: Board, x: Scale, y: Scale, spots: Sequence[tuple[float, float | None]], *, told: str, look: tuple[str, str]
) -> None:
    """The line, broken where there is no value; its last value as a mark that says it."""
    part: list[tuple[float, float]] = []
    for step, value in [*spots, (0.0, None)]:
        if value is None:
            board.path(part, width=1.6, stroke=look[0], dash=look[1])
            part = []
        else:
            part.append((x(step), y(value)))
    step, last = next(((s, v) for s, v in reversed(spots) if v is not None), (0.0, None))
    if last is not None:
        told = f"{told} {words.signed(last)} at step {step:g}"
        board.marker(x(step), y(last), "circle", color=look[0], size=2.8, title=told)
