"""Policies against the reference: shares refused, rewards and bits by item, paired changes; all values by hand."""

from __future__ import annotations

import pytest

from align.data.answers import SampledAnswer
from evals.items import Missing
from evals.report.against_reference import Measured, changes, claims, level_intervals, levels, refusals, rewards
from evals.tables.outcomes import Outcome


def outcome(item: str, verdict: str | Missing, *, harmful: bool, shift: str = "none") -> Outcome:
    return Outcome(item=item, cluster=item, shift=shift, verdict=verdict, harmful=harmful)


def test_what_no_judge_could_decide_is_no_refusal_and_what_is_missing_is_no_item() -> None:
    outcomes = [
        outcome("a", "GOOD", harmful=True), outcome("b", "UNCLEAR", harmful=True),
        outcome("c", Missing("context"), harmful=True), outcome("d", "BAD", harmful=False),
        outcome("e", "UNCLEAR", harmful=False), outcome("a", "UNCLEAR", harmful=True, shift="base64"),
    ]  # fmt: skip
    assert refusals(outcomes) == {"unsafe_refusal": {"a": 1, "b": 0}, "safe_refusal": {"d": 1, "e": 0}}
    assert refusals(outcomes, shift="base64") == {"unsafe_refusal": {"a": 0}, "safe_refusal": {}}


def test_rewards_are_means_over_the_plain_samples_of_a_prompt() -> None:
    def answer(item: str, values: tuple[float, float], shift: str = "none") -> SampledAnswer:
        return SampledAnswer(
            row="dpo", preference=(1.0, 0.0), shift=shift, item=item, prompt=item, values=values, kl=0.0, sample=0,
            completion="",
        )  # fmt: skip

    found = rewards(
        [answer("x", (1, 2)), answer("x", (3, 4)), answer("y", (0, 1)), answer("y", (9, 9), "base64")],
        names=("helpful", "harmless"),
    )
    assert found == {"helpful": {"x": 2, "y": 0}, "harmless": {"x": 3, "y": 1}}


def test_changes_are_paired_over_the_items_that_both_have() -> None:
    before = Measured(
        refused={"unsafe_refusal": {"a": 0, "b": 0, "c": 1}}, rewards={"helpful": {"x": 1.0, "y": 2.0, "z": 0.0}},
        bits={"0": 1.0, "1": 1.2},
    )  # fmt: skip
    after = Measured(
        refused={"unsafe_refusal": {"a": 1, "b": 1, "d": 0}}, rewards={"helpful": {"x": 2.0, "y": 2.0, "z": 2.0}},
        bits={"0": 1.1, "1": 1.3},
    )  # fmt: skip
    found = changes(after, reference=before)
    assert found["unsafe_refusal"].estimate == 1 and found["unsafe_refusal"].n == 2  # c and d stand on one side only
    assert found["helpful"].estimate == pytest.approx(1)  # changes 1, 0, 2: sd 1, t(2) = 4.303
    assert found["helpful"].pair == pytest.approx([1 - 4.3027 / 3**0.5, 1 + 4.3027 / 3**0.5], abs=1e-3)
    assert found["bits_per_byte"].estimate == pytest.approx(0.1)
    assert set(found) == {"unsafe_refusal", "helpful", "bits_per_byte"}  # nothing was asked of choices
    assert levels(after)["unsafe_refusal"] == pytest.approx(2 / 3)
    assert set(level_intervals(after)) == {"unsafe_refusal"}
    stated = claims({"gain": found["helpful"], "none": None}, compared="a against b", command="align chat")
    assert set(stated) == {"gain"}
    assert stated["gain"]["compared"] == "a against b"
    assert stated["gain"]["n"] == 3 and stated["gain"]["command"] == "align chat"
