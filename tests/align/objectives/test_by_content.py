"""Scores by content: what is asked once, what is kept over processes, columns found by prompt; and the verifiers."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from align.data.sources import columns_by_prompt
from align.errors import Outage, UserError
from align.objectives import Negated, Normalized, ZScore
from align.objectives.by_content import FromRows, Scores, columns_needed, columns_read, objectives_of
from align.objectives.functions import function
from align.objectives.verifiers import VERIFIERS, Verifier, json_in, verifier


class Counting:
    """Length of the reply and of the hint, two contents at a time; `fails` is the batch at which the server is away."""

    learned, batch, identity = True, 2, "counting"
    parts: tuple[str, ...] = ("reply", "hint")
    columns: tuple[str, ...] = ("hint",)
    optional: tuple[str, ...] = ()

    def __init__(self, fails: int = -1) -> None:
        self.asked: list[list[str]] = []
        self.fails = fails

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[Scores]:
        if len(self.asked) == self.fails:
            raise Outage("the server is away")
        self.asked.append(list(completions))
        return [
            (float(len(c)), None if h is None else float(len(h)))
            for c, h in zip(completions, columns["hint"], strict=True)
        ]

    def check(self, table: object) -> None:
        """Any value will do."""


def test_one_call_gives_every_part_and_equal_contents_are_asked_once() -> None:
    scorer = Counting()
    reply, hint = objectives_of(scorer, name="n")
    assert (reply.__name__, hint.__name__) == ("n.reply", "n.hint")
    texts = {"prompts": ["p", "p", "p", "q"], "completions": ["a", "bb", "a", "a"]}
    assert reply(**texts, hint=["h", "h", "h", None]) == [1.0, 2.0, 1.0, 1.0]
    assert scorer.asked == [["a", "bb"], ["a"]]  # the prompt is part of the content
    assert hint(**texts, hint=["h", "h", "h", None]) == [1.0, 1.0, 1.0, None]  # None stays None
    assert scorer.asked == [["a", "bb"], ["a"]]
    assert reply(["p"], ["a"], hint=["other"]) == [1.0] and len(scorer.asked) == 3  # a column, too
    with pytest.raises(UserError, match="objective n reads a column 'hint'"):
        reply(["p"], ["a"])


def test_what_is_kept_on_disk_outlives_the_process_and_an_outage(tmp_path: Path) -> None:
    def scored(scorer: Counting, count: int) -> list[float | None]:
        objective = objectives_of(scorer, name="n", folder=tmp_path)[0]
        return objective(["p"] * count, ["x" * (i + 1) for i in range(count)], hint=["h"] * (count - 1) + [None])

    with pytest.raises(Outage):
        scored(Counting(fails=1), 5)
    file = tmp_path / "counting.jsonl"
    assert len(file.read_text().splitlines()) == 2  # the first batch was kept
    file.write_text(file.read_text() + '{"key": "cut in the mid')
    again = Counting()
    assert scored(again, 5) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert again.asked == [["xxx", "xxxx"], ["xxxxx"]]
    last = Counting()
    assert scored(last, 5)[-1] == 5.0 and last.asked == [["xxxxx"]]  # a score was missing there: asked again
    lines = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    assert len(lines) == 4 and all(set(line) == {"key", "scores"} for line in lines)


def test_columns_are_found_by_the_prompt_through_every_wrapper() -> None:
    part = objectives_of(Counting(), name="n")[1]
    wrapped = Normalized(Negated(part, name="n"), ZScore(mean=-1.0, std=2.0, n=9))
    assert columns_read(wrapped) == ("hint",)
    found = FromRows(wrapped, {"hint": {"p": "hhh", "q": "h"}, "other": {}})
    assert found(["p", "q", "none"], ["a", "b", "c"]) == [-1.0, 0.0, None]
    assert found(["p"], ["a"], hint=["hhhhh"]) == [-2.0]  # what is given wins
    assert found.__name__ == "n" and found.learned is False
    assert pickle.loads(pickle.dumps(found))(["p"], ["a"]) == [-1.0]


FUNCTIONS = """
def hinted(completions, hint="none"):
    return [float(len(h)) for h in hint] if isinstance(hint, list) else [-1.0] * len(completions)

def drawn(completions, completion_ids):
    return [float(len(ids)) for ids in completion_ids]

def broken(completions):
    return [1 / 0]
"""


def test_a_function_gets_optional_columns_where_rows_have_them_and_what_was_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f.py").write_text(FUNCTIONS)
    Path("with.jsonl").write_text('{"prompt": "p", "hint": "hhh"}\n{"prompt": "q", "hint": "h"}\n')
    Path("without.jsonl").write_text('{"prompt": "p"}\n')
    (hinted,) = function("f.py:hinted", name="f")
    (drawn,) = function("f.py:drawn", name="g")
    assert columns_read(hinted) == ("hint",) and columns_needed(hinted) == () == columns_read(drawn)

    def found(file: str) -> Any:
        table = columns_by_prompt({"rows": file}, columns_read(hinted), optional=columns_read(hinted))
        return FromRows(hinted, table)(["p"], ["a"])

    assert (found("with.jsonl"), found("without.jsonl")) == ([3.0], [-1.0])
    with pytest.raises(UserError, match="no row has a column 'hint'"):
        columns_by_prompt({"rows": "without.jsonl"}, ["hint"])
    assert FromRows(drawn, {})(["p"], ["a"], completion_ids=[[1, 2]]) == [2.0]
    with pytest.raises(UserError, match="g reads completion_ids, and these replies have their text alone"):
        drawn(["p"], ["a"])
    with pytest.raises(UserError, match=r"f\.py:broken failed \(line 9: ZeroDivisionError"):  # a relative path, too
        function("f.py:broken", name="h")[0](["p"], ["a"])


@pytest.mark.parametrize(
    ("argument", "column", "replies", "references", "scores"),
    [
        ("exact_match", "answer", [" yes ", "no", "x"], ["yes", "yes", None], [1.0, 0.0, None]),
        ("exact_match@gold", "gold", ["b", "c"], [["a", "b"], ["a", "b"]], [1.0, 0.0]),
        ("number", "answer", ["so 12", "13"], ["6 + 6\n#### 12", 12], [1.0, 0.0]),
        ("maths", "answer", ["\\boxed{1/2}", "2"], ["0.5", "0.5"], [1.0, 0.0]),
        ("regex", "answer", ["ab12", "ab"], [r"\d+$", r"\d+$"], [1.0, 0.0]),
        (r"regex=a=\d", None, ["a=1", "a=b"], None, [1.0, 0.0]),
        ("json", None, ["[1]", "[1"], None, [1.0, 0.0]),
        ("json@answer", "answer", ["[1, 2]", "[2]"], ["[1,2]", [[1]]], [1.0, 0.0]),
        ("exact_match", "answer", ["<think>no</think> yes"], ["yes"], [1.0]),
    ],
)
def test_verifiers(argument: str, column: str | None, replies: list[str], references: Any, scores: list[Any]) -> None:
    (objective,) = verifier(argument, name="v")
    given = {} if column is None else {column: references}
    assert objective(["p"] * len(replies), replies, **given) == scores
    assert columns_read(objective) == (() if column is None else (column,))


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("exakt", "no verifier 'exakt'; choose from exact_match, number, maths, regex, json"),
        ("number@", "names no column"),
        ("regex=(", "no regular expression"),
    ],
)
def test_faulty_verifiers(argument: str, says: str) -> None:
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        verifier(argument, name="v")


def test_references_are_checked_before_any_reply_is() -> None:
    (objective,) = verifier("number", name="v")
    with pytest.raises(UserError, match=r"'many' has no number in it.*prompt 'how many\?'"):
        FromRows(objective, {"answer": {"how?": "3", "how many?": "many"}})
    assert set(VERIFIERS) == {"exact_match", "number", "maths", "regex", "json"}
    with pytest.raises(UserError, match="needs a reference"):
        Verifier("number", column=None)


def test_json_in_a_reply() -> None:
    assert json_in(' {"a": [1, 2]} ') == (True, {"a": [1, 2]})
    assert json_in('Here:\n```json\n{"a": 1}\n```\nand\n```\n[2]\n```') == (True, [2])
    assert json_in("{'a': 1}") == (False, None) and json_in("") == (False, None)
