"""The drawing module: scales, legends and panels land where their values say, and every word is only text."""

from __future__ import annotations

import re

import pytest

from evals.report.figures.dots import ZERO, Bar, Dot, Layout, Panel, figure
from evals.report.figures.svg import Board, Mark, Scale, Stroke, decades, legend, swatch

HOSTILE = '<script>alert(1)</script> & "quoted"'


def circles(drawn: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)]


def test_a_logarithmic_scale_has_its_powers_of_ten_at_equal_distances() -> None:
    assert decades([0.02, 3.0]) == (0.01, 10.0) and decades([1.0, 1.0]) == (1.0, 10.0)
    scale = Scale(0.01, 10.0, 100, 400, log=True)
    assert scale.ticks(2) == pytest.approx([0.01, 0.1, 1, 10])
    assert [scale(tick) for tick in scale.ticks(2)] == pytest.approx([100, 200, 300, 400])


def test_a_legend_continues_on_the_next_line_where_the_board_ends() -> None:
    board = Board(200, 100, "")
    entries = [(Mark(), "first name"), (Stroke(), "second name"), (Mark(), "third")]
    assert legend(board, entries, left=0, top=0) == 2 * 18  # 106 pixels, then 125 and 71 below
    assert legend(Board(900, 100, ""), entries, left=0, top=0) == 18
    assert legend(Board(900, 100, ""), entries, left=0, top=0, down=True) == 3 * 20


def test_dots_of_a_row_are_level_and_panels_that_do_not_fit_go_below() -> None:
    panels = [
        Panel(title, (0.0, 1.0), {"a": Dot(0.5, (0.2, 0.9), Mark(), "a"), "b": Dot(0.0, None, Mark(), "b")})
        for title in ("one", "two")
    ]
    beside = circles(figure([("", ["a", "b"])], panels=panels, layout=Layout(600, "x", labels=100)))
    (xa, ya), (xa2, ya2), (xb, yb), (xb2, yb2) = beside
    assert ya == ya2 < yb == yb2 and xb < xa < xb2 < xa2
    below = circles(figure([("", ["a", "b"])], panels=panels, layout=Layout(300, "x", labels=100, least=150)))
    assert below[0][0] == below[2][0] and max(y for _, y in below[:2]) < min(y for _, y in below[2:])


def test_bars_start_at_zero_on_both_sides() -> None:
    panel = Panel("t", (-1.0, 1.0), {"a": [Bar(0.5, "#000", "up"), Bar(-0.5, "#000", "down")]}, [(0.0, ZERO)])
    drawn = figure([("", ["a"])], panels=[panel], layout=Layout(310, "x", labels=100))
    rectangles = re.findall(r'<rect x="([\d.]+)".*?width="([\d.]+)"', drawn)
    (up, wide), (down, also) = [(float(x), float(w)) for x, w in rectangles]
    assert wide == also == 50 and down + also == up == 200


def test_a_row_without_a_value_says_so_and_a_figure_without_any_is_empty() -> None:
    panel = Panel("t", (0.0, 1.0), {"a": Dot(0.5, None, Mark(), "a")})
    assert "no value" in figure([("", ["a", "b"])], panels=[panel], layout=Layout(300, "x"))
    assert figure([("", ["a"])], panels=[Panel("t", (0.0, 1.0), {})], layout=Layout(300, "x")) == ""


def test_every_word_is_escaped() -> None:
    panel = Panel(HOSTILE, (0.0, 1.0), {HOSTILE: Dot(0.5, None, Mark(), HOSTILE, note=HOSTILE)})
    layout = Layout(2000, HOSTILE, labels=900, legend=[(Mark(), HOSTILE)], foot=HOSTILE)
    drawn = figure([(HOSTILE, [HOSTILE])], panels=[panel], layout=layout)
    assert "<script" not in drawn and drawn.count("&lt;script&gt;") >= 8
    assert swatch(Mark("#123456", "square", hollow=True)).count("stroke-dasharray") == 1
