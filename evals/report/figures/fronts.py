"""The report's figures as inline SVG, each drawn at a given pixel width: front, shift gaps, the split of each drop."""

from collections.abc import Mapping, Sequence
from typing import Any

from evals.report import words
from evals.report.figures.svg import GRID, INK, MUTED, Board, Scale, padded, tick_label

# Okabe and Ito's colours, told apart with any colour vision; the shapes tell them apart in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195")
FORMS = ("circle", "square", "triangle", "diamond", "down", "left", "right")
GREY, COMPETING, MISMATCHED = "#8c959f", "#E69F00", "#0072B2"


def styles(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Row -> colour and shape: a colour per method, a shape per variant, hollow for learned rewards, grey controls."""
    controls, looks, colors, forms = words.controls_of(summary), {}, {}, {}  # type: ignore[var-annotated]
    for row in words.ranked(summary):
        bare = row.removesuffix("@learned")
        method = bare.split("/")[0]
        look: dict[str, Any] = {"hollow": row != bare}
        if row == "reference":
            look |= {"color": INK, "shape": "star", "hollow": False}
        elif row in controls or row == "optimum":
            forms.setdefault("controls", []).append(row)
            look |= {"color": GREY, "shape": FORMS[len(forms["controls"]) % len(FORMS)]}
        else:
            color = colors.setdefault(method, len(colors))
            variants = forms.setdefault(method, [])
            if bare not in variants:
                variants.append(bare)
            shape = FORMS[(color + variants.index(bare)) % len(FORMS)]
            look |= {"color": COLORS[color % len(COLORS)], "shape": shape}
        looks[row] = look
    return looks


def swatch(look: Mapping[str, Any]) -> str:
    """The legend's little picture of a row."""
    board = Board(22, 14, "")
    board.line(0, 7, 22, 7, stroke=look["color"], width=1.5, dash="4 3" if look["hollow"] else "")
    size = 3.6 if look["shape"] == "star" else 4.5
    board.marker(11, 7, look["shape"], color=look["color"], hollow=look["hollow"], size=size)
    return board.done()


def _axes(board: Board, x: Scale, y: Scale, *, x_name: str, y_name: str) -> None:
    narrow = board.width < 480
    for tick in x.ticks(4 if narrow else 7):
        board.line(x(tick), y.start, x(tick), y.end, stroke=GRID)
        board.text(x(tick), y.start + 16, tick_label(tick), anchor="middle", fill=MUTED)
    for tick in y.ticks(5 if narrow else 6):
        board.line(x.start, y(tick), x.end, y(tick), stroke=GRID)
        board.text(x.start - 6, y(tick) + 4, tick_label(tick), anchor="end", fill=MUTED)
    board.line(x.start, y.start, x.end, y.start, stroke=MUTED)
    board.line(x.start, y.start, x.start, y.end, stroke=MUTED)
    board.text((x.start + x.end) / 2, y.start + 36, x_name, anchor="middle", size=13)
    board.text(14, (y.start + y.end) / 2, y_name, anchor="middle", size=13, turn=True)


def _optimum(board: Board, front: Sequence[Mapping[str, Any]], x: Scale, y: Scale, a: int, b: int) -> None:
    """The exact front as a line over the preferences that weigh only these two objectives, other points as dots."""
    edge = [p for p in front if sum(w for k, w in enumerate(p["preference"]) if k not in (a, b)) < 1e-12]
    for point in front:
        if len(point["preference"]) > 2 and point not in edge:
            board.marker(x(point["values"][a]), y(point["values"][b]), "circle", color="#d0d7de", size=1.6)
    edge = sorted(edge, key=lambda p: p["preference"][a])
    spots = [(x(p["values"][a]), y(p["values"][b])) for p in edge]
    board.path(spots, stroke=INK, width=2.6)


def front(summary: Mapping[str, Any], *, width: int, pair: tuple[int, int] = (0, 1)) -> str:
    """Every row's points in the plane of two objectives, the exact optimum as a line, the reference model as a star."""
    a, b = pair
    names, looks, rows = words.objectives(summary), styles(summary), words.ranked(summary)
    exact = (summary.get("optimum") or {}).get("front") or []
    spots = [p["values"] for row in rows.values() for p in row.get("front") or []] + [p["values"] for p in exact]
    if not spots:
        return ""
    height = min(width * 0.72, 520) if width > 480 else width * 1.05
    board = Board(width, round(height), f"Trade-off between {names[a]} and {names[b]}")
    bars = [p["values_ci"] for row in rows.values() for p in row.get("front") or [] if p.get("values_ci")]
    reach = [[v[k] for v in spots] + [end for bar in bars for end in bar[k] or ()] for k in pair]
    x = Scale(*padded(reach[0]), 58, width - 12)
    y = Scale(*padded(reach[1]), board.height - 48, 12)
    _axes(board, x, y, x_name=f"{names[a]} \u2192 better", y_name=f"{names[b]} \u2192 better")
    _optimum(board, exact, x, y, a, b)
    for name, row in reversed(rows.items()):
        if name != "reference":
            _points(board, name, row.get("front") or [], looks[name], x, y, pair)
    for point in (rows.get("reference", {}).get("front") or [])[:1]:
        place = x(point["values"][a]), y(point["values"][b])
        board.marker(*place, "star", color=INK, size=6.5, title="reference model")
        left = place[0] > (x.start + x.end) * 0.65
        words_at = place[0] + (-11 if left else 11), place[1] + 16
        board.text(*words_at, "reference", anchor="end" if left else "start", halo=True)
    return board.done()


def _points(
    board: Board,
    name: str,
    points: Sequence[Mapping[str, Any]],
    look: Mapping[str, Any],
    x: Scale,
    y: Scale,
    pair: tuple[int, int],
) -> None:
    a, b = pair
    spots = [(x(p["values"][a]), y(p["values"][b])) for p in points]
    if points and len(points[0]["preference"]) == 2:
        board.path(spots, stroke=look["color"], width=1.2, dash="4 3" if look["hollow"] else "", opacity=0.6)
    for point, (px, py) in zip(points, spots, strict=True):
        bars = point.get("values_ci")
        if bars and bars[a] and bars[b]:
            board.line(x(bars[a][0]), py, x(bars[a][1]), py, stroke=look["color"], width=0.8)
            board.line(px, y(bars[b][0]), px, y(bars[b][1]), stroke=look["color"], width=0.8)
        told = f"{name}, asked for {words.weights(point['preference'])}: " + ", ".join(
            words.num(v) for v in point["values"]
        )
        told += f"; KL {words.num(point.get('kl'))}"
        told += f"; regret {words.num(point['regret'])}" if point.get("regret") is not None else ""
        faint = 1.0 if point.get("nondominated", True) else 0.3
        board.marker(px, py, look["shape"], color=look["color"], hollow=look["hollow"], opacity=faint, title=told)


def short(text: str, room: float) -> str:
    """The text, its end cut off where it needs more than `room` pixels."""
    most = max(int(room / 7.2), 4)
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def _panels(
    board_width: int, shifts: Sequence[str], rows: int, *, line: float
) -> tuple[list[tuple[float, float]], float, float, float]:
    """(top-left corner of each panel's plot, plot width, panel height, total height) for a grid of panels."""
    labels = 150.0 if board_width > 480 else 118.0
    columns = max(1, min(len(shifts), int((board_width - labels) // 170)))
    wide = (board_width - labels - 14 * columns) / columns
    tall = 26 + rows * line + 30
    corners = [(labels + (i % columns) * (wide + 14), (i // columns) * (tall + 10)) for i in range(len(shifts))]
    lines = (len(shifts) + columns - 1) // columns
    return corners, wide, tall, lines * (tall + 10) + 16


def _grid(
    summary: Mapping[str, Any], *, width: int, rows: Sequence[str], reach: Sequence[float], name: str, line: float
) -> tuple[Board, dict[str, tuple[Scale, float]]]:
    """A board with one panel per shift, row labels at the left, a common scale and its zero line; where to draw."""
    shifts = list(summary["shifts"])
    corners, wide, tall, height = _panels(width, shifts, len(rows), line=line)
    board, looks = Board(width, round(height), name), styles(summary)
    low, high = padded([*reach, 0.0], share=0.08)
    spots: dict[str, tuple[Scale, float]] = {}
    for shift, (left, top) in zip(shifts, corners, strict=True):
        scale, bottom = Scale(low, high, left, left + wide), top + 26 + len(rows) * line
        board.text(left, top + 14, short(shift, wide), size=13, weight=600)
        for tick in scale.ticks(4 if wide < 220 else 6):
            board.line(scale(tick), top + 22, scale(tick), bottom, stroke=GRID)
            board.text(scale(tick), bottom + 15, tick_label(tick), anchor="middle", fill=MUTED, size=11)
        board.line(scale(0), top + 22, scale(0), bottom, stroke=INK)
        spots[shift] = scale, top + 26
        if left == corners[0][0]:
            for i, row in enumerate(rows):
                fill = MUTED if looks[row]["color"] == GREY else INK
                board.text(left - 8, top + 26 + (i + 0.5) * line + 4, short(row, left - 10), anchor="end", fill=fill)
    return board, spots


def gaps(summary: Mapping[str, Any], *, width: int) -> str:
    """The headline gap of each row under each shift with its interval; filled where the interval excludes 0."""
    looks, shifts = styles(summary), summary.get("shifts") or {}
    rows = [
        r for r in looks if r != "reference" and any((e.get(r) or {}).get("gap") is not None for e in shifts.values())
    ]
    if not rows:
        return ""
    shown = [e[row] for e in shifts.values() for row in rows if (e.get(row) or {}).get("gap") is not None]
    reach = [v for entry in shown for v in (entry["gap"], *(entry.get("gap_ci") or ()))]
    board, spots = _grid(summary, width=width, rows=rows, reach=reach, name="Gap under each shift", line=20)
    for shift, (scale, top) in spots.items():
        for i, row in enumerate(rows):
            entry = shifts[shift].get(row) or {}
            if entry.get("gap") is None:
                continue
            middle, pair, color = top + (i + 0.5) * 20, entry.get("gap_ci"), looks[row]["color"]
            if pair:
                board.line(scale(pair[0]), middle, scale(pair[1]), middle, stroke=color, width=1.8)
            sure = pair is not None and (pair[0] > 0 or pair[1] < 0)
            told = f"{row}, {shift}: {words.signed(entry['gap'])} {words.interval(pair)}; {entry['gap_of']['over']}"
            board.marker(scale(entry["gap"]), middle, "circle", color=color, hollow=not sure, size=4, title=told)
    return board.done()


def split(summary: Mapping[str, Any], *, width: int) -> str:
    """The drop in J of each row under each shift: what the optimum loses as well, and what did not transfer."""
    looks, shifts = styles(summary), summary.get("shifts") or {}
    rows = [r for r in looks if any((e.get(r) or {}).get("competing") is not None for e in shifts.values())]
    if not rows:
        return ""
    parts = (("competing", COMPETING), ("mismatched", MISMATCHED))
    shown = [e[row] for e in shifts.values() for row in rows if (e.get(row) or {}).get("competing") is not None]
    reach = [entry[part] for entry in shown for part, _ in parts]
    board, spots = _grid(summary, width=width, rows=rows, reach=reach, name="Drop in J, split", line=22)
    for shift, (scale, top) in spots.items():
        for i, row in enumerate(rows):
            entry = shifts[shift].get(row) or {}
            if entry.get("competing") is None:
                continue
            for j, (part, color) in enumerate(parts):
                left, right = sorted((scale(0), scale(entry[part])))
                told = f"{row}, {shift}: {part} {words.signed(entry[part], 4)}"
                board.bar(left, top + i * 22 + 4 + 7 * j, right - left, 6, fill=color, title=told)
    return board.done()
