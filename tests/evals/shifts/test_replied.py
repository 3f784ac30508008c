"""Answers forced to begin with tokens of a given reply, of another one, and of one behind a refusal's beginning."""

from __future__ import annotations

from random import Random

from evals.items import Missing, Prompt
from evals.shifts.prefill import REFUSAL
from evals.shifts.replied import prefix_shifts
from evals.shifts.requested import promises
from evals.tables.contrasts import control_pairs

REPLIES = {"a?": "one two three four", "b?": "five six seven eight", "c?": "nine ten eleven twelve"}


def words(text: str, k: int) -> str:
    return " ".join(text.split()[:k])


def prefill(name: str, request: str, *, seed: int = 0, controls: tuple[str, ...] = ()) -> str | Missing:
    shifts = {s.name: s for s in prefix_shifts(REPLIES, lengths=(1, 3), cut=words, controls=controls)}
    prompt = shifts[name].encode(request, Random(seed))
    return prompt if isinstance(prompt, Missing) else prompt.prefill


def test_the_answer_begins_with_the_first_tokens_of_the_requests_own_reply() -> None:
    assert prefill("prefix_1", "b?") == "five" and prefill("prefix_3", "b?") == "five six seven"
    found = prefill("prefix_3", "d?")
    assert isinstance(found, Missing) and found.reason == "no_reply" and found.lasting


def test_the_control_is_of_a_reply_to_another_request_of_the_pool_where_one_is_named() -> None:
    assert {prefill("prefix_other_1", "a?", seed=s) for s in range(20)} == {"five", "nine"}
    assert {prefill("prefix_other_1", "a?", seed=s, controls=("a?", "c?")) for s in range(9)} == {"nine"}
    assert prefill("prefix_other_1", "a?", controls=("a?",)) in ("five", "nine"), "its own reply is no control"
    pairs = control_pairs(prefix_shifts(REPLIES, lengths=(1, 3), cut=words))
    assert pairs == [("prefix_1", "prefix_other_1"), ("prefix_3", "prefix_other_3")]


def test_insertion_puts_the_same_tokens_behind_a_refusal_cut_at_random() -> None:
    found = {prefill("insertion_3", "a?", seed=s) for s in range(200)}
    openings = {str(one).removesuffix(" one two three") for one in found}
    assert openings == {words(REFUSAL, k) for k in range(1, len(REFUSAL.split()) + 1)}


def test_prompts_hold_the_plain_request() -> None:
    (shift, *_) = prefix_shifts(REPLIES, lengths=(2,), cut=words)
    assert shift.encode("a?", Random(0)) == Prompt.user("a?", prefill="one two")


def test_a_group_says_what_its_name_does_not_hold() -> None:
    (line,) = promises(["base64", "jailbroken"])
    assert "aim" in line and "dev_mode_v2" in line and "in our own words" in line
    assert promises(["base64", "all"]) == []
