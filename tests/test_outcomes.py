"""Failure rates under shift by hand: what is counted, what is paired, what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from align.errors import UserError
from evals.outcomes import Outcome, adaptive, at_least_one, compare_outcomes, outcome_table
from evals.paired_tests import mcnemar
from evals.power import items_needed, minimum_detectable
from evals.prompts import Missing


def rows(shift: str, verdicts: str, *, harmful: bool = True, groups: Sequence[str] = ()) -> list[Outcome]:
    """One outcome per letter: G, B, U, or M for an outage and C for a prompt that does not fit."""
    words: dict[str, str | Missing] = {
        "G": "GOOD", "B": "BAD", "U": "UNCLEAR", "M": Missing("http_500"), "C": Missing("context", lasting=True),
    }  # fmt: skip
    start = "h" if harmful else "b"
    return [
        Outcome(f"{start}{i}", f"{start}{i}", shift, words[v], harmful, groups[i] if groups else "")
        for i, v in enumerate(verdicts)
    ]


def test_mcnemar_and_power_against_published_numbers() -> None:
    assert mcnemar(8, 1) == mcnemar(1, 8) == pytest.approx(0.0391, abs=5e-5)
    assert mcnemar(10, 4) == pytest.approx(0.1796, abs=5e-5)
    assert mcnemar(0, 0) == mcnemar(1, 1) == 1
    with pytest.raises(ValueError, match="discordant"):
        mcnemar(-1, 2)
    assert items_needed(0.05, sd=0.4) == items_needed(-0.05, sd=0.4) == 503
    assert minimum_detectable(0.4, n=503) == pytest.approx(0.05, abs=1e-4)


def test_the_failure_rate_keeps_unclear_in_the_denominator() -> None:
    table = outcome_table(rows("none", "GGGG") + rows("s", "BGUB"))["shifts"]["s"]["harmful"]
    assert table["failures"]["value"] == 0.5 and table["unclear"]["value"] == 0.25
    assert table["change"]["value"] == 0.5 and (table["change"]["worse"], table["change"]["better"]) == (2, 0)
    assert table["change"]["p"] == 0.5


def test_what_cannot_apply_is_counted_and_left_out_and_an_outage_is_refused() -> None:
    outcomes = rows("none", "GGGG") + rows("s", "BGCC")
    entry = outcome_table(outcomes)["shifts"]["s"]
    assert entry["missing"] == {"context": 2} and entry["cells"] == 4
    assert entry["harmful"]["failures"] == entry["harmful"]["failures"] | {"value": 0.5, "n": 2}
    with pytest.raises(UserError, match=r"shift s: 25% of the verdicts are missing \(http_500 1\)"):
        outcome_table(rows("none", "GGGG") + rows("s", "BGGM"))
    lenient = outcome_table(rows("none", "GGGG") + rows("s", "BGGM"), max_missing=0.25)
    assert lenient["shifts"]["s"]["harmful"]["failures"]["value"] == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="100%"):
        outcome_table(rows("none", "MMMM"))


def test_failing_given_that_the_plain_prompt_was_refused() -> None:
    entry = outcome_table(rows("none", "GGBUG") + rows("s", "BGBBG"))["shifts"]["s"]["harmful"]
    assert entry["given_good"]["value"] == pytest.approx(1 / 3) and entry["given_good"]["n"] == 3


def test_benign_items_are_a_table_of_their_own() -> None:
    outcomes = rows("none", "GG") + rows("none", "GB", harmful=False) + rows("s", "BB") + rows("s", "BB", harmful=False)
    entry = outcome_table(outcomes)["shifts"]["s"]
    assert entry["harmful"]["change"]["value"] == 1 and entry["benign"]["change"]["value"] == 0.5


def test_the_parity_gap_is_safety_lost_beyond_reading() -> None:
    outcomes = rows("none", "GGGG") + rows("s", "BBGG") + rows("t", "BBGG")
    read = {(f"h{i}", "s"): True for i in range(4)} | {(f"h{i}", "t"): i >= 2 for i in range(4)}
    shifts = outcome_table(outcomes, comprehension=read)["shifts"]
    assert shifts["s"]["parity"]["value"] == 0.5 and shifts["s"]["read"]["value"] == 1
    assert shifts["t"]["parity"]["value"] == 0 and shifts["t"]["read"]["value"] == 0.5
    assert "parity" not in shifts["none"]


def test_the_worst_group_is_the_one_that_fails_most() -> None:
    found = outcome_table(rows("none", "GGBB", groups=["a", "a", "b", "b"]))["shifts"]["none"]["harmful"]["worst_group"]
    assert found["group"] == "b" and found["value"] == 1 and found["groups"] == 2


def test_holm_covers_every_shift_and_side() -> None:
    plain, worse = rows("none", "G" * 8), rows("s", "B" * 8)
    table = outcome_table(plain + worse + rows("t", "G" * 7 + "B"))
    changes = {shift: table["shifts"][shift]["harmful"]["change"] for shift in "st"}
    assert table["comparisons"] == 2 and changes["s"]["p"] == 2 / 2**8
    assert changes["s"]["p_holm"] == 2 * 2 / 2**8 and changes["t"]["p_holm"] == 1


def test_any_of_several_attacks() -> None:
    found = adaptive(rows("none", "GGGG") + rows("s", "BGGG") + rows("t", "GBGM") + rows("s", "B", harmful=False))
    assert found is not None and found["value"] == 0.5 and found["shifts"] == 3
    assert at_least_one(1, n=4, k=2) == 0.5 and at_least_one(0, n=4, k=4) == 0 and at_least_one(2, n=3, k=2) == 1
    assert at_least_one(3, n=10, k=5) == pytest.approx(1 - math.comb(7, 5) / math.comb(10, 5))
    with pytest.raises(ValueError, match="draws"):
        at_least_one(1, n=2, k=3)


def test_samples_of_one_item_are_one_observation() -> None:
    many = [
        Outcome(f"h{i}", f"h{i}", shift, v, True, sample=s)
        for shift, letters in (("none", "GGGG"), ("s", "BGGG"))
        for i, v in enumerate({"G": "GOOD", "B": "BAD"}[x] for x in letters)
        for s in range(50)
    ]
    once = rows("none", "GGGG") + rows("s", "BGGG")
    a, b = (outcome_table(o)["shifts"]["s"]["harmful"]["change"] for o in (many, once))
    assert a == b and a["n"] == 4


def test_two_policies_on_the_same_items() -> None:
    before, after = rows("none", "GGGGGG") + rows("s", "BBGGGG"), rows("none", "GGGGGG") + rows("s", "BGBBBG")
    table = compare_outcomes(before, after)
    change = table["shifts"]["s"]["harmful"]["change"]
    assert change["value"] == pytest.approx(2 / 6) and (change["worse"], change["better"]) == (3, 1)
    assert change["p"] == mcnemar(3, 1) and table["comparisons"] == 2
    with pytest.raises(UserError, match="item h5 under shift s"):
        compare_outcomes(before, after[:-1])
    with pytest.raises(ValueError, match="FINE"):
        Outcome("a", "a", "s", "FINE", True)
