"""The table of standard tasks before and after: intervals derived by hand, and its command."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from evals.bridges import standard_tasks
from evals.bridges.lm_eval_bridge import TaskScores
from evals.bridges.standard_tasks import apart, as_text, change, gap, level, moved, table_row
from evals.items import Missing
from evals.stats.intervals import Interval
from evals.suites import SUITES
from factories.lm_eval_parts import closed, needs_lm_eval

LOST = Missing("context", "too long")


def test_a_level_is_clustered_and_refused_when_too_many_are_missing() -> None:
    """Clusters {1, 0} and {1} and {0}: mean 1/2; residuals 0, 1/8, -1/8 of weights 1/2, 1/4, 1/4; CR2: 2/64 / (3/4)."""
    scores = {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0}
    found = level(scores, clusters={"a": "A", "b": "A", "c": "C", "d": "D"})
    assert found.estimate == 0.5 and found.n == 3 and found.se == pytest.approx(math.sqrt(1 / 24))
    few = {**scores, "e": LOST}
    assert level(few, clusters=dict.fromkeys("abcd", "A") | {"d": "D"}).estimate == 0.5  # 1 of 5 is allowed
    refused = level({**few, "f": LOST}, clusters={})
    assert math.isnan(refused.estimate) and refused.low is None
    assert refused.reason == "refused: 2 of 6 items are Missing (context: 2)"


def test_no_interval_is_zero_wide_where_all_items_agree() -> None:
    """10 of 10 wrong: Wilson with z = t_9 = 2.2622 ends at z^2 / (10 + z^2). Ten changes of 0: Tango's limits, where
    the share that falls is most likely 0, solve d^2 = z^2 d (1 - d) / 10: the same form with z = 1.9600. A gap adds
    both sides in squares."""
    names = {str(i): str(i) for i in range(10)}
    wrong = dict.fromkeys(names, 0.0)
    at_zero = level(wrong, clusters=names)
    top = 2.2622**2 / (10 + 2.2622**2)
    assert (at_zero.low, at_zero.high) == (0.0, pytest.approx(top, abs=1e-4))
    half = 1.9600**2 / (10 + 1.9600**2)
    still = change(wrong, wrong, clusters=names)
    assert (still.low, still.high) == (pytest.approx(-half, abs=1e-4), pytest.approx(half, abs=1e-4))
    away = {"clusters": names, "shifted_clusters": names, "paired": False}
    flat = gap(wrong, wrong, **away)  # type: ignore[arg-type]
    assert (flat.low, flat.high) == (pytest.approx(-top, abs=1e-4), pytest.approx(top, abs=1e-4))
    unmoved = moved(wrong, wrong, **away)  # type: ignore[arg-type]
    assert unmoved.high == pytest.approx(half * math.sqrt(2), abs=1e-4) and unmoved.low == -unmoved.high


def test_independent_estimates_keep_their_own_limits() -> None:
    """.5 in [.3, .8] against .2 in [.1, .4]: low .3 - |(.2, .2)|, high .3 + |(.3, .1)|; the swap mirrors it."""
    first, second = Interval(0.5, 0.3, 0.8, "items", 4, se=0.3), Interval(0.2, 0.1, 0.4, "items", 5, se=0.4)
    found, swapped = apart(first, second), apart(second, first)
    assert found.estimate == pytest.approx(0.3) and found.se == pytest.approx(0.5) and found.n == 9
    assert found.low == pytest.approx(0.3 - math.sqrt(0.08)) and found.high == pytest.approx(0.3 + math.sqrt(0.10))
    assert (swapped.low, swapped.high) == (pytest.approx(-found.high), pytest.approx(-found.low))
    none = apart(first, Interval(0.2, None, None, "items", 1, reason="no interval: 1 of items"))
    assert none.low is None and none.reason == "no interval: 1 of items"


def test_a_change_is_after_minus_before_on_items_with_both() -> None:
    """Differences 1, 0, 1 of a, b, c; the rest has one side only. se = sqrt(1/3) / sqrt(3)."""
    before = {"a": 0.0, "b": 1.0, "c": 0.0, "d": 1.0, "e": LOST, **dict.fromkeys("fghi", 0.0)}
    after = {"a": 1.0, "b": 1.0, "c": 1.0, "d": LOST, "e": 1.0, **dict.fromkeys("fghi", 0.0)}
    found = change(before, after, clusters={item: item for item in before})
    assert found.estimate == pytest.approx(2 / 7) and found.n == 7
    three = [{item: scores[item] for item in "abc"} for scores in (before, after)]
    small = change(three[0], three[1], clusters={item: item for item in "abc"})
    assert small.estimate == pytest.approx(2 / 3) and small.se == pytest.approx(1 / 3)
    # a and c of one base item: residual sums 2/3, -2/3 over 3; CR2: (2/9)^2 (3 + 3/2) = 2/9
    both = change(three[0], three[1], clusters={"a": "A", "b": "B", "c": "A"})
    assert (both.estimate, both.n, both.se) == (pytest.approx(2 / 3), 2, pytest.approx(math.sqrt(2 / 9)))
    none = change({"a": 1.0}, {"b": 1.0}, clusters={"a": "a", "b": "b"})
    assert math.isnan(none.estimate) and none.reason == "refused: no item has a score of both models"


def test_a_gap_is_home_minus_shift_paired_by_base_item_or_not() -> None:
    """Base items A: 1 - 0, B: 1 - mean(1, 0) = 1/2, C has no partner. Paired 3/4; unpaired 2/3 - 1/3."""
    home, shifted = {"a": 1.0, "b": 1.0, "c": 0.0}, {"x": 0.0, "y": 1.0, "z": 0.0}
    where: dict[str, Any] = {"clusters": {"a": "A", "b": "B", "c": "C"}}
    where["shifted_clusters"] = {"x": "A", "y": "B", "z": "B"}
    paired = gap(home, shifted, **where, paired=True)
    assert (paired.estimate, paired.n, paired.se) == (0.75, 2, pytest.approx(0.25))
    assert gap(home, shifted, **where, paired=False).estimate == pytest.approx(1 / 3)


def scores(task: str, values: Mapping[str, Any], clusters: Mapping[str, str] | None = None) -> TaskScores:
    names = clusters or {item: f"{task} {item}" for item in values}
    return TaskScores(task, {"accuracy": values}, {"accuracy": True}, names)


def test_rows_of_the_table() -> None:
    """Home 1/2 -> 3/4, shift 1/2 -> 1/4: the gap goes from 0 to 1/2."""
    home = [scores("home", dict(zip("abcd", v, strict=True))) for v in ([1.0, 1, 0, 0], [1.0, 1, 1, 0])]
    away = [scores("away", dict(zip("abcd", v, strict=True))) for v in ([1.0, 0, 1, 0], [0.0, 0, 1, 0])]
    items = [closed(name, int(name in "ab")) for name in "abcd"]
    own = table_row("t", metric="accuracy", base=(home[0], home[1]), here=(home[0], home[1]), items=items)
    assert (own.role, own.before.estimate, own.after.estimate, own.change.estimate) == ("ID", 0.5, 0.75, 0.25)
    assert (own.chance, own.majority, own.gap_change) == (0.5, 0.5, None)
    row = table_row("t", metric="accuracy", base=(home[0], home[1]), here=(away[0], away[1]), items=items)
    gaps = (row.gap_before, row.gap_after, row.gap_change)
    assert row.role == "shift" and [g.estimate for g in gaps if g is not None] == [0.0, 0.5, 0.5]
    same = [scores("away", side.scores["accuracy"], home[0].clusters) for side in away]
    paired = table_row("t", metric="accuracy", base=(home[0], home[1]), here=(same[0], same[1]), items=items)
    assert paired.role == "paired shift" and paired.gap_change is not None
    assert paired.gap_change.estimate == 0.5 and paired.gap_change.se == pytest.approx(math.sqrt(1 / 12))


def test_the_printed_table_says_why_a_cell_is_refused() -> None:
    lost = [scores("lost", {"a": 1.0, "b": LOST}) for _ in range(2)]
    row = table_row("t", metric="accuracy", base=(lost[0], lost[1]), here=(lost[0], lost[1]), items=[closed("a", 0)])
    text = as_text([row])
    assert "refused" in text and "lost: refused: 1 of 2 items are Missing (context: 1)" in text
    assert "0 changes" in text and "nan" not in text


def test_every_standard_task_has_a_suite_and_a_shift_of_the_same_kind() -> None:
    for name in standard_tasks.TASKS.values():
        partners = SUITES[name].partners
        assert partners and {SUITES[partner].kind.name for partner in partners} == {SUITES[name].kind.name}


@needs_lm_eval
def test_the_command_prints_and_writes_the_table(
    tiny_model: Path, tmp_path: Path, write_rows: Callable[[Path, list[dict[str, Any]]], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A model against itself: no change anywhere, and home and shift are read from their own files."""
    (tmp_path / "nli").mkdir()
    labels = ["entailment", "neutral", "contradiction"] * 2
    for name in ("snli_1k", "mnli_matched_1k", "breaking_nli_3k"):
        rows = [
            {"id": f"{name}{i}", "premise": f"tea {i}", "hypothesis": "rope", "label": label}
            for i, label in enumerate(labels)
        ]
        lines = write_rows(tmp_path / f"{name}.jsonl", rows).read_bytes()
        (tmp_path / "nli" / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines))
    out = tmp_path / "table.json"
    arguments = [str(tiny_model), str(tiny_model), "--data", str(tmp_path), "--tasks", "NLI", "--limit", "4"]
    assert standard_tasks.main([*arguments, "--out", str(out)]) == 0
    assert "breaking_nli" in capsys.readouterr().out
    table = json.loads(out.read_text())
    assert [(row["suite"], row["role"]) for row in table["rows"] if row["metric"] == "accuracy"] == [
        ("snli", "ID"), ("mnli_matched", "paired shift"), ("breaking_nli", "paired shift"),
    ]  # fmt: skip
    assert {row["items"] for row in table["rows"]} == {4}
    assert {row["change"]["estimate"] for row in table["rows"]} == {0}
    assert table["models"]["before"]["fingerprint"] == table["models"]["after"]["fingerprint"]
    assert standard_tasks.main([*arguments[:-4], "--tasks", "tea"]) == 2
    assert "no standard task 'tea'" in capsys.readouterr().err
