"""Leave-one-family-out: reductions, levels and costs of hand-made cells."""

from __future__ import annotations

from dataclasses import replace

import pytest

from align.data.answers import ExactAnswer
from align.errors import UserError
from evals.tables.under_shift import heldout_families as families

ITEMS = {"a": 0.0, "b": 0.1, "c": 0.2}


def cells(row: str, regrets: dict[str, float], *, helpful: float = 0.5) -> list[ExactAnswer]:
    """Answers with this regret under each shift; item b is .1 and item c .2 worse under every shift but "none"."""
    return [
        ExactAnswer(
            row=row, shift=shift, item=item, prompt=f"{shift} {item}", preference=w, J=1 - regret,
            values=(helpful, 0.0), regret=regret + (extra if shift != "none" else 0.0), kl=0.0, J_star=1.0,
            values_star=(1.0, 1.0), kl_star=1.0, malformed=0.0,
        )
        for shift, regret in regrets.items()
        for item, extra in ITEMS.items()
        for w in ((1.0, 0.0), (0.0, 1.0))
    ]  # fmt: skip


RUNS = {
    seed: [
        *cells("plain", {"none": 0.1, "s": 0.5 + 0.1 * seed, "t": 0.7}),
        *cells("arm", {"none": 0.2, "s": 0.4, "t": 0.3}, helpful=0.4),
    ]
    for seed in (0, 1, 2)
}


def test_the_rise_of_the_regret_is_taken_item_by_item() -> None:
    found = families.regret_rise(RUNS[0], row="plain", shift="s")
    assert found == pytest.approx({"a": 0.4, "b": 0.5, "c": 0.6})


def test_a_reduction_is_baseline_minus_arm_over_the_pairs() -> None:
    """s: (.4 + .1 seed) - .2; t: .6 - .1 = .5. Seed means .35, .4, .45; the items' extras cancel."""
    found = families.reduction(RUNS, baseline="plain", pairs=[("arm", "s"), ("arm", "t")])
    assert found["value"] == pytest.approx(0.4)
    half = 4.30265 * 0.05 / 3**0.5
    assert found["ci_seeds"] == pytest.approx([0.4 - half, 0.4 + half], abs=1e-4)
    assert found["ci_items"] == pytest.approx([0.4, 0.4])
    regret = families.reduction(RUNS, baseline="plain", pairs=[("arm", "s")], of=families.regret)
    assert regret["value"] == pytest.approx(0.2)  # (.5, .6, .7) - .4, on average


def test_levels_run_over_seeds_and_items() -> None:
    found = families.level(RUNS, pairs=[("plain", "t")])
    assert found["value"] == pytest.approx(0.7) and found["ci_seeds"] == pytest.approx([0.7, 0.7])
    half = 4.30265 * 0.1 / 3**0.5
    assert found["ci_items"] == pytest.approx([0.7 - half, 0.7 + half], abs=1e-4)
    assert found["over_items"] == "95% over 3 base items"


def test_the_cost_on_plain_prompts_is_negative_where_the_arm_is_worse() -> None:
    options = {"baseline": "plain", "arms": ["arm"]}
    helpful = families.cost(RUNS, **options, preference=[1.0, 0.0], score=lambda c: c.values[0])
    assert helpful["value"] == pytest.approx(-0.1)
    assert families.cost(RUNS, **options, preference=None, score=lambda c: c.J)["value"] == pytest.approx(-0.1)


def test_a_shift_that_changes_the_items_is_refused() -> None:
    other = [replace(cell, item="new") if cell.shift == "s" else cell for cell in RUNS[0]]
    with pytest.raises(UserError, match="changes the base items"):
        families.regret_rise(other, row="plain", shift="s")
    with pytest.raises(UserError, match="differ in base items"):
        families.averaged([{"a": 1.0}, {"b": 1.0}])
