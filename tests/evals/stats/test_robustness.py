"""Scores under shift by hand: signs of gaps, a line fitted without the model, worst cases, detection, families."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from align.errors import UserError
from evals.stats.robustness import (
    auroc,
    average_precision,
    effective_robustness,
    false_positive_rate,
    gap,
    leave_families_out,
    worst_case,
    worst_group,
)


def test_the_four_gaps_and_their_signs() -> None:
    found = gap(0.9, away=0.6, chance=0.5)
    numbers = (found.absolute, found.relative, found.normalised, found.retention)
    assert numbers == pytest.approx((0.3, 1 / 3, 0.75, 0.25))
    errors = gap(0.1, away=0.4, chance=0.5, higher_is_better=False)
    assert errors.absolute == pytest.approx(0.3), "positive is worse, whichever way the score points"
    assert (errors.normalised, errors.retention) == pytest.approx((found.normalised, found.retention))
    nothing = gap(0.5, away=0.4, chance=0.5)
    assert nothing.normalised is None and nothing.retention is None and gap(0.0, away=0.1).relative is None


def test_effective_robustness_is_what_lies_above_the_others_line() -> None:
    def logistic(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    home = {f"m{i}": logistic(i / 2) for i in range(4)}
    away = {name: logistic(0.5 * i / 2 - 1) for i, name in enumerate(home)}  # slope .5, intercept -1, exactly
    home["new"], away["new"] = logistic(1.0), 0.9
    found = effective_robustness("new", home=home, away=away)
    assert (found.slope, found.intercept) == pytest.approx((0.5, -1)) and found.models == 4
    assert found.value == pytest.approx(0.9 - logistic(-0.5)) and found.residual_sd == pytest.approx(0, abs=1e-9)
    assert not found.extrapolates and found.clipped == 0
    far = effective_robustness("new", home=home | {"new": 0.99}, away=away | {"new": 1.0})
    assert far.extrapolates and far.clipped == 1 and (far.low, far.high) == (home["m0"], home["m3"])


def test_without_a_line_there_is_no_effective_robustness() -> None:
    accuracies = {"a": 0.5, "b": 0.6, "new": 0.7}
    with pytest.raises(UserError, match="at least 3"):
        effective_robustness("new", home=accuracies, away=accuracies)
    equal = {"a": 0.5, "b": 0.5, "c": 0.5, "new": 0.7}
    with pytest.raises(UserError, match="all equal"):
        effective_robustness("new", home=equal, away=equal)
    with pytest.raises(ValueError, match="every other model"):
        effective_robustness("old", home=equal, away=equal)
    with pytest.raises(ValueError, match="outside"):
        effective_robustness("new", home=equal | {"a": 1.2}, away=equal)


def test_the_worst_case_takes_each_items_worst_shift() -> None:
    values = {"a": {"none": 1.0, "s": 0.0}, "b": {"none": 0.0, "s": 1.0}, "c": {"none": 1.0, "s": 1.0}}
    assert worst_case(values, higher_is_better=True).estimate == pytest.approx(1 / 3)
    assert worst_case(values, higher_is_better=False).estimate == 1.0
    assert worst_case(values, higher_is_better=True, clusters={"a": 0, "b": 0, "c": 1}).n == 2
    with pytest.raises(ValueError, match="item c lacks shift s"):
        worst_case(values | {"c": {"none": 1.0}}, higher_is_better=True)
    with pytest.raises(ValueError, match="plain prompt"):
        worst_case({"a": {"s": 1.0}}, higher_is_better=True)


def test_the_worst_group_knows_which_way_is_better() -> None:
    groups = {"x": 0.2, "y": 0.9, "a": 0.2}
    assert worst_group(groups, higher_is_better=True) == "a" and worst_group(groups, higher_is_better=False) == "y"
    with pytest.raises(ValueError):
        worst_group({}, higher_is_better=True)


def test_detection_against_counting_all_pairs() -> None:
    rng = np.random.default_rng(0)
    shifted, plain = rng.integers(0, 8, 30) + 1.0, rng.integers(0, 8, 40) * 1.0
    pairs = [(s > p) + 0.5 * (s == p) for s, p in itertools.product(shifted, plain)]
    assert auroc(shifted, plain_M=plain) == pytest.approx(np.mean(pairs))
    assert auroc(plain, plain_M=shifted) == pytest.approx(1 - np.mean(pairs))
    assert false_positive_rate([3, 4, 5, 6], plain_M=[1, 2, 3, 9], at=1.0) == 0.5
    assert false_positive_rate([3, 4, 5, 6], plain_M=[1, 2, 3, 9], at=0.5) == 0.25
    assert average_precision([3.0, 1.0], plain_M=[2.0]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision([3.0, 2.0], plain_M=[1.0]) == 1
    with pytest.raises(ValueError, match="finite"):
        auroc([float("nan")], plain_M=[1.0])


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
