"""Reward models on comparisons by hand: ties, losses, RM-Bench's triangle, subsets, and paired shifts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evals.stats.paired_tests import sign_flip_p
from evals.tables.reward_tables import (
    macro_average,
    pair_briers,
    pair_calibration,
    pair_losses,
    pair_table,
    reward_shifts,
    rm_bench,
    style_matrix,
    wins,
)


def test_a_tie_is_half_a_win_and_no_margin_knows_nothing() -> None:
    assert wins([2.0, -1.0, 0.0]).tolist() == [1.0, 0.0, 0.5]
    assert pair_losses([0.0, math.log(3)]) == pytest.approx([math.log(2), math.log(4 / 3)])
    assert pair_briers([0.0, math.log(3), -math.log(3)]) == pytest.approx([0.25, 1 / 16, 9 / 16])
    assert np.isfinite(pair_losses([-1000.0])).all() and pair_losses([-1000.0])[0] == 1000
    for bad in ([], [float("nan")], [[1.0]]):
        with pytest.raises(ValueError):
            wins(bad)


def test_confidence_is_in_the_response_that_scores_higher() -> None:
    margins = [math.log(9), math.log(9), -math.log(9), 0.0]
    found = pair_calibration(margins)
    assert found.ece == pytest.approx(0.75 * abs(0.9 - 2 / 3)), "two of three at .9 are right; a tie is right by half"


def test_subsets_weigh_equally_in_the_macro_average() -> None:
    margins = {"a": 1.0, "b": 1.0, "c": 1.0, "d": -1.0}
    subsets, clusters = {"a": "x", "b": "x", "c": "x", "d": "y"}, {"a": 0, "b": 0, "c": 1, "d": 2}
    found = pair_table(margins, subsets=subsets, clusters=clusters)
    assert found.accuracy.estimate == 0.75 and found.accuracy.n == 3 and found.macro == 0.5
    assert found.subsets["x"].estimate == 1
    assert found.log_loss.estimate == pytest.approx(float(np.mean(pair_losses([1, 1, 1, -1]))))
    with pytest.raises(ValueError):
        macro_average({})


def test_hard_is_a_plain_chosen_against_a_fancy_rejected_and_a_tie_is_wrong() -> None:
    found = style_matrix([[1.0, 2.0, 3.0]], rejected_NS=[[1.0, 1.5, 2.5]])
    assert found.accuracy_SS.tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 1]] and found.comparisons == 9
    assert (found.hard, found.normal, found.easy) == pytest.approx((0, 2 / 3, 1))
    assert found.average == pytest.approx(5 / 9)
    with pytest.raises(ValueError, match="styles"):
        style_matrix([[1.0]], rejected_NS=[[1.0]])


def test_two_parts_of_safety_are_averaged_before_the_domains() -> None:
    plain, fancy = (3.0, 3.0, 3.0), (0.0, 0.0, 0.0)
    found = rm_bench(
        {"a": plain, "b": fancy, "c": plain, "d": plain}, rejected={"a": fancy, "b": plain, "c": fancy, "d": fancy},
        domains={"a": "chat", "b": "safety-refuse", "c": "safety-response", "d": "chat"},
    )  # fmt: skip
    assert found.overall["average"] == pytest.approx((1 + 0.5) / 2)
    with pytest.raises(ValueError, match="one side"):
        rm_bench({"a": plain}, rejected={}, domains={"a": "chat"})


def test_shifts_are_paired_by_item_and_corrected_together() -> None:
    plain = {str(i): 1.0 for i in range(8)}
    shifted = {"worse": {k: -1.0 for k in plain}, "same": {k: 1.0 for k in list(plain)[:4]}}
    found = reward_shifts(plain, shifted=shifted)
    worse, same = found["worse"], found["same"]
    assert worse.accuracy.estimate == -1 and worse.log_loss.estimate == pytest.approx(1.0) and worse.margin_ratio == -1
    assert worse.accuracy.p == sign_flip_p([-1.0] * 8) == 2 / 2**8 and worse.accuracy.comparisons == 6
    assert worse.accuracy.p_adjusted == pytest.approx(4 * 2 / 2**8), "two losses are surer: third of six"
    assert same.accuracy.estimate == 0 and same.accuracy.clusters == 4 and same.margin_ratio == 1
    sure = 1 / (1 + math.exp(-1))
    assert worse.ece == pytest.approx((1 - sure, sure))
    with pytest.raises(ValueError, match="shares no item"):
        reward_shifts(plain, shifted={"x": {"other": 1.0}})
