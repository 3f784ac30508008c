"""Replies to imitate, and the comparisons made of them: turns, what is left out and counted, who is rejected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from align.data.real import contrasts_of, full_sentences, load_demonstrations


def test_objectives_take_turns_and_what_is_left_out_is_counted(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    safe = [{"instruction": f"{a}?", "output": "no"} for a in "abe"]
    write_rows(tmp_path / "safe.jsonl", safe)
    kind = [{"prompt": "c?", "completion": "yes"}, {"prompt": "d" * 50, "completion": "y"}]
    write_rows(tmp_path / "kind.jsonl", kind)
    files = {"helpful": "kind.jsonl", "harmless": "safe.jsonl"}
    rows, drops = load_demonstrations(str(tmp_path), files=files, limit=None, max_characters=20)
    assert [(row["objective"], row["prompt"]) for row in rows] == [("helpful", "c?"), ("harmless", "a?")]
    assert drops == {"longer than max_characters": 1, "more than another objective has": 2}


def test_a_demonstration_is_chosen_over_the_models_own_reply_or_over_that_of_the_next_objective() -> None:
    rows = [
        {"id": i, "objective": name, "prompt": f"{i}?", "completion": f" {i}."}
        for i, name in (("a", "helpful"), ("b", "harmless"), ("c", "helpful"), ("d", "harmless"))
    ]
    made = contrasts_of(rows, own={"a": "Mine.", "b": "b."})  # the model's own reply to b is the demonstration
    assert [(row["id"], row["chosen"], row["rejected"]) for row in made] == [
        ("a", " a.", " Mine."), ("c", " c.", " d."), ("d", " d.", " c."),
    ]  # fmt: skip


def test_full_sentences() -> None:
    assert full_sentences("One. Two! Thr") == "One. Two!"
    assert full_sentences("version 1.5 of") == "version 1.5 of"
    assert full_sentences("a line\nand") == "a line"
