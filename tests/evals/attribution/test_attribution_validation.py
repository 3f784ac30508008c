"""Confusion, balanced accuracy, rivals and rank agreement on cases made by hand."""

from __future__ import annotations

import pytest

from evals.attribution.regions import CLASSES
from evals.attribution.validation import (
    Case,
    agreement,
    balanced_accuracy,
    by_failure_rate,
    by_label,
    confusion,
    largest_class,
)


def case(model: str, truth: str, *, found: str | None = None, shift: str = "s", fails: float = 0.5) -> Case:
    return Case(model, shift, truth, found or truth, fails)


def test_balanced_accuracy_is_the_mean_recall_and_never_without_width() -> None:
    right = [case(f"{t}{k}", t) for t in CLASSES for k in range(3)]
    found = balanced_accuracy(right)
    assert found.estimate == 1 and found.high == 1 and found.low is not None and 0.6 < found.low < 0.95
    assert found.n == 12 and "3 competing" in found.over
    # competing 5 of 10 right, mismatched 1 of 1: recalls .5 and 1, whatever the sizes
    uneven = [case(f"c{k}", "competing", found="both" if k % 2 else None) for k in range(10)]
    uneven.append(case("m", "mismatched"))
    assert balanced_accuracy(uneven).estimate == pytest.approx(0.75)
    wide, narrow = (balanced_accuracy([case(f"{t}{k}", t) for t in CLASSES for k in range(n)]) for n in (2, 30))
    assert wide.low is not None and narrow.low is not None and wide.low < narrow.low
    one_model = balanced_accuracy([case("m", "competing", shift=str(k)) for k in range(30)])
    assert one_model.n == 1 and one_model.low is not None and one_model.low < 0.5, "30 cases of one model are one trial"
    with pytest.raises(ValueError, match="at least one"):
        balanced_accuracy([])


def test_confusion_names_every_region() -> None:
    table = confusion([case("a", "both", found="neither"), case("b", "both")])
    assert table["both"] == {"competing": 0, "mismatched": 0, "both": 1, "capability": 0, "neither": 1}


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


def test_agreement_resamples_models() -> None:
    exact = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    models = ["a", "a", "b", "b", "c", "c"]
    same = agreement(exact, exact, models=models, draws=200)
    assert [same.spearman.estimate, same.kendall.estimate] == pytest.approx([1, 1])
    assert same.points == 6 and same.spearman.n == 3
    turned = agreement(exact, exact[::-1], models=models, draws=200)
    assert turned.spearman.estimate == pytest.approx(-1)
    one_swap = agreement([0.2, 0.1, 0.3, 0.4, 0.5, 0.6], exact, models=models, draws=200)
    assert one_swap.kendall.estimate == pytest.approx(1 - 2 / 15), "one of 15 pairs in the wrong order"
    assert one_swap.spearman.estimate == pytest.approx(1 - 6 * 2 / (6 * 35))
