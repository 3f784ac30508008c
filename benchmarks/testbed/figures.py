"""The testbed page's figures: the regret share of every row with its interval, and against the cost of training."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.pages import Entry
from evals.report.figures.dots import Dot, Layout, Panel, figure
from evals.report.figures.svg import GREY, MUTED, Board, Mark, Plot, Scale, decades, legend

WIDTH, HEIGHT = 860, 480
FLOOR = 1e-4  # where a share of 0 is drawn: a logarithmic axis has no zero
AXIS = "regret share (0 optimum, 1 reference)"
# one run per point, one for all points, controls
KINDS = {"points": Mark("#0969da"), "family": Mark("#1a7f37"), "control": Mark(GREY, hollow=True)}
NAMES = {"points": "one run per preference", "family": "one run for all", "control": "control"}


def kind_of(entry: Entry) -> str:
    """control, family (one run for all preferences) or points."""
    return "control" if entry["control"] else str(entry.get("runs", "points"))


def shares(rows: Mapping[str, Entry], *, world: str) -> str:
    """Rows top to bottom by regret share on a logarithmic axis, each with its interval over seeds."""
    dots = {row: _dot(row, entry) for row, entry in rows.items()}
    panel = Panel(AXIS, decades([dot.value for dot in dots.values() if dot.value is not None]), dots, log=True)
    layout = Layout(
        WIDTH, f"Regret share of {len(rows)} rows on world {world}", labels=230, right=110, line=20,
        muted={row for row, entry in rows.items() if entry["control"]},
        legend=[(mark, NAMES[kind]) for kind, mark in KINDS.items()],
    )  # fmt: skip
    return figure([("", list(rows))], panels=[panel], layout=layout)


def cost(rows: Mapping[str, Entry], *, world: str) -> str:
    """Regret share against the training FLOPs of the whole row, both logarithmic."""
    shown = {row: e for row, e in rows.items() if e["flops"] > 0 and not e["control"]}
    board = Board(WIDTH, HEIGHT, f"Regret share against training FLOPs on world {world}")
    if not shown:
        return board.done()
    x = Scale(*decades([e["flops"] for e in shown.values()]), 60, WIDTH - 150, log=True)
    y = Scale(*decades([_drawn(e["regret_share"]) for e in shown.values()]), HEIGHT - 50, 30, log=True)
    plot = Plot(board, x, y)
    plot.axes()
    plot.names("training FLOPs of the row, per seed", AXIS)
    legend(board, [(KINDS[kind], NAMES[kind]) for kind in ("points", "family")], left=60, top=4)
    for row, entry in shown.items():
        across, up = plot.at(entry["flops"], _drawn(entry["regret_share"]))
        board.mark(across, up, KINDS[kind_of(entry)], title=row)
        board.text(across + 7, up + 4, row, size=10, fill=MUTED, style="halo")
    return board.done()


def _drawn(share: float) -> float:
    return max(share, FLOOR)


def _dot(row: str, entry: Entry) -> Dot:
    share, ends = entry["regret_share"], entry["regret_share_ci"]
    drawn = None if ends is None else (_drawn(ends[0]), _drawn(ends[1]))
    return Dot(_drawn(share), drawn, KINDS[kind_of(entry)], f"{row}: {share:.4f}", note=f"{share:.3f}")
