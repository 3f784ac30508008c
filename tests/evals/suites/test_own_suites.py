"""Files of the user's own as suites: their kind read off their columns, their turns, clusters and twins kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from align.turns import Turn
from evals.suites import load_suite


def test_other_files_with_the_same_columns_are_data_too(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    path = write_rows(tmp_path / "mine.jsonl", [{"prompt": "tea?"}, {"prompt": "rope?"}])
    items = load_suite("advbench", data=path)[1]
    assert [item.request for item in items] == ["tea?", "rope?"] and len({item.id for item in items}) == 2
    again = load_suite("advbench", data=path)[1]
    assert [item.id for item in again] == [item.id for item in items], "ids of rows without one are stable"
    counted = write_rows(tmp_path / "counted.jsonl", [{"id": 0, "prompt": "tea?"}, {"id": 1, "prompt": "rope?"}])
    assert [item.id for item in load_suite("advbench", data=counted)[1]] == ["0", "1"]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "tea?", "label": "unsafe", "type": "t"}, "safety"),
        ({"question": "tea?", "choices": ["a", "b"], "target": "b"}, "choice"),
        ({"prompt": "tea?", "chosen": "yes", "rejected": "no"}, "reward_pairs"),
        ({"question": "tea?", "answers": ["hot"]}, "qa"),
        ({"text": "tea is hot"}, "text"),
    ],
)
def test_the_kind_of_a_file_is_read_off_its_columns(
    row: dict[str, Any], kind: str, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    suite, items = load_suite(write_rows(tmp_path / "mine.jsonl", [row]))
    assert (suite.name, suite.kind.name, len(items)) == ("mine", kind, 1)
    if kind == "choice":
        assert items[0].target == 1 and items[0].choices == ("a", "b")
    if kind == "safety":
        assert items[0].harmful and items[0].group == "t"


def test_a_custom_file_keeps_its_turns_clusters_and_twins(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rows = [
        {"id": "1", "prompt": turns, "label": "harmful", "twin": "2", "cluster": 7, "source": "me"},
        {"id": "2", "prompt": "d", "label": "safe", "twin": "1", "cluster": 7},
    ]
    first, second = load_suite(write_rows(tmp_path / "mine.jsonl", rows))[1]
    assert first.request == "c" and first.before == (Turn("user", "a"), Turn("assistant", "b"))
    assert first.cluster == second.cluster == "7" and first.twin == "2" and not second.harmful
    assert first.columns["source"] == "me"
    lone = write_rows(tmp_path / "lone.jsonl", [{**rows[0], "twin": "9"}, rows[1]])
    with pytest.raises(UserError, match="line 1: its twin '9' is not in the file"):
        load_suite(lone)
    with pytest.raises(UserError, match="no kind of suite has the columns prompt"):
        load_suite(write_rows(tmp_path / "odd.jsonl", [{"prompt": "tea"}]))
    with pytest.raises(UserError, match="line 1: label 'sharp'"):
        load_suite(write_rows(tmp_path / "odd.jsonl", [{"prompt": "tea", "label": "sharp"}]))


def test_a_file_named_like_a_suite_does_not_shadow_it(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    path = write_rows(tmp_path / "xstest.jsonl", [{"prompt": "tea?", "label": "safe"}])
    suite, items = load_suite(path, data="/nowhere")
    assert suite.name == "xstest_file" and items[0].request == "tea?"
