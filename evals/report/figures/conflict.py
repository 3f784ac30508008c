"""The report's figure of the conflict during training: small multiples over steps, one panel per trained policy.

Reads `conflict.training` of the summary: row -> [{asked, names, pairs, advantage, trace: [{step, covariance (one per
name), rank_correlation (one per pair)}]}], None where undefined (align/engines/on_policy/conflict_log.py writes them).
"""

from collections.abc import Iterator, Sequence

from evals.items import Fields
from evals.report import words
from evals.report.figures.svg import (
    COLORS,
    INK,
    MUTED,
    Board,
    Mark,
    Plot,
    Scale,
    Stroke,
    legend,
    padded,
    short,
    x_axis,
    y_axis,
)  # fmt: skip

MOST = 12  # panels; of more policies the first are drawn, and the caption says so
DASHES = ("", "6 3", "2 2", "8 3 2 3", "10 4")  # so that the lines differ in print, too
LEFT, GAP, PLOT, TITLES = 54.0, 16.0, 104.0, 34.0  # pixels: tick labels, between panels, height of a plot, of a title


def panels(summary: Fields) -> list[tuple[str, Fields]]:
    """(row, what one of its policies logged) in the order of the summary."""
    training = (summary.get("conflict") or {}).get("training") or {}
    return [(str(row), point) for row, points in training.items() for point in points if point["trace"]]


def caption(summary: Fields) -> str:
    """What the figure shows, in words; empty without panels."""
    shown = panels(summary)
    if not shown:
        return ""
    advantages = list(dict.fromkeys(str(point["advantage"]) for _, point in shown))
    text = (
        "How each objective varies with the advantage among the responses to one prompt, step by step (covariance). "
        "An objective above zero is being trained up, an objective below zero is being trained down. "
        f"Advantage: {'; or '.join(advantages)}."
    )
    if any("without" in advantage for advantage in advantages):
        text += (
            " Without the penalty, lines show where the rewards alone pull; the penalty pulls back to the reference "
            "model, and at the optimum as strongly."
        )
    return text + left_out(len(shown))


def left_out(count: int) -> str:
    """How many policies have no panel."""
    return f" The first {MOST} of {count} policies; the others are in summary.json." if count > MOST else ""


def training(summary: Fields, *, width: int, key: str = "covariance") -> str:
    """A line per objective (`key` covariance) or per pair of objectives (rank_correlation); empty without panels."""
    shown = panels(summary)[:MOST]
    series = [list(_series(point, key)) for _, point in shown]
    values = [v for lines in series for _, spots in lines for _, v in spots if v is not None]
    if not values:
        return ""
    names = list(dict.fromkeys(name for lines in series for name, _ in lines))
    if key == "covariance":
        known = words.objectives(summary)
        names.sort(key=lambda name: known.index(name) if name in known else len(known))
    columns = max(1, min(len(shown), int((width - LEFT + GAP) // 196)))
    wide = (width - LEFT - GAP * (columns - 1) - 8) / columns
    title = {"covariance": "Covariance with the advantage", "rank_correlation": "Rank correlation"}[key]
    board = Board(width, 0, f"{title} during training")
    looks = {n: Stroke(COLORS[k % len(COLORS)], 1.6, DASHES[k % len(DASHES)]) for k, n in enumerate(names)}
    top = legend(board, [(look, name) for name, look in looks.items()], left=0, top=4)
    tall = TITLES + PLOT + 24
    reach = (-1.0, 1.0) if key == "rank_correlation" else padded([*values, 0.0], share=0.08)
    for i, ((row, point), lines) in enumerate(zip(shown, series, strict=True)):
        start, above = LEFT + (i % columns) * (wide + GAP), top + (i // columns) * tall + TITLES
        x = Scale(0, max(p["step"] for p in point["trace"]), start, start + wide)
        plot = Plot(board, x, Scale(*reach, above + PLOT, above))
        _panel(plot, row=row, asked=str(point["asked"]), labelled=i % columns == 0)
        for name, spots in lines:
            _line(plot, spots, title=f"{row}, {point['asked']}: {name}", look=looks[name])
    board.height = round(top + -(-len(shown) // columns) * tall + 22)
    board.text(width / 2, board.height - 4, "training step", anchor="middle", size=13)
    return board.done()


def _series(point: Fields, key: str) -> Iterator[tuple[str, list[tuple[float, float | None]]]]:
    """(name, [(step, value)]) of each line."""
    names = point["names"] if key == "covariance" else [" with ".join(map(str, pair)) for pair in point["pairs"]]
    for k, name in enumerate(names):
        yield str(name), [(entry["step"], entry[key][k]) for entry in point["trace"]]


def _panel(plot: Plot, *, row: str, asked: str, labelled: bool) -> None:
    board, x, y = plot.board, plot.x, plot.y
    room = x.end - x.start
    board.text(x.start, y.end - 20, short(row, room), size=13, style="bold")
    board.text(x.start, y.end - 6, short(f"asked for {asked}", room), size=11, fill=MUTED)
    y_axis(board, y, left=x.start, right=x.end, count=4, labelled=labelled)
    x_axis(board, x, top=y.start, bottom=y.start, count=3)
    board.line(x.start, y(0), x.end, y(0), stroke=Stroke(INK, 1.2))


def _line(plot: Plot, spots: Sequence[tuple[float, float | None]], *, title: str, look: Stroke) -> None:
    """The line, interrupted where there is no value; its last value as a mark that states it."""
    part: list[tuple[float, float]] = []
    for step, value in [*spots, (0.0, None)]:
        if value is None:
            plot.board.path(part, stroke=look)
            part = []
        else:
            part.append(plot.at(step, value))
    step, last = next(((s, v) for s, v in reversed(spots) if v is not None), (0.0, None))
    if last is not None:
        title = f"{title} {words.signed(last)} at step {step:g}"
        plot.board.mark(*plot.at(step, last), Mark(look.color, size=2.8), title=title)
