"""The worst group and families of shifts, by hand."""

from __future__ import annotations

import pytest

from evals.stats.robustness import leave_families_out, worst_group


def test_the_worst_group_knows_which_way_is_better() -> None:
    groups = {"x": 0.2, "y": 0.9, "a": 0.2}
    assert worst_group(groups, higher_is_better=True) == "a" and worst_group(groups, higher_is_better=False) == "y"
    with pytest.raises(ValueError):
        worst_group({}, higher_is_better=True)


def test_families_seen_and_held_out() -> None:
    table = {
        frozenset({"a", "b"}): {"a": 0.9, "b": 0.8, "c": 0.3},
        frozenset({"a", "c"}): {"a": 0.7, "b": 0.4, "c": 0.9},
        frozenset({"b"}): {"a": 0.2, "b": 0.9, "c": 0.1},
    }
    found, curve = leave_families_out(table)
    assert (found["a"].seen, found["a"].held_out) == pytest.approx((0.8, 0.2))
    assert found["a"].gap == pytest.approx(0.6) and found["c"].held_out == pytest.approx(0.2)
    assert curve == {1: pytest.approx(0.15), 2: pytest.approx(0.35)}
    every, none = leave_families_out({frozenset({"a"}): {"a": 1.0}})
    assert every["a"].held_out is None and every["a"].gap is None and none == {}
    with pytest.raises(ValueError, match="same test families"):
        leave_families_out({frozenset({"a"}): {"a": 1.0}, frozenset({"b"}): {"b": 1.0}})
