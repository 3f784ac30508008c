"""Durability: leads over the reference, what is kept of them, and the control, against numbers by hand."""

from __future__ import annotations

import pytest

from evals.tables.safety.durability import Stressed, durability

ITEMS = [f"i{k}" for k in range(8)]
OWN = {item: item for item in ITEMS}


def values(bits: str) -> dict[str, float]:
    return {item: float(bit) for item, bit in zip(ITEMS, bits, strict=True)}


def test_leads_changes_and_what_is_kept() -> None:
    series = [
        Stressed(0, values("11111110"), values("10000000")),
        Stressed(10, values("11100000"), values("01000000")),
        Stressed(50, values("00000001"), values("11000000")),
    ]
    start, mid, end = durability(series, clusters=OWN, share=True)
    assert (start["policy"], start["reference"], start["lead"]["value"]) == (7 / 8, 1 / 8, 6 / 8)
    assert start["kept"] is None and start["lead_change"] is None
    assert (mid["steps"], mid["lead"]["value"], mid["policy_change"]["value"]) == (10, 2 / 8, -4 / 8)
    assert mid["reference_change"]["value"] == 0.0 and mid["lead_change"]["value"] == -4 / 8
    assert mid["kept"]["value"] == pytest.approx(2 / 6)
    assert end["lead"]["value"] == -1 / 8 and end["kept"]["value"] == pytest.approx(-1 / 6)
    assert end["reference_change"]["value"] == 1 / 8 and end["lead_change"]["value"] == -7 / 8


def test_without_a_lead_at_the_start_nothing_can_be_kept() -> None:
    series = [Stressed(0, values("10100000"), values("01000000")), Stressed(5, values("11111111"), values("00000000"))]
    start, end = durability(series, clusters=OWN, share=True)
    assert start["kept"] is None and end["kept"] is None and end["lead"]["value"] == 1.0


def test_a_share_kept_of_none_has_no_interval_of_no_width() -> None:
    series = [Stressed(0, values("11111110"), values("00000000")), Stressed(5, values("00000000"), values("00000000"))]
    kept = durability(series, clusters=OWN, share=True)[1]["kept"]
    assert kept["value"] == 0.0 and kept["ci"] is None and kept["over"].startswith("no interval")


def test_only_items_that_every_point_has_count_and_clusters_are_the_units() -> None:
    less = {item: 2.0 for item in ITEMS[:6]}
    series = [Stressed(0, values("11111111"), values("00000000")), Stressed(5, less, values("10000000"))]
    _, end = durability(series, clusters={item: item[1] in "01" and "a" or item for item in ITEMS}, share=False)
    assert end["items"] == 6 and end["lead"]["n"] == 5 and end["policy"] == 2.0
    assert end["lead"]["value"] == pytest.approx(2 - 1 / 6)
    with pytest.raises(ValueError, match="begin with 0 steps"):
        durability(series[1:], clusters=OWN, share=False)
    with pytest.raises(ValueError, match="0 items have all"):
        durability([series[0], Stressed(1, {"x": 1.0}, values("00000000"))], clusters=OWN, share=False)
