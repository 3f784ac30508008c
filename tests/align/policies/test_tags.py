"""What tags say: numbers that come back, in the last user turn of a prompt that is otherwise left alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from align.errors import UserError
from align.models.chat import OURS, FormatError
from align.policies.tagged import Tags
from align.turns import turns_of

NAMES = ("one", "two", "three", "four", "five")


def test_tags_read_as_written() -> None:
    tags = Tags(("helpful", "harmless"))
    assert tags.apply("explain it :", (0.31, 0.7)) == "<helpful: 0.3> <harmless: 0.7> explain it :"
    assert tags.apply("x", (1.0, 0.0)) == "<helpful: 1> <harmless: 0> x"


@pytest.mark.parametrize("objectives", range(1, 6))
@pytest.mark.parametrize(("low", "high", "levels"), [(0.0, 1.0, 10), (-2.4, 2.1, 20), (-1.0, 0.0, 7), (0.0, 5.0, 5)])
def test_numbers_come_back_for_any_number_of_objectives(objectives: int, low: float, high: float, levels: int) -> None:
    """Negative scores included; the numbers that come back are those that `rounded` promised."""
    tags = Tags(NAMES[:objectives], levels=levels, low=low, high=high)
    rng = np.random.default_rng(objectives)
    for values in rng.uniform(low - 1, high + 1, (20, objectives)).tolist():
        told = tags.apply("say: <one: 0.5> things", values)
        assert tags.strip(told) == "say: <one: 0.5> things"
        assert tags.values(told) == tags.rounded(values)
        for value, said in zip(values, tags.rounded(values), strict=True):
            assert abs(said - min(max(value, low), high)) <= (high - low) / levels / 2 + 1e-6
        assert tags.rounded(tags.rounded(values)) == tags.rounded(values)


@pytest.mark.parametrize(
    "prompt", ["i miss my person", " leading space", "", "ends in tags <one: 1> ", "### Response:", "\n\nHuman: hi"]
)
def test_ric_rstrip_bug_the_prompt_minus_its_tags_is_the_prompt(prompt: str) -> None:
    """RiC's code strips a character set off the prompt: "i miss my person" became "i miss my per"."""
    tags = Tags(("one", "two"), low=-1.0)
    told = tags.apply(prompt, (-0.5, 1.0))
    assert told.replace(tags.text((-0.5, 1.0)), "", 1) == prompt and tags.strip(told) == prompt
    assert tags.strip(tags.strip(tags.apply(told, (0.0, 0.0)))) == prompt  # one layer of tags at a time


def test_large_and_small_ranges_are_written_without_exponents() -> None:
    for low, high in ((0.0, 2e7), (0.0, 1e-4), (-3e6, 5e6)):
        tags = Tags(("one",), low=low, high=high)
        for value in (low, (low + high) / 2, high):
            assert "e" not in tags.text((value,)).removeprefix("<one")
            assert tags.values(tags.text((value,)))[0] == pytest.approx(value, abs=(high - low) / 20)


def test_negative_zero_is_zero() -> None:
    assert Tags(("one",), low=-1.0).text((-0.01,)) == "<one: 0> "


def test_free_objectives_are_said_to_be_free() -> None:
    tags = Tags(("one", "two"), levels=5, high=5.0, free=True)
    told = tags.apply("x :", (None, 0.0))
    assert told == "<one: any> <two: 0> x :"
    assert tags.values(told) == (None, 0.0) and tags.strip(told) == "x :"
    assert len(tags.vocabulary()) == 2 * 7
    with pytest.raises(UserError, match="None needs tags with free"):
        Tags(("one", "two")).text((None, 0.0))


def test_rounding_keeps_the_sum_of_two_weights() -> None:
    tags = Tags(("one", "two"))
    for i in range(101):
        assert sum(tags.rounded((i / 100, 1 - i / 100))) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": ()}, "tags need objectives"),
        ({"low": 1.0}, "low below high"),
        ({"high": math.inf}, "low below high"),
        ({"levels": 0}, "levels must be at least 1"),
        ({"names": ("two words",)}, "cannot stand in a tag"),
        ({"names": ("one", "one")}, "repeat a name"),
        ({"high": 1e-6, "levels": 10}, "cannot be told apart"),
    ],
)
def test_impossible_tags_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Tags(**{"names": ("one",), **fields})


def test_prompts_without_the_tags_are_refused() -> None:
    tags = Tags(("one", "two"))
    for prompt in ("x :", "<one: 0.5> x :", "<two: 0.5> <one: 0.5> x :", " <one: 0.5> <two: 0.5> x :"):
        with pytest.raises(UserError, match="does not begin with the tags"):
            tags.strip(prompt)
    with pytest.raises(UserError, match="3 numbers for the tags of 2"):
        tags.text((0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("\n\nHuman: hi\n\nAssistant: yo\n\nHuman: bye\n\nAssistant:",
         "\n\nHuman: hi\n\nAssistant: yo\n\nHuman: <one: 1> bye\n\nAssistant:"),
        ("\n\nSystem: be kind\n\nHuman:no space", "\n\nSystem: be kind\n\nHuman:<one: 1> no space"),
        ("\n\nHuman:  two spaces\n\nAssistant: Sure", "\n\nHuman: <one: 1>  two spaces\n\nAssistant: Sure"),
        ("so \n\nHuman: quoted", "<one: 1> so \n\nHuman: quoted"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("tokens", [False, True])
def test_tags_begin_the_last_user_turn(prompt: str, told: str, tokens: bool) -> None:
    """... as the turns see it: the content of that turn is the tags and the content that it had."""
    tags = Tags(("one",), tokens=tokens)
    assert tags.apply(prompt, (1.0,)).replace(OURS, "") == told
    before, after = turns_of(prompt), turns_of(tags.apply(prompt, (1.0,)))
    (place,) = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert after[place].content == tags.text((1.0,)) + before[place].content
    assert place == max(i for i, turn in enumerate(before) if turn.role == "user")
    assert tags.strip(tags.apply(prompt, (1.0,))) == prompt
    assert tags.values(tags.apply(prompt, (1.0,))) == (1.0,)


def test_a_prompt_without_a_user_turn_is_one_to_leave_out() -> None:
    with pytest.raises(FormatError, match="no user turn") as refused:
        Tags(("one",)).apply("\n\nSystem: be kind\n\nAssistant:", (1.0,))
    assert refused.value.reason == "no_user_turn"
    with pytest.raises(UserError, match="does not begin with the tags"):
        Tags(("one",)).values("\n\nHuman: <one: 1> hi\n\nAssistant:\n\nHuman: bye")
