"""The report's figures of rows, each drawn at a given pixel width: fronts, gaps under shift, the parts of each drop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from evals.items import Fields
from evals.report import words
from evals.report.figures.dots import ZERO, Bar, Dot, Layout, Panel, figure
from evals.report.figures.svg import COLORS, FORMS, GREY, INK, Board, Mark, Plot, Scale, Stroke, padded

COMPETING, MISMATCHED = "#E69F00", "#0072B2"
PART_COLORS = {"surface": "#8c959f", "competing": COMPETING, "carried_over": "#56B4E9", "mismatched": MISMATCHED}
OPTIMUM = Stroke(INK, 2.6)


def styles(summary: Fields) -> dict[str, Mark]:
    """Row -> its mark: a colour per method, a shape per variant, hollow for learned rewards, grey controls."""
    controls = words.controls_of(summary)
    looks: dict[str, Mark] = {}
    colors: dict[str, int] = {}
    forms: dict[str, list[str]] = {}
    for row in words.ranked(summary):
        bare = row.removesuffix("@learned")
        if row == "reference":
            looks[row] = Mark(INK, "star", size=6.5)
        elif row in controls or row == "optimum":
            forms.setdefault("controls", []).append(row)
            looks[row] = Mark(GREY, FORMS[len(forms["controls"]) % len(FORMS)], hollow=row != bare)
        else:
            method = bare.split("/")[0]
            color = colors.setdefault(method, len(colors))
            variants = forms.setdefault(method, [])
            if bare not in variants:
                variants.append(bare)
            shape = FORMS[(color + variants.index(bare)) % len(FORMS)]
            looks[row] = Mark(COLORS[color % len(COLORS)], shape, hollow=row != bare)
    return looks


def front(summary: Fields, *, width: int, pair: tuple[int, int] = (0, 1)) -> str:
    """Every row's points in the plane of two objectives, the exact optimum as a line, the reference model as a star."""
    a, b = pair
    names, looks, rows = words.objectives(summary), styles(summary), words.ranked(summary)
    exact = (summary.get("optimum") or {}).get("front") or []
    points = [p for row in rows.values() for p in row.get("front") or []]
    if not points and not exact:
        return ""
    height = min(width * 0.72, 520) if width > 480 else width * 1.05
    board = Board(width, round(height), f"Trade-off between {names[a]} and {names[b]}")
    bars = [p["values_ci"] for p in points if p.get("values_ci")]
    reach = [[p["values"][k] for p in (*points, *exact)] + [v for bar in bars for v in bar[k] or ()] for k in pair]
    x = Scale(*padded(reach[0]), 58, width - 12)
    plot = Plot(board, x, Scale(*padded(reach[1]), board.height - 48, 12))
    narrow = width < 480
    plot.axes(columns=4 if narrow else 7, rows=5 if narrow else 6, frame=True)
    plot.names(f"{names[a]} \u2192 better", f"{names[b]} \u2192 better")
    _optimum(plot, exact, pair)
    for name, row in reversed(rows.items()):
        if name != "reference":
            _points(plot, row.get("front") or [], pair, name=name, look=looks[name])
    for point in (rows.get("reference", {}).get("front") or [])[:1]:
        across, up = plot.at(point["values"][a], point["values"][b])
        board.mark(across, up, looks["reference"], title="reference model")
        left = across > (x.start + x.end) * 0.65
        at = across + (-11 if left else 11)
        board.text(at, up + 16, "reference", anchor="end" if left else "start", style="halo")
    return board.done()


def _optimum(plot: Plot, front: Sequence[Fields], pair: tuple[int, int]) -> None:
    """The exact front as a line over the preferences that weigh only these two objectives, other points as dots."""
    a, b = pair
    edge = [p for p in front if sum(w for k, w in enumerate(p["preference"]) if k not in pair) < 1e-12]
    for point in front:
        if len(point["preference"]) > 2 and point not in edge:
            plot.board.mark(*plot.at(point["values"][a], point["values"][b]), Mark("#d0d7de", size=1.6))
    edge = sorted(edge, key=lambda p: p["preference"][a])
    plot.board.path([plot.at(p["values"][a], p["values"][b]) for p in edge], stroke=OPTIMUM)


def _points(plot: Plot, points: Sequence[Fields], pair: tuple[int, int], *, name: str, look: Mark) -> None:
    a, b = pair
    spots = [plot.at(p["values"][a], p["values"][b]) for p in points]
    if points and len(points[0]["preference"]) == 2:
        plot.board.path(spots, stroke=Stroke(look.color, 1.2, "4 3" if look.hollow else "", 0.6))
    thin = Stroke(look.color, 0.8)
    for point, (px, py) in zip(points, spots, strict=True):
        bars = point.get("values_ci")
        if bars and bars[a] and bars[b]:
            plot.board.line(plot.x(bars[a][0]), py, plot.x(bars[a][1]), py, stroke=thin)
            plot.board.line(px, plot.y(bars[b][0]), px, plot.y(bars[b][1]), stroke=thin)
        values = ", ".join(words.num(v) for v in point["values"])
        title = f"{name}, asked for {words.weights(point['preference'])}: {values}; KL {words.num(point.get('kl'))}"
        title += f"; regret {words.num(point['regret'])}" if point.get("regret") is not None else ""
        plot.board.mark(px, py, look if point.get("nondominated", True) else replace(look, opacity=0.3), title=title)


def gaps(summary: Fields, *, width: int) -> str:
    """The headline gap of each row under each shift with its interval; filled where the interval excludes 0."""
    looks = styles(summary)
    entries = {
        shift: {row: e for row in looks if row != "reference" and (e := by.get(row) or {}).get("gap") is not None}
        for shift, by in (summary.get("shifts") or {}).items()
    }
    reach = [v for by in entries.values() for e in by.values() for v in (e["gap"], *(e.get("gap_ci") or ()))]

    def dot(shift: str, row: str, entry: Fields) -> Dot:
        ends = tuple(entry["gap_ci"]) if entry.get("gap_ci") else None
        sure = ends is not None and (ends[0] > 0 or ends[1] < 0)
        title = f"{row}, {shift}: {words.signed(entry['gap'])} {words.interval(ends)}; {entry['gap_of']['over']}"
        return Dot(entry["gap"], ends, Mark(looks[row].color, hollow=not sure, size=4), title)

    shown = {shift: {row: dot(shift, row, e) for row, e in by.items()} for shift, by in entries.items()}
    return _by_shift(shown, looks, reach=reach, layout=Layout(width, "Gap under each shift", line=20))


def split(summary: Fields, *, width: int) -> str:
    """The drop in J of each row under each shift, a bar for each of its four parts."""
    looks, parts = styles(summary), PART_COLORS
    entries = {
        shift: {row: e for row in looks if (e := by.get(row) or {}).get("mismatched") is not None}
        for shift, by in (summary.get("shifts") or {}).items()
    }
    reach = [e[part] for by in entries.values() for e in by.values() for part in parts]
    shown = {
        shift: {
            row: [Bar(e[p], c, f"{row}, {shift}: {words.part(p)} {words.signed(e[p], 4)}") for p, c in parts.items()]
            for row, e in by.items()
        }
        for shift, by in entries.items()
    }
    return _by_shift(shown, looks, reach=reach, layout=Layout(width, "Drop in J, by part", line=32))


def _by_shift(
    shown: Mapping[str, Mapping[str, Dot | Sequence[Bar]]],
    looks: Mapping[str, Mark],
    *,
    reach: Sequence[float],
    layout: Layout,
) -> str:
    """A panel per shift on one scale, with its zero line; empty without a value."""
    rows = [row for row in looks if any(row in by for by in shown.values())]
    if not rows:
        return ""
    scale = padded([*reach, 0.0], share=0.08)
    panels = [Panel(shift, scale, by, [(0.0, ZERO)]) for shift, by in shown.items()]
    muted = {row for row in rows if looks[row].color == GREY}
    room = 150.0 if layout.width > 480 else 118.0
    return figure([("", rows)], panels=panels, layout=replace(layout, labels=room, least=156.0, muted=muted))
