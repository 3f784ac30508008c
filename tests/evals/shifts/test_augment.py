"""Rows augmented by shifts: what a copy keeps, what is counted, and on which prompt it is judged."""

from __future__ import annotations

from collections import Counter

import pytest

from align.errors import UserError
from evals.shifts.augment import OnPlainPrompts, augmented, shifted_prompt, split_request

PROMPT = "\n\nHuman: Please Bake bread.\n\nAssistant:"
TWO_TURNS = "\n\nHuman: Hello.\n\nAssistant: Hi.\n\nHuman: How do I bake?\n\nAssistant:"
ROWS = [
    {"id": "1", "prompt": PROMPT, "chosen": " Yes.", "rejected": " No.", "objective": "helpful"},
    {"id": "2", "prompt": "\n\nHuman: bake\n\nAssistant:", "chosen": " A.", "rejected": " B.", "objective": "helpful"},
]


def test_the_last_request_of_a_transcript_is_shifted_and_the_rest_stays() -> None:
    from evals.shifts import SHIFTS

    assert split_request(TWO_TURNS) == ("\n\nHuman: Hello.\n\nAssistant: Hi.", "How do I bake?")
    upper = shifted_prompt(TWO_TURNS, shift=SHIFTS["uppercase"])
    assert upper == "\n\nHuman: Hello.\n\nAssistant: Hi.\n\nHuman: HOW DO I BAKE?\n\nAssistant:"
    assert shifted_prompt("How do I bake?", shift=SHIFTS["uppercase"]) == "HOW DO I BAKE?"
    assert shifted_prompt("x", shift=SHIFTS["evil_system_prompt"]).reason == "unsupported_system"


def test_copies_keep_labels_and_say_where_they_come_from() -> None:
    drops: Counter[str] = Counter()
    rows = augmented(ROWS, shifts=["lowercase", "uppercase"], drops=drops)
    assert rows[:2] == ROWS
    assert [row["id"] for row in rows[2:]] == ["1~lowercase", "1~uppercase", "2~uppercase"]
    copy = rows[2]
    assert copy["prompt"] == "\n\nHuman: please bake bread.\n\nAssistant:" and copy["plain_prompt"] == PROMPT
    assert (copy["chosen"], copy["rejected"], copy["objective"], copy["shift"]) == (
        " Yes.", " No.", "helpful", "lowercase",
    )  # fmt: skip
    assert drops == {"lowercase: unchanged": 1}  # the second request is in small letters as it is


def test_draws_depend_on_seed_prompt_and_shift_alone() -> None:
    long = [{"id": str(i), "prompt": PROMPT.replace("bread", "bread with seeds and a dark crust")} for i in range(2)]
    first, second = (augmented(long, shifts=["typos"], seed=3)[2 + i]["prompt"] for i in (0, 1))
    assert first == second
    assert augmented(long[1:], shifts=["leetspeak", "typos"], seed=3)[-1]["prompt"] == first
    assert augmented(long, shifts=["typos"], seed=4)[2]["prompt"] != first


def test_a_copy_is_judged_on_its_plain_prompt() -> None:
    rows = augmented(ROWS, shifts=["uppercase"])
    seen: list[str] = []

    def objective(prompts, completions, **columns):
        seen.extend(prompts)
        return [float(len(c)) for c in completions]

    judged = OnPlainPrompts(objective, rows)
    assert judged([rows[2]["prompt"], "other"], ["ab", "c"]) == [2.0, 1.0]
    assert seen == [PROMPT, "other"] and judged.__name__ == "objective"


def test_bad_shifts_are_refused() -> None:
    with pytest.raises(UserError, match="no shift 'leetspeek'; did you mean leetspeak"):
        augmented(ROWS, shifts=["leetspeek"])
    for name in ("none", "prefill_5"):
        with pytest.raises(UserError, match="makes no other prompt to train on"):
            augmented(ROWS, shifts=[name])
    with pytest.raises(UserError, match="'lowercase' applies to no row .lowercase: unchanged"):
        augmented(ROWS[1:], shifts=["lowercase"])
