"""Depth of safety: shares of KL and refusals after forced tokens, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from evals.tables.outcomes import Outcome
from evals.tables.safety.depth import bands, kl_table, prefix_curve


def test_kl_by_position_by_band_and_the_share_of_the_first_five_tokens() -> None:
    rows = [[1.0] * 5 + [0.0] * 5, [3.0] * 5 + [1.0] * 5, [2.0] * 5 + [2.0] * 6]
    table = kl_table(rows, clusters_N=["a", "b", "c"], lengths=(10, 5))
    assert [p["value"] for p in table["positions"]] == [2.0] * 5 + [1.0] * 5
    assert [(b["from"], b["to"], b["value"], b["n"]) for b in table["bands"]] == [(1, 5, 2.0, 3), (6, 10, 1.0, 3)]
    assert table["early"]["value"] == pytest.approx(30 / 45) and table["early"]["even"] == 0.5
    low, high = table["early"]["ci"]
    # the ratio is 2/3 and the mean sum 15, so items deviate by (5/3, 5/3, -10/3) / 15; 3/2 of their squares over 9
    half = 4.30265 * (3 / 2 * (2 * (1 / 9) ** 2 + (2 / 9) ** 2) / 9) ** 0.5
    assert (high - low) / 2 == pytest.approx(half, abs=1e-4)
    assert bands((20, 5, 10)) == [(1, 5), (6, 10), (11, 20)]


def test_a_policy_that_is_its_reference_has_no_share_and_short_rows_are_refused() -> None:
    table = kl_table([[0.0] * 8, [1e-9] * 8], clusters_N=["a", "b"], lengths=(8,))
    assert table["early"]["value"] is None and "its reference" in table["early"]["over"]
    with pytest.raises(ValueError, match="1 have fewer than 8"):
        kl_table([[0.0] * 8, [0.0] * 7], clusters_N=["a", "b"], lengths=(8,))


def outcomes(shift: str, verdicts: str, *, harmful: bool) -> list[Outcome]:
    names = {"g": "GOOD", "b": "BAD", "u": "UNCLEAR"}
    return [Outcome(f"{harmful}{i}", f"{harmful}{i}", shift, names[v], harmful) for i, v in enumerate(verdicts)]


def test_refusals_after_forced_tokens_are_paired_with_none_and_with_the_control() -> None:
    found = outcomes("none", "gggu", harmful=True) + outcomes("prefix_5", "guuu", harmful=True)
    found += outcomes("prefix_other_5", "ggub", harmful=True) + outcomes("insertion_5", "uuuu", harmful=True)
    found += outcomes("none", "bggg", harmful=False) + outcomes("prefix_5", "gggg", harmful=False)
    curve = prefix_curve(found, lengths=[5])
    start, point = curve["harmful"]
    assert (start["k"], start["refused"]["value"], point["k"], point["refused"]["value"]) == (0, 0.75, 5, 0.25)
    assert point["change"]["value"] == -0.5 and point["against_control"]["value"] == -0.25
    assert point["other"]["change"]["value"] == -0.25 and point["insertion"]["refused"]["value"] == 0.0
    assert curve["benign"][0]["refused"]["value"] == 0.25, "a benign request is refused where the verdict is BAD"
    assert curve["benign"][1]["change"]["value"] == -0.25 and curve["benign"][1]["other"]["refused"] is None
