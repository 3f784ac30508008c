"""Conversations as text and back: nothing is lost, and a quoted marker is no border."""

from __future__ import annotations

import random

import pytest

from align.errors import UserError
from align.turns import JOINER, Turn, transcript, turns_from, turns_of

PIECES = ["\n", "\n\n", "Human:", "Assistant:", "System:", JOINER, " ", "  x", "tea"]


@pytest.mark.parametrize("seed", range(300))
def test_turns_come_back_from_their_transcript(seed):
    rng = random.Random(seed)
    turns = [
        Turn(rng.choice(["system", "user", "assistant"]), "".join(rng.choices(PIECES, k=rng.randrange(8))))
        for _ in range(rng.randint(1, 4))
    ]
    if turns[-1].role == "assistant" and not turns[-1].content.strip():
        turns.append(Turn("user", "x"))
    assert turns_of(transcript(turns)) == tuple(turns)


def test_a_transcript_is_that_of_hh():
    turns = (Turn("user", "hi"), Turn("assistant", "yes"), Turn("user", "tea?"))
    assert transcript(turns) == "\n\nHuman: hi\n\nAssistant: yes\n\nHuman: tea?\n\nAssistant:"
    assert transcript((Turn("user", "hi"), Turn("assistant", "Sure,")), open_reply=False).endswith("Assistant: Sure,")
    assert turns_of("def f(x):\n") == (Turn("user", "def f(x):\n"),)


def test_messages_of_other_formats_become_turns():
    assert turns_from([{"from": "human", "value": "hi"}], place="row 1") == (Turn("user", "hi"),)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert turns_from([{"role": "user", "content": parts}], place="row 1") == (Turn("user", "ab"),)
    with pytest.raises(UserError, match="row 1: chat message with role 'tool'"):
        turns_from([{"role": "tool", "content": "x"}], place="row 1")
    with pytest.raises(UserError, match="NoneType content"):
        turns_from([{"role": "user", "content": [{"type": "image"}]}], place="row 1")
