"""Preferences are checked where they are made; the simplex grid is complete; scalarization cannot be swapped."""

from __future__ import annotations

import math

import pytest

from align.errors import UserError
from align.preferences import Direction, Targets, Thresholds, Weights, simplex_grid


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((-0.1, 1.1), "contain a negative number"),
        ((0.5, 0.6), "sum to 1.1; make them sum to 1"),
        ((0.5, 0.499), "sum to 0.999"),
        ((), "at least one"),
        ((float("nan"), 1.0), "finite"),
        ((float("inf"), 0.0), "finite"),
        (("a", 1.0), "must be numbers"),
    ],
)
def test_weights_off_the_simplex_are_refused_in_one_line(values: tuple, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        Weights(values)
    assert "\n" not in str(caught.value)


def test_weights() -> None:
    weights = Weights((0.25, 0.75))
    assert weights.label == "0.25,0.75" and Weights.parse(weights.label) == weights
    assert list(weights) == [0.25, 0.75] and weights[1] == 0.75 and len(weights) == 2
    assert Weights((0.1,) * 10).values == (0.1,) * 10  # rounding within 1e-6 is no mistake
    assert Weights([1, 0]).values == (1.0, 0.0)  # type: ignore[arg-type]
    assert Weights.vertex(1, 3) == Weights((0, 1, 0)) and Weights.vertex(1, 3).is_vertex and not weights.is_vertex
    assert {weights: 1}[Weights((0.25, 0.75))] == 1
    for text in ("0.25;0.75", "", "a,b"):
        with pytest.raises(UserError, match="not numbers separated by commas, like 0.25,0.75"):
            Weights.parse(text)
    with pytest.raises(UserError, match="sum to 2"):
        Weights.parse("1,1")


@pytest.mark.parametrize(("objectives", "steps"), [(1, 3), (2, 1), (2, 4), (2, 200), (3, 4), (4, 5)])
def test_the_simplex_grid_is_complete(objectives: int, steps: int) -> None:
    grid = simplex_grid(objectives, steps)
    assert len(grid) == math.comb(steps + objectives - 1, objectives - 1) == len(set(grid))
    assert all(abs(v * steps - round(v * steps)) < 1e-9 for w in grid for v in w)
    assert grid == sorted(grid, key=lambda w: w.values)
    assert {Weights.vertex(k, objectives) for k in range(objectives)} <= set(grid)


def test_the_simplex_grid_by_hand() -> None:
    assert [w.values for w in simplex_grid(2, 2)] == [(0, 1), (0.5, 0.5), (1, 0)]
    assert [w.values for w in simplex_grid(3, 1)] == [(0, 0, 1), (0, 1, 0), (1, 0, 0)]
    with pytest.raises(ValueError, match="at least one"):
        simplex_grid(2, 0)


def test_directions_thresholds_and_targets() -> None:
    assert Direction((0.6, -0.8)).values == (0.6, -0.8)  # less of an objective is legal
    with pytest.raises(UserError, match="length 2; scale it to 1"):
        Direction((2.0, 0.0))
    assert Thresholds((0.3, None)).values == (0.3, None)
    with pytest.raises(UserError, match="finite"):
        Thresholds((float("nan"), None))
    with pytest.raises(UserError, match="at least one"):
        Thresholds((None, None))
    assert Targets((1, 2)).values == (1.0, 2.0)
    with pytest.raises(UserError, match="targets must be numbers"):
        Targets(("x",))  # type: ignore[arg-type]


def test_a_label_of_thirds_is_read_back_as_thirds() -> None:
    """Six digits of 1/3 sum to 0.999999: the K = 3 benchmark once died of it."""
    for values in [(1 / 3,) * 3, (1 / 7, 2 / 7, 4 / 7), (1 / 6, 1 / 3, 1 / 2), (1 / 9,) * 9]:
        weights = Weights(values)
        back = Weights.parse(weights.label)
        assert back.label == weights.label and back.values == pytest.approx(values, abs=1e-6)
        assert sum(back.values) == pytest.approx(1, abs=1e-12)
    assert Weights.parse("0.25,0.75").values == (0.25, 0.75)
    with pytest.raises(UserError, match="sum to"):
        Weights.parse("0.33333,0.33333,0.33333")


def test_rounding_below_zero_is_zero_and_no_negative_weight() -> None:
    """1 - 0.8 - 0.2 is -5.6e-17."""
    for i in range(11):
        for j in range(11 - i):
            weights = Weights((i / 10, j / 10, 1 - i / 10 - j / 10))
            assert min(weights) >= 0 and weights == Weights.parse(weights.label)
    assert Weights((0.8, 0.2, 1 - 0.8 - 0.2)).values == (0.8, 0.2, 0.0)
    assert Weights((1.0, -0.0)).label == "1,0"
    with pytest.raises(UserError, match="negative"):
        Weights((1.00001, -0.00001))


def test_preferences_of_one_label_are_one_preference() -> None:
    for values in [(1 / 3,) * 3, (0.1 * 3, 0.7), (0.12345678, 0.87654322), (1 / 7, 2 / 7, 4 / 7), (1e-9, 1 - 1e-9)]:
        weights = Weights(values)
        nearby = Weights((values[0] + 1e-9, *values[1:]))
        assert weights == Weights.parse(weights.label) == Weights(weights.values)
        assert (weights == nearby) is (weights.label == nearby.label)
        assert sum(weights) == pytest.approx(1, abs=2e-6)
    assert Thresholds((None, 0.55 + 1e-12)) == Thresholds((None, 0.55))
    assert Targets((0.1 + 0.2,)) == Targets((0.3,)) and Direction((0.6, -0.8 + 1e-9)) == Direction((0.6, -0.8))
