"""Confusion, balanced accuracy, rivals and rank agreement on cases made by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from evals.attribution.regions import CANNOT_TELL, CLASSES, DECIDES, NEITHER, Signals, Thresholds
from evals.attribution.validation import (
    ABLATIONS,
    OTHERS,
    Case,
    agreement,
    balanced_accuracy,
    by_failure_rate,
    by_label,
    confusion,
    gain,
    largest_class,
    spearman,
    verdict_by,
)


def case(model: str, truth: str, *, found: str | None = None, shift: str = "s", fails: float = 0.5) -> Case:
    return Case(model, model[-1], shift, truth, found or truth, fails)


def test_balanced_accuracy_is_the_mean_recall_and_never_without_width() -> None:
    right = [case(f"{t}{k}", t) for t in CLASSES for k in range(3)]
    found = balanced_accuracy(right)
    assert found.estimate == 1 and found.high == 1 and found.low is not None and 0.6 < found.low < 0.95
    assert found.n == 3 and "references" in found.over
    # competing 5 of 10 right, mismatched 1 of 1: recalls .5 and 1, whatever the sizes
    uneven = [case(f"c{k}", "competing", found="both" if k % 2 else None) for k in range(10)]
    uneven.append(case("m", "mismatched"))
    assert balanced_accuracy(uneven).estimate == pytest.approx(0.75)
    one = balanced_accuracy([case("m1", "competing", shift=str(k)) for k in range(30)])
    assert one.n == 1 and one.low is not None and one.low < 0.5, "30 cases of one reference are one trial"
    with pytest.raises(ValueError, match="at least one"):
        balanced_accuracy([])


def test_an_interval_runs_over_references() -> None:
    # all of reference 1 right and all of 2 wrong: a resample of the two has 0, 1/2 or 1 whatever the number of cases
    split = [case(f"a{r}", "both", found="both" if r == 1 else NEITHER) for r in (1, 2) for _ in range(50)]
    found = balanced_accuracy(split)
    assert (found.estimate, found.low, found.high) == (0.5, 0.0, 1.0)


def test_naming_no_cause_is_right_only_where_none_was_planted() -> None:
    assert case("a", NEITHER, found=CANNOT_TELL).right and case("a", NEITHER).right
    assert not case("a", "both", found=CANNOT_TELL).right and not case("a", NEITHER, found="both").right
    table = confusion([case("a", "both", found="neither"), case("b", "both", found=CANNOT_TELL)])
    assert table["both"] == {
        "competing": 0, "mismatched": 0, "both": 0, "capability": 0, "neither": 1, CANNOT_TELL: 1,
    }  # fmt: skip


def test_a_gain_is_paired_by_reference() -> None:
    full = [case(f"a{r}", "both") for r in range(6)]
    worse = [case(f"a{r}", "both", found=NEITHER if r < 3 else None) for r in range(6)]
    found = gain(full, worse)
    assert found.estimate == pytest.approx(0.5) and found.low is not None and found.low >= 0
    assert gain(full, full).pair == [0, 0]
    assert gain(worse, full).estimate == pytest.approx(-0.5)


def test_an_ablation_leaves_one_signal_out() -> None:
    bounds = Thresholds(comprehension=0.5, recognition=0.5, pull=0.7, distance=0.7, source="by hand")
    signals = [
        Signals(str(k), str(k), "s", 1.0, 0.0, comprehension=1.0, recognition=0.0, pull=2.0, distance=1.0)
        for k in range(12)
    ]
    said = {name: verdict_by(signals, deciding, thresholds=bounds) for name, deciding in ABLATIONS.items()}
    assert said == {"without comprehension": "both", "without pull": "mismatched", "without distance": "competing"}
    unread = [replace(one, comprehension=0.0) for one in signals]
    assert verdict_by(unread, DECIDES, thresholds=bounds) == "capability"
    assert verdict_by(unread, ABLATIONS["without comprehension"], thresholds=bounds) == "both"
    kept = [replace(one, recognition=1.0) for one in signals]  # far, and still recognised
    beside, instead = (verdict_by(kept, deciding, thresholds=bounds) for deciding in OTHERS.values())
    assert verdict_by(kept, DECIDES, thresholds=bounds) == "both" and (beside, instead) == ("competing", "competing")
    near = [replace(one, distance=0.0) for one in signals]  # near, and no longer recognised
    beside, instead = (verdict_by(near, deciding, thresholds=bounds) for deciding in OTHERS.values())
    assert verdict_by(near, DECIDES, thresholds=bounds) == "competing" and (beside, instead) == ("competing", "both")


def test_rivals_know_one_thing_each() -> None:
    taught = [
        case("a", "competing", shift="prefix", fails=0.1), case("b", "competing", shift="prefix", fails=0.2),
        case("c", "mismatched", shift="cipher", fails=0.8), case("d", "competing", shift="cipher", fails=0.15),
        case("e", "mismatched", shift="cipher", fails=0.9), case("f", "mismatched", shift="cipher", fails=0.85),
    ]  # fmt: skip
    asked = [case("x", "both", shift="cipher", fails=0.1), case("y", "both", shift="prefix", fails=0.95)]
    assert by_failure_rate(taught, asked) == ["competing", "mismatched"]
    assert by_label(taught, asked) == ["mismatched", "competing"]
    assert largest_class(taught, asked) == ["competing", "competing"], "the first of two equal classes"


def test_agreement_resamples_references() -> None:
    exact = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    references = ["a", "a", "b", "b", "c", "c"]
    same = agreement(exact, exact, references=references, draws=200)
    assert same.estimate == pytest.approx(1) and same.n == 3
    assert agreement(exact, exact[::-1], references=references, draws=200).estimate == pytest.approx(-1)
    one_swap = agreement([0.2, 0.1, 0.3, 0.4, 0.5, 0.6], exact, references=references, draws=200)
    assert one_swap.estimate == pytest.approx(1 - 6 * 2 / (6 * 35))
    ties = spearman(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]))
    assert ties == pytest.approx(1.5 / math.sqrt(1.5 * 2)), "ranks 1.5, 1.5, 3 against 1, 2, 3"
    assert math.isnan(spearman(np.ones(3), np.arange(3.0)))
    with pytest.raises(ValueError, match="at least 3"):
        spearman(np.ones(2), np.ones(2))
