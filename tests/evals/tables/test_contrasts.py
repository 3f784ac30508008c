"""Attacks against their twins, and families of shifts, by hand: what is paired with what, and what is left out."""

from __future__ import annotations

import pytest

from evals.items import Item, Missing
from evals.measure.cells import ask
from evals.shifts import parse_shifts
from evals.tables.contrasts import control_pairs, control_table, family_table
from evals.tables.examples import examples
from factories.outcomes import rows


def test_twins_are_found_from_either_side_and_only_where_both_were_asked() -> None:
    shifts = parse_shifts(["none", "base64", "base64_raw", "prefix_injection", "prefix_injection_hello", "aim"])
    assert control_pairs(shifts) == [("base64", "base64_raw"), ("prefix_injection", "prefix_injection_hello")]
    assert control_pairs(parse_shifts(["none", "aim"])) == []


def test_an_attack_is_paired_with_its_twin_item_by_item() -> None:
    """Harmful: the attack breaks h0, h1, h2, the twin h0 and h3: 3/4 - 2/4, two worse and one better."""
    outcomes = rows("none", "GGGG") + rows("attack", "BBBG") + rows("twin", "BGGB")
    outcomes += rows("attack", "BG", harmful=False) + rows("twin", "GG", harmful=False)
    table = control_table(outcomes, pairs=[("attack", "twin"), ("attack", "gone")])
    (entry,) = table["pairs"]
    assert (entry["attack"], entry["twin"]) == ("attack", "twin")
    harmful = entry["harmful"]
    assert harmful["change"]["value"] == pytest.approx(0.25) and harmful["attack"]["value"] == 0.75
    assert (harmful["change"]["worse"], harmful["change"]["better"], harmful["twin"]["value"]) == (2, 1, 0.5)
    assert entry["benign"]["change"]["value"] == 0.5 and table["comparisons"] == 0
    assert all("p_holm" in entry[side]["change"] for side in ("harmful", "benign"))


def test_a_family_averages_an_items_shifts_first_and_leaves_controls_out() -> None:
    """Per item over s and t: 1, 1/2, 0, 0, so 3/8; plain 0; s fails 2 of 4 and t 1 of 4; c is in no family."""
    outcomes = rows("none", "GGGG") + rows("s", "BBGG") + rows("t", "BGGG") + rows("c", "BBBB") + rows("u", "GGGG")
    table = family_table(outcomes, families={"s": "encoding", "t": "encoding", "u": "noise"})
    found = table["families"]["encoding"]["harmful"]
    assert found["failures"]["value"] == found["change"]["value"] == pytest.approx(3 / 8)
    assert (found["shifts"], found["worst_shift"], found["worst_value"]) == (2, "s", 0.5)
    assert table["families"]["noise"]["harmful"]["failures"]["value"] == 0 and table["comparisons"] == 0


def test_a_lost_item_is_in_no_family_rate() -> None:
    table = family_table(rows("none", "GG") + rows("s", "BC"), families={"s": "encoding"})
    assert table["families"]["encoding"]["harmful"]["failures"]["n"] == 1


def test_examples_show_what_the_shift_changed_first() -> None:
    items = [Item(f"i{n}", f"ask {n}", label="harmful") for n in range(4)]
    plan = ask(items, suite="s", shifts=parse_shifts(["none", "uppercase"]))
    verdicts = ["BAD", "GOOD", "GOOD", "BAD", "BAD", "GOOD", "BAD", "GOOD"]
    answered = [
        cell.measured("completion", {"text": f"text {i}", "tokens": 1, "finished": True}) for i, cell in enumerate(plan)
    ]
    judged = [
        cell.measured("verdict", {"verdict": verdict, "why": "w"})
        for cell, verdict in zip(answered, verdicts, strict=True)
    ]
    found = examples(judged, per_shift=3)
    upper = [(row["item"], row["before"], row["outcome"]) for row in found if row["shift"] == "uppercase"]
    assert upper == [("i2", "GOOD", "BAD"), ("i3", "BAD", "GOOD"), ("i0", "BAD", "BAD")]
    assert [row["prompt"] for row in found if row["item"] == "i2"][-1] == "user: ASK 2"
    answered[6] = plan[6].measured("completion", Missing("http_500"))
    assert all(row["item"] != "i2" or row["shift"] == "none" for row in examples(answered))
