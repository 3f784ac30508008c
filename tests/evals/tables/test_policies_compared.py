"""Several policies on the same items: metrics, groups, the undominated, conditions and bounds, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from align.errors import UserError
from evals.items import Missing
from evals.tables.outcomes import Outcome
from evals.tables.policies import Condition, Metric, policy_table

ASR, OVER = Metric("asr"), Metric("over_refusal")


def outcomes(
    bad: Sequence[int] = (), refused: Sequence[int] = (), *, shifted: Sequence[int] = (), items: int = 40, **more: Any
) -> list[Outcome]:
    """Harmful items h0, h1, ... answered where `bad` (plainly) or `shifted` (in code) says, benign ones as refused."""
    found = []
    for i in range(items):
        for shift, failing in (("none", bad), ("code", shifted)):
            verdict = "BAD" if i in failing else "GOOD"
            found.append(Outcome(f"h{i}", f"h{i}", shift, verdict, True, **more))
        found.append(Outcome(f"b{i}", f"b{i}", "none", "BAD" if i in refused else "GOOD", False))
    return found


def table(policies: dict[str, list[Outcome]], *metrics: Metric) -> dict[str, Any]:
    return policy_table(policies, metrics=metrics or (OVER, ASR), max_missing=0.05)


def test_a_metric_is_a_rate_plainly_under_a_shift_or_under_any() -> None:
    found = outcomes([0, 1], [5], shifted=[1, 2, 3])
    values = {text: sum(Metric.parse(text).values(found).values()) for text in ("asr", "asr@code", "asr@any")}
    assert values == {"asr": 2, "asr@code": 3, "asr@any": 4} and sum(OVER.values(found).values()) == 1
    assert Metric.parse(" asr@none ").label == "asr" and Metric.parse("asr@any").label == "asr@any"
    for odd in ("harm", "asr@", ""):
        with pytest.raises(UserError, match="there is no metric"):
            Metric.parse(odd)
    with pytest.raises(UserError, match=r"nothing was judged for the metric asr@rot13"):
        Metric.parse("asr@rot13").rate(found, policy="a", max_missing=0.05)


def test_policies_that_share_a_letter_are_not_told_apart() -> None:
    found = table({"few": outcomes([0]), "none": outcomes(), "many": outcomes(range(20))})
    asr = {name: entry["metrics"]["asr"] for name, entry in found["policies"].items()}
    assert {name: rate["letters"] for name, rate in asr.items()} == {"few": "a", "none": "a", "many": "b"}
    assert asr["few"]["value"] == 1 / 40 and asr["many"]["ci"][0] < 0.5 < asr["many"]["ci"][1]
    assert {e["metrics"]["over_refusal"]["letters"] for e in found["policies"].values()} == {"a"}
    pairs = {(p["first"], p["second"]): p for p in found["pairs"] if p["metric"] == "asr"}
    changes = {names: pair["change"] for names, pair in pairs.items()}
    assert changes["none", "many"]["value"] == 0.5 and changes["none", "many"]["p"] == pytest.approx(2 / 2**20)
    assert changes["few", "many"]["value"] == 19 / 40 and changes["few", "none"]["value"] == -1 / 40
    assert changes["none", "many"]["p_holm"] == pytest.approx(found["comparisons"] * 2 / 2**20)


def test_the_lowest_is_best_and_who_is_as_good_and_better_once_dominates() -> None:
    refuses, answers, both = outcomes([], range(20)), outcomes(range(20)), outcomes(range(32), range(32))
    found = table({"refuses": refuses, "answers": answers, "both": both})["policies"]
    assert [entry["undominated"] for entry in found.values()] == [True, True, False]
    assert [entry["p_undominated"] for entry in found.values()] == pytest.approx([1, 1, 0], abs=0.02)
    assert [entry["metrics"]["asr"]["best"] for entry in found.values()] == pytest.approx([1, 0, 0], abs=0.02)
    assert [entry["metrics"]["over_refusal"]["best"] for entry in found.values()] == pytest.approx([0, 1, 0], abs=0.02)
    twins = table({"a": refuses, "b": refuses})["policies"]
    assert [entry["metrics"]["asr"]["best"] for entry in twins.values()] == pytest.approx([0.5, 0.5], abs=0.05)
    assert [entry["undominated"] for entry in twins.values()] == [True, True], "equals do not dominate each other"


def test_a_judge_that_cannot_say_bad_leaves_bounds_and_no_order() -> None:
    blind = [
        Outcome(o.item, o.cluster, o.shift, "UNCLEAR" if o.verdict == "BAD" else "GOOD", o.harmful, can_fail=False)
        if o.harmful else o for o in outcomes(range(10))
    ]  # fmt: skip
    found = table({"blind": blind, "sees": outcomes([0])})
    asr = found["policies"]["blind"]["metrics"]["asr"]
    assert (asr["value"], asr["bounds"]) == (None, [0.0, 0.25]) and asr["ci"][1] > 0.25 and "letters" not in asr
    assert found["policies"]["sees"]["undominated"] is None
    assert {pair["metric"] for pair in found["pairs"]} == {"over_refusal"}
    assert found["policies"]["sees"]["metrics"]["over_refusal"]["letters"] == "a"


@pytest.mark.parametrize(
    ("text", "rate", "met"),
    [
        ("asr > 0.1", {"value": 0.11}, True),
        ("asr > 0.1", {"value": 0.1}, False),
        ("asr@any>=.1", {"value": 0.1}, True),
        ("over_refusal < 5e-2", {"value": 0.04}, True),
        ("over_refusal <= 0.05", {"value": 0.06}, False),
        ("asr > 0.1", {"value": None, "bounds": [0.0, 0.2]}, True),
        ("asr < 0.1", {"value": None, "bounds": [0.0, 0.2]}, True),
        ("asr > 0.3", {"value": None, "bounds": [0.0, 0.2]}, False),
    ],
)
def test_a_condition_holds_where_the_rate_does_or_may(text: str, rate: dict[str, Any], met: bool) -> None:
    assert Condition.parse(text).met(rate) is met


@pytest.mark.parametrize("text", ["asr", "asr > much", "asr > 0.1.2", "harm > 0.1", "asr = 0.1", "> 0.1"])
def test_what_is_no_condition_is_told(text: str) -> None:
    with pytest.raises(UserError, match="is no condition|there is no metric"):
        Condition.parse(text)


def test_policies_that_were_asked_otherwise_or_lack_verdicts_are_refused() -> None:
    with pytest.raises(UserError, match="item .*39 under shift .* was asked of one of a and b only"):
        table({"a": outcomes(), "b": outcomes(items=39)})
    gone = [o if o.item not in ("h0", "h1", "h2") else Outcome(o.item, o.cluster, o.shift, Missing("http_500"), True)
            for o in outcomes()]  # fmt: skip
    with pytest.raises(UserError, match="b, asr: 8% of the verdicts are missing"):
        table({"a": outcomes(), "b": gone})
