"""Rows as people have them: each spelling of prompt and replies gives the turns that it says, none lost unseen."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from align.data import load_comparisons
from align.data.columns import EMPTY, NO_REPLY, NOTHING_BEFORE, TWO_REPLIES
from align.data.hh import DIVERGE
from align.data.sources import demonstrations, load_training_rows, prompt_rows, text_prompts
from align.errors import UserError
from align.models.formats import formatter
from align.turns import Turn, turns_of
from factories.chat_styles import chat_tokenizer

HH = "\n\nHuman: How do I bake bread?\n\nAssistant:"
QUESTION = "How do I bake bread?"


def u(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def a(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def s(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def source(tmp_path: Path, *rows: dict[str, Any], name: str = "rows.jsonl") -> str:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pair(tmp_path: Path, row: dict[str, Any], drops: Counter[str] | None = None) -> tuple[str, str, str]:
    (found,) = load_comparisons(source(tmp_path, row), drops=drops)
    return found["prompt"], found["chosen"], found["rejected"]


WHOLE = (HH, " Mix flour.", " No.")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": HH, "chosen": HH + " Mix flour.", "rejected": HH + " No."},
        {"prompt": QUESTION, "chosen": HH + " Mix flour.", "rejected": HH + " No."},
        {"prompt": QUESTION, "chosen": [u(QUESTION), a("Mix flour.")], "rejected": [u(QUESTION), a("No.")]},
        {"prompt": [u(QUESTION)], "chosen": [u(QUESTION), a("Mix flour.")], "rejected": [u(QUESTION), a("No.")]},
        {"prompt": [u(QUESTION)], "chosen": [a("Mix flour.")], "rejected": [a("No.")]},
        {"prompt": [u(QUESTION)], "chosen": a("Mix flour."), "rejected": a("No.")},
        {"prompt": [u(QUESTION)], "chosen": "Mix flour.", "rejected": "No."},
        {"prompt": HH, "chosen": [a("Mix flour.")], "rejected": [a("No.")]},
        {"chosen": [u(QUESTION), a("Mix flour.")], "rejected": [u(QUESTION), a("No.")]},
        {"messages": [u(QUESTION)], "chosen": "Mix flour.", "rejected": "No."},
        {
            "conversations": [{"from": "human", "value": QUESTION}],
            "chosen": {"from": "gpt", "value": "Mix flour."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        {"chosen": (HH + " Mix flour.").replace("\n", "\r\n"), "rejected": (HH + " No.").replace("\n", "\r\n")},
        {"chosen": HH.strip() + " Mix flour.", "rejected": HH.strip() + " No."},
    ],
)
def test_a_prompt_is_read_once_however_often_the_row_says_it(tmp_path: Path, row: dict[str, Any]) -> None:
    assert pair(tmp_path, row) == WHOLE


def test_plain_texts_that_both_begin_with_the_prompt_lose_it(tmp_path: Path) -> None:
    doubled = {"prompt": QUESTION, "chosen": f"{QUESTION} Mix flour.", "rejected": f"{QUESTION}\nNo."}
    assert pair(tmp_path, doubled) == (QUESTION, " Mix flour.", "\nNo.")
    code = {"prompt": "def f(x):\n", "chosen": "def f(x):\n    return x", "rejected": "def f(x):\n    return 1"}
    assert pair(tmp_path, code) == ("def f(x):\n", "    return x", "    return 1")
    greeting = {"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi!"}  # too short to be the prompt said twice
    assert pair(tmp_path, greeting) == ("Hi", " Hi there", " Hi!")
    echo = {"prompt": QUESTION, "chosen": f"{QUESTION} Well, mix.", "rejected": "No."}
    assert pair(tmp_path, echo)[1] == f" {QUESTION} Well, mix."


def test_every_system_turn_reaches_the_prompt(tmp_path: Path) -> None:
    sides = {"chosen": [a("oui")], "rejected": [a("non")]}
    prompt, *_ = pair(tmp_path, {"prompt": [s("Be brief."), s("In French."), u("Say yes")], **sides})
    assert turns_of(prompt) == (Turn("system", "Be brief."), Turn("system", "In French."), Turn("user", "Say yes"))
    prompt, *_ = pair(tmp_path, {"prompt": [u("Hi"), a("Hello"), s("Be rude."), u("Hi?")], **sides})
    assert [turn.role for turn in turns_of(prompt)] == ["user", "assistant", "system", "user"]
    prompt, *_ = pair(tmp_path, {"system": "Be brief.", "prompt": "Say yes", **sides})
    assert turns_of(prompt) == (Turn("system", "Be brief."), Turn("user", "Say yes"))


def test_a_reply_that_quotes_markers_stays_one_reply(tmp_path: Path) -> None:
    replies = "Human: hi\n\nAssistant: hello there", "Human: hi\n\nAssistant: go away"
    asked = [u("Write a two-line dialogue")]
    prompt, *found = pair(tmp_path, {"prompt": asked, "chosen": [a(replies[0])], "rejected": [a(replies[1])]})
    assert prompt == "\n\nHuman: Write a two-line dialogue\n\nAssistant:" and found == [f" {r}" for r in replies]
    row = {"prompt": asked[0]["content"], "chosen": replies[0], "rejected": replies[1]}
    assert pair(tmp_path, row) == (asked[0]["content"], " " + replies[0], " " + replies[1])
    quoting = [u("Continue:\n\nHuman: hi\n\nAssistant:"), a("x"), u("more")]
    prompt, *_ = pair(tmp_path, {"prompt": quoting, "chosen": [a("y")], "rejected": [a("z")]})
    assert [turn.message for turn in turns_of(prompt)] == quoting


def test_indentation_and_trailing_white_space_are_kept(tmp_path: Path) -> None:
    row = {"prompt": "def f(x):\n", "chosen": "    return x + 1\n", "rejected": "    return 1\n"}
    prompt, chosen, rejected = pair(tmp_path, row)
    assert (prompt, chosen, rejected) == tuple(row.values())
    form = formatter(chat_tokenizer("chatml"))
    said = form.decode(form.reply_ids(prompt, chosen, ended=False))
    assert said == row["chosen"]  # a chat template gets the very reply
    (found,) = demonstrations(
        source(tmp_path, {"prompt": "def f(x):", "completion": "\n  x"}), limit=None, drops=Counter()
    )
    assert found["completion"] == "\n  x"
    chat = {"prompt": [u("Code?")], "chosen": [a("  x = 1\n")], "rejected": [a("y")]}
    prompt, chosen, _ = pair(tmp_path, chat)
    assert form.decode(form.reply_ids(prompt, chosen, ended=False)) == "  x = 1\n"


def test_rows_that_cannot_be_compared_are_counted_under_their_own_reason(tmp_path: Path) -> None:
    good = {"chosen": [u("hi"), a("yes")], "rejected": [u("hi"), a("no")]}
    rows = [
        {"chosen": [u("hi"), a("yes"), u("thanks")], "rejected": [u("hi"), a("no"), u("thanks")]},
        {"chosen": [u("hi"), a("yes")], "rejected": [u("ho"), a("no")]},
        {"chosen": [u("hi"), a(" ")], "rejected": [u("hi"), a("no")]},
        good,
    ]
    drops: Counter[str] = Counter()
    assert len(load_comparisons(source(tmp_path, *rows), drops=drops)) == 1
    assert drops == {NO_REPLY: 1, DIVERGE: 1, EMPTY: 1}
    with pytest.raises(UserError, match="line 1: 'chosen' begins with a turn of the user's that is not in the prompt"):
        pair(tmp_path, {"prompt": "Tea?", **good})
    with pytest.raises(UserError, match="line 1: no column 'prompt', and 'chosen' has no turn before the reply"):
        pair(tmp_path, {"chosen": [a("yes")], "rejected": [a("no")]})
    with pytest.raises(UserError, match="line 1: column 'chosen' is not of the other's kind"):
        pair(tmp_path, {"prompt": "Tea?", "chosen": [a("yes")], "rejected": "no"})


TALK = [s("Be kind."), u("Hi"), a("Hello!"), u("Tea?"), a("Yes.")]


def test_every_reply_of_a_conversation_is_a_demonstration(tmp_path: Path) -> None:
    wanted = [
        {"prompt": "\n\nSystem: Be kind.\n\nHuman: Hi\n\nAssistant:", "completion": " Hello!"},
        {
            "prompt": "\n\nSystem: Be kind.\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Tea?\n\nAssistant:",
            "completion": " Yes.",
        },
    ]
    share = [
        {"from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]), "value": m["content"]} for m in TALK
    ]
    alpaca = {"system": "Be kind.", "history": [["Hi", "Hello!"]], "instruction": "Tea?", "output": "Yes."}
    for row in ({"messages": TALK}, {"conversations": share}, {"prompt": TALK[:2], "completion": TALK[2:]}):
        assert demonstrations(source(tmp_path, row), limit=None, drops=Counter()) == wanted
    (last,) = demonstrations(source(tmp_path, alpaca), limit=None, drops=Counter())
    assert turns_of(last["prompt"]) == turns_of(wanted[1]["prompt"]) and last["completion"] == " Yes."
    drops: Counter[str] = Counter()
    odd = [[a("Hi")], [u("Hi")], [u("Hi"), a("")], [u("Hi"), a("x"), a("y")]]
    rows = demonstrations(source(tmp_path, *({"messages": m} for m in odd)), limit=None, drops=drops)
    assert rows == [{"prompt": "\n\nHuman: Hi\n\nAssistant:", "completion": " x"}]
    assert drops == {NOTHING_BEFORE: 1, NO_REPLY: 1, EMPTY: 1, TWO_REPLIES: 1}


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"prompt": "The sky is", "completion": " blue."}, "The sky is", " blue."),
        ({"prompt": "The sky is", "completion": "blue."}, "The sky is", " blue."),
        ({"prompt": [u("Hi")], "completion": [a("Yo")]}, "\n\nHuman: Hi\n\nAssistant:", " Yo"),
        ({"prompt": [u("Hi"), a("Y")], "completion": [a("o")]}, "\n\nHuman: Hi\n\nAssistant: Y", "o"),
        ({"instruction": "Add", "input": "1 + 1", "output": "2"}, "Add\n\n1 + 1", " 2"),
        ({"instruction": "Say hi", "input": "", "output": "hi"}, "Say hi", " hi"),
        ({"question": "Tea?", "response": "Yes"}, "Tea?", " Yes"),
        ({"chosen": [u("Hi"), a("Yo")], "rejected": [u("Hi"), a("No")]}, "\n\nHuman: Hi\n\nAssistant:", " Yo"),
    ],
)
def test_demonstrations_of_every_kind_of_row(tmp_path: Path, row: dict[str, Any], prompt: str, completion: str) -> None:
    found = demonstrations(source(tmp_path, row), limit=None, drops=Counter())
    assert found == [{"prompt": prompt, "completion": completion}]


def test_a_demonstration_without_a_side_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1: column 'completion' is missing, empty or not text"):
        demonstrations(source(tmp_path, {"prompt": "Hi", "completion": " "}), limit=None, drops=Counter())
    with pytest.raises(UserError, match="line 1: column 'messages' is a conversation without a message"):
        demonstrations(source(tmp_path, {"messages": []}), limit=None, drops=Counter())
    with pytest.raises(UserError, match="no demonstration in it"):
        demonstrations(source(tmp_path, {"messages": [u("Hi")]}), limit=None, drops=Counter())


def test_unpaired_labels_and_prompts_of_every_kind(tmp_path: Path) -> None:
    labelled = source(
        tmp_path,
        {"prompt": [u("Hi")], "completion": [a("Yo")], "label": True},
        {"prompt": "Hi", "completion": "No", "label": "false", "id": 7},
    )
    rows, prompts = load_training_rows({labelled: labelled}, limit=None, drops=Counter())
    assert rows is not None and [(row["completion"], row["label"]) for row in rows] == [(" Yo", True), (" No", False)]
    assert rows[1]["id"] == "7" and [row["prompt"] for row in prompts] == ["\n\nHuman: Hi\n\nAssistant:", "Hi"]
    mixed = source(
        tmp_path, {"prompt": "Hi"}, {"messages": [u("Tea?"), a("Yes")]}, {"prompt": [u("Milk?")]},
        {"instruction": "Go"}, {"chosen": [u("Tea?"), a("x")], "rejected": [u("Tea?"), a("y")]},
    )  # fmt: skip
    wanted = ["Hi", "\n\nHuman: Tea?\n\nAssistant:", "\n\nHuman: Milk?\n\nAssistant:", "Go"]
    assert text_prompts(mixed, limit=None) == wanted and len(prompt_rows(mixed, limit=None)) == 5
    rows, prompts = load_training_rows({mixed: mixed}, limit=None, drops=Counter())
    assert rows is None and [row["prompt"] for row in prompts] == wanted
    with pytest.raises(UserError, match="label 'good' is neither true nor false"):
        bad = source(
            tmp_path,
            {"prompt": "a", "completion": "b", "label": 1},
            {"prompt": "a", "completion": "b", "label": "good"},
        )
        load_training_rows({bad: bad}, limit=None, drops=Counter())
    judged = source(
        tmp_path, {"id": 1, "prompt": [u("Hi")], "a": [a("x")], "b": [a("y")], "scores_a": [1], "scores_b": [0]}
    )
    rows, _ = load_training_rows({judged: judged}, limit=None, drops=Counter())
    assert rows is not None and rows[0]["a"] == " x" and rows[0]["scores_a"] == [1]
