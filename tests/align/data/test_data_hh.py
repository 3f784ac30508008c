"""Every form of a comparison comes out in one schema: exact prompt and completion texts, nothing left out unseen."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from align.data import load_comparisons
from align.data.columns import EMPTY
from align.data.hh import DIVERGE
from align.errors import UserError

TWO_TURNS = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Is tea hot?\n\nAssistant:"
OUT = {"prompt": TWO_TURNS, "chosen": " Yes.", "rejected": " No way."}


def read(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_comparisons(path, **options)


def texts(row: dict[str, Any]) -> dict[str, str]:
    return {key: row[key] for key in ("prompt", "chosen", "rejected")}


def test_both_transcript_forms_and_chat_messages_agree(tmp_path: Path) -> None:
    opening = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Is tea hot?"},
    ]
    chat = {
        key: [*opening, {"role": "assistant", "content": text}]
        for key, text in (("chosen", "Yes."), ("rejected", "No way."))
    }
    rows = read(
        tmp_path,
        {"prompt": TWO_TURNS, "chosen": "Yes. \n", "rejected": " No way."},
        {"chosen": TWO_TURNS + " Yes.", "rejected": TWO_TURNS + " No way."},
        chat,
        {"prompt": opening, "chosen": chat["chosen"][-1:], "rejected": chat["rejected"][-1:]},
    )
    assert [texts(row) for row in rows] == [OUT] * 4
    assert len({row["id"] for row in rows}) == 1  # the id of a row without one is a hash of its texts
    assert "objective" not in rows[0]


def test_replies_with_a_common_beginning_keep_it(tmp_path: Path) -> None:
    (row,) = read(tmp_path, {"chosen": TWO_TURNS + " I say yes", "rejected": TWO_TURNS + " I say no"})
    assert texts(row) == {"prompt": TWO_TURNS, "chosen": " I say yes", "rejected": " I say no"}


def test_transcripts_that_part_early_are_counted_or_refused(tmp_path: Path) -> None:
    parted = {
        "chosen": TWO_TURNS + " Yes.",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Oh!\n\nHuman: Tea?\n\nAssistant: No.",
    }
    at_once = {"chosen": "\n\nHuman: A\n\nAssistant: x", "rejected": "\n\nHuman: B\n\nAssistant: y"}
    empty = {"chosen": TWO_TURNS + " ", "rejected": TWO_TURNS + " No."}
    good = {"chosen": TWO_TURNS + " Yes.", "rejected": TWO_TURNS + " No way."}
    drops: Counter[str] = Counter()
    rows = read(tmp_path, parted, at_once, empty, good, drops=drops)
    assert [texts(row) for row in rows] == [OUT]
    assert drops == {DIVERGE: 2, EMPTY: 1}
    with pytest.raises(UserError, match=r"pairs\.jsonl line 1: the two transcripts diverge"):
        read(tmp_path, parted, good)


def test_plain_pairs(tmp_path: Path) -> None:
    plain = {"id": 7, "prompt": "explain bread :", "chosen": " sure f1", "rejected": "sorry", "objective": "help"}
    (row,) = read(tmp_path, plain)
    assert row == {
        "id": "7",
        "prompt": "explain bread :",
        "chosen": " sure f1",
        "rejected": " sorry",
        "objective": "help",
    }
    (row,) = read(tmp_path, plain, objective="harm", as_transcript=True)
    assert row["prompt"] == "\n\nHuman: explain bread :\n\nAssistant:"
    assert row["objective"] == "harm"
    (row,) = read(tmp_path, {**plain, "prompt": "Q: why?\nA:\n"})
    assert (row["chosen"], row["rejected"]) == (" sure f1", "sorry")  # white space already separates: kept as given


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, r"line 1: no column 'rejected'"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, r"line 1: empty completion in column 'chosen'; delete"),
        ({"prompt": "a", "chosen": "b", "rejected": " \n"}, r"line 1: empty completion in column 'rejected'"),
        ({"prompt": " ", "chosen": "b", "rejected": "c"}, r"line 1: empty prompt"),
        ({"chosen": "b", "rejected": "c"}, r"line 1: no column 'prompt'"),
        ({"prompt": "a", "chosen": ["b"], "rejected": ["c"]}, r"line 1: column 'chosen' is list; make it text"),
        ({"prompt": "a", "chosen": [], "rejected": ["c"]}, r"line 1: column 'chosen' is a conversation without a mess"),
        ({"prompt": "\n\nHuman: a", "chosen": "b", "rejected": "c"}, r"line 1: a transcript prompt must end with"),
        (
            {"chosen": [{"role": "tool", "content": "b"}], "rejected": [{"role": "user", "content": "c"}]},
            r"line 1: chat message with role 'tool'",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, row)


def test_real_rows(shared_data: Path) -> None:
    folder = shared_data / "hh_rlhf"
    rows = load_comparisons(folder / "harmless_base_test_multi_turn.jsonl.gz")
    assert len(rows) == 1361
    assert all(row["prompt"].startswith("\n\nHuman:") and row["prompt"].endswith("\n\nAssistant:") for row in rows)
    assert sum(row["prompt"].count("\n\nHuman:") > 1 for row in rows) > 700  # multi-turn is kept
    for row in rows:
        assert row["objective"] == "harmless"
        for key in ("chosen", "rejected"):
            assert row[key][0] == " " and row[key].strip() == row[key][1:]
