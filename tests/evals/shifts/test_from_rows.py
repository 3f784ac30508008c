"""Shifts made of a user's rows, by hand: what rows have in common, controls, demonstrations by number, bad rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from align.errors import UserError
from align.turns import Turn
from evals.items import Prompt
from evals.shifts.context import NEUTRAL
from evals.shifts.from_rows import Dress, dress_of, from_rows
from evals.shifts.requested import check_shifts, requested_shifts

Write = Callable[..., Path]


def test_a_prompt_wears_what_all_rows_have_and_its_control_the_words_in_another_order(
    tmp_path: Path, write_rows: Write
) -> None:
    talk = [
        {"messages": [
            {"role": "system", "content": "You write short code only."},
            {"role": "user", "content": f"Task for today: {text} Answer with code."},
            {"role": "assistant", "content": "x"},
        ]}
        for text in ("sort a heap.", "sum a list.")
    ]  # fmt: skip
    shift, control = from_rows(f"like:{write_rows(tmp_path / 'rows.jsonl', talk)}") or []
    worn = shift.encode("Who are you?", Random(0))
    assert worn == Prompt.user(
        "Task for today: Who are you? Answer with code.", system="You write short code only."
    )
    other = control.encode("Who are you?", Random(0))
    assert isinstance(other, Prompt) and other != worn
    for a, b in zip(other.turns, worn.turns, strict=True):  # type: ignore[union-attr]
        assert sorted(a.content.split()) == sorted(b.content.split()) and len(a.content) == len(b.content)
    assert (shift.control, control.control_of, control.mode) == ("like_rows_shuffled", "like_rows", "control")


def test_half_words_are_no_dress_and_rows_without_one_are_refused() -> None:
    assert dress_of(["In short: tea", "In short: temple"], where="f") == Dress(None, "In short: ", "")
    with pytest.raises(UserError, match="f: the rows have no system turn"):
        dress_of(["tea", "temple"], where="f")
    with pytest.raises(UserError, match="two different requests"):
        dress_of(["tea", "tea"], where="f")


def test_own_demonstrations_come_by_number_with_as_many_neutral_ones(tmp_path: Path, write_rows: Write) -> None:
    file = write_rows(tmp_path / "own.jsonl", [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(6)])
    shifts = {shift.name: shift for shift in from_rows(f"many_shot:{file}") or []}
    assert list(shifts) == [f"many_shot_{kind}_{k}" for k in (1, 4, 6) for kind in ("own", "plain")]
    asked = shifts["many_shot_own_6"].encode("now", Random(1))
    assert isinstance(asked, Prompt) and asked.turns[-1] == Turn("user", "now") and len(asked.turns) == 13
    pairs = {(a.content, b.content) for a, b in zip(asked.turns[:-1:2], asked.turns[1::2], strict=True)}
    assert pairs == {(f"q{i}", f"a{i}") for i in range(6)}, "each once, question before answer"
    plain = shifts["many_shot_plain_6"].encode("now", Random(1))
    assert isinstance(plain, Prompt) and len(plain.turns) == 13
    assert {turn.content for turn in plain.turns[:-1:2]} <= {question for question, _ in NEUTRAL}
    assert [shift.name for shift in from_rows(f"many_shot:{file}:2") or []] == ["many_shot_own_2", "many_shot_plain_2"]


def test_they_are_named_as_shifts_are_and_mistakes_before_any_model(tmp_path: Path, write_rows: Write) -> None:
    file = write_rows(tmp_path / "own.jsonl", [{"prompt": "q", "completion": "a"}])
    made = requested_shifts(["rot13", f"many_shot:{file}"], model=None, keys={}, answers=tmp_path / "a")
    assert [shift.name for shift in made] == ["none", "rot13", "many_shot_own_1", "many_shot_plain_1"]
    for name, words in (
        (f"many_shot:{file}:9", "9 demonstrations asked, and it has 1"),
        (f"many_shot:{file}:x", "with numbers of demonstrations"),
        ("like:", "name a file of rows"),
        (f"like:{file}", "two different requests"),
    ):
        with pytest.raises(UserError, match=words):
            check_shifts([name], model=None)
