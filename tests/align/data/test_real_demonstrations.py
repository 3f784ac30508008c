"""Replies to imitate from several files: in turn, long ones counted, ids that say where each came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from align.data.real import load_demonstrations


def test_sources_take_turns_and_long_rows_are_counted(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    write_rows(tmp_path / "safe.jsonl", [{"instruction": "a?", "output": "no"}, {"instruction": "b?", "output": "no"}])
    kind = [{"prompt": "c?", "completion": "yes"}, {"prompt": "d" * 50, "completion": "y"}]
    write_rows(tmp_path / "kind.jsonl", kind)
    rows, drops = load_demonstrations(str(tmp_path), files=("safe.jsonl", "kind.jsonl"), limit=None, max_characters=20)
    assert [(row["id"], row["prompt"]) for row in rows] == [("safe:0", "a?"), ("kind:0", "c?"), ("safe:1", "b?")]
    assert drops == {"longer than max_characters": 1}
    assert rows[0]["completion"].strip() == "no"
