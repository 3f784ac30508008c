"""Calibration against numbers worked out by hand: bins closed on the right, golden ECE and Brier."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evals.stats.calibration import calibration, reliability

CONFIDENCE, RIGHT = (0.95, 0.9, 0.85, 0.6, 0.55, 0.3), (1, 1, 0, 1, 0, 0)


def test_golden_numbers() -> None:
    found = calibration(CONFIDENCE, outcome_N=RIGHT, bins=10)
    assert found.ece == pytest.approx(0.2083, abs=5e-5) and found.brier == pytest.approx(0.2146, abs=5e-5)
    likelihoods = [c if r else 1 - c for c, r in zip(CONFIDENCE, RIGHT, strict=True)]
    assert found.nll == pytest.approx(-np.mean(np.log(likelihoods)))
    assert found.mce == pytest.approx(0.375)  # (.8, .9] holds .9 right and .85 wrong: .875 against .5


def test_bins_are_closed_on_the_right_and_hold_every_answer() -> None:
    table = reliability([0.0, 0.1, 0.3, 0.30001, 1.0], outcome_N=[0, 0, 1, 0, 1])
    assert [(b.low, b.high, b.count) for b in table] == [
        pytest.approx(row) for row in ((0.0, 0.1, 2), (0.2, 0.3, 1), (0.3, 0.4, 1), (0.9, 1.0, 1))
    ]
    assert table[1].accuracy == 1 and table[0].confidence == pytest.approx(0.05)


def test_equal_mass_keeps_equal_confidences_together() -> None:
    table = reliability([0.2] * 6 + [0.7, 0.9], outcome_N=[0] * 6 + [1, 1], bins=4, by="mass")
    assert [b.count for b in table] == [6, 2]
    spread = reliability(np.linspace(0.05, 0.95, 10), outcome_N=[0] * 10, bins=5, by="mass")
    assert [b.count for b in spread] == [2] * 5


def test_a_certain_answer_that_was_wrong_costs_infinitely_much_and_a_tie_half() -> None:
    assert calibration([1.0], outcome_N=[0]).nll == math.inf and calibration([1.0], outcome_N=[1]).nll == 0
    assert calibration([0.5], outcome_N=[0.5]).brier == 0
    for confidence, outcome in (([1.2], [1]), ([0.5], [2]), ([], []), ([0.5, 0.5], [1])):
        with pytest.raises(ValueError):
            calibration(confidence, outcome_N=outcome)
    with pytest.raises(ValueError, match="width or mass"):
        reliability([0.5], outcome_N=[1], by="depth")
