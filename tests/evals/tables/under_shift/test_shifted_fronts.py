"""Fronts under shift over seeds: hand-made cells whose displacement, split, retention and rank changes are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from align.data.answers import ExactAnswer
from align.errors import UserError
from evals.tables.under_shift import shifted_fronts as shifted

ITEMS = ("a", "b", "c", "d", "e", "f")
PREFERENCES = ((1.0, 0.0), (0.0, 1.0))


def cell(
    row: str, shift: str, item: str, w: tuple[float, ...], *, values: Any, J: float = 0.0, star: float = 1.0,
    control: float | None = None, carried: float | None = None,
) -> ExactAnswer:  # fmt: skip
    return ExactAnswer(
        row=row, shift=shift, item=item, prompt=f"{shift} {item}", preference=w, values=tuple(values), kl=0.0, J=J,
        J_star=star, regret=star - J, values_star=(1.0, 1.0), kl_star=1.0, malformed=0.0,
        J_star_control=control, regret_carried=carried,
    )  # fmt: skip


def square(row: str, shift: str, *, side: float, tilt: float = 0.0) -> list[ExactAnswer]:
    """One point (side, side) at every preference; with `tilt`, items differ around it and cancel in the mean."""
    return [
        cell(row, shift, item, w, values=(side + tilt * (-1) ** i,) * 2)
        for w in PREFERENCES
        for i, item in enumerate(ITEMS)
    ]


def test_displacement_is_the_change_of_each_objective_with_both_intervals() -> None:
    """Item i moves by 0.1 i in the first objective, seeds add 0, 0.3, 0.6: mean 0.25 + 0.3; the second stays."""
    runs = {
        seed: [
            *(cell("m", "none", item, w, values=(1.0, 2.0)) for w in PREFERENCES for item in ITEMS),
            *(
                cell("m", "s", item, w, values=(1.0 + 0.1 * i + 0.3 * seed, 2.0))
                for w in PREFERENCES
                for i, item in enumerate(ITEMS)
            ),
        ]
        for seed in (0, 1, 2)
    }
    first, second = shifted.displacements(runs, row="m", shift="s", objectives=("x", "y"))
    assert first["preference"] == [0.0, 1.0] and second["preference"] == [1.0, 0.0]
    moved = first["x"]
    assert moved["value"] == pytest.approx(0.55)
    # seeds .25, .55, .85: t_2 = 4.3027, s = .3, half = 4.3027 * .3 / sqrt 3
    assert moved["ci_seeds"] == pytest.approx([0.55 - 0.74524, 0.55 + 0.74524], abs=1e-4)
    # items .3 + .1 i: s = .1 sqrt 3.5, t_5 = 2.5706
    half = 2.5706 * 0.1 * np.sqrt(3.5) / np.sqrt(6)
    assert moved["ci_items"] == pytest.approx([0.55 - half, 0.55 + half], abs=1e-4)
    assert moved["over_items"] == "95% over 6 base items, paired" and moved["over_seeds"] == "95% over 3 training seeds"
    assert first["y"]["value"] == 0 and first["y"]["ci_items"] == [0, 0]


def test_the_parts_add_up_and_say_what_was_planted() -> None:
    """J falls by .5: the optimum loses .05 to the surface and .15 to the words, the transported policy's regret is .05
    above the plain one, the policy's .25 above that."""
    runs = {
        seed: [
            *(cell("m", "none", i, PREFERENCES[0], values=(0, 0), J=0.9, star=1.0) for i in ITEMS),
            *(
                cell("m", "s", i, PREFERENCES[0], values=(0, 0), J=0.4, star=0.8, control=0.95, carried=0.15)
                for i in ITEMS
            ),
        ]
        for seed in (0, 1, 2)
    }
    split = shifted.exact_parts(runs, row="m", shift="s")
    wanted = {"surface": 0.05, "competing": 0.15, "carried_over": 0.05, "mismatched": 0.25, "drop": 0.5}
    assert {part: split[part]["value"] for part in wanted} == pytest.approx(wanted)


def test_other_items_under_the_shift_are_compared_unpaired() -> None:
    runs = {
        0: [
            *(cell("m", "none", i, PREFERENCES[0], values=(0, 0), J=0.5 + 0.01 * n) for n, i in enumerate(ITEMS)),
            *(cell("m", "s", f"new {i}", PREFERENCES[0], values=(0, 0), J=0.2 + 0.01 * n) for n, i in enumerate(ITEMS)),
        ]
    }
    drop = shifted.exact_parts(runs, row="m", shift="s")["drop"]
    assert drop["value"] == pytest.approx(0.3)
    assert "6 against 6 others, unpaired" in drop["over_items"] and drop["ci_seeds"] is None
    assert drop["over_seeds"] == "no interval: 1 training seed, at least 3 are needed"


def gains(sides: dict[int, tuple[float, float]]) -> dict[int, list[ExactAnswer]]:
    """Squares: the reference at side 1 everywhere; the method at sides[seed] in distribution and under the shift."""
    return {
        seed: [
            *square("reference", "none", side=1.0), *square("reference", "s", side=1.0),
            *square("m", "none", side=home, tilt=0.05), *square("m", "s", side=away, tilt=0.05),
        ]
        for seed, (home, away) in sides.items()
    }  # fmt: skip


def retained(runs: dict[int, list[ExactAnswer]], row: str = "m") -> dict:
    return shifted.gain_over_seeds(
        runs, row=row, shift="s", reference_row="reference", reference_point=(0.0, 0.0), draws=200, seed=0
    )


def test_gain_retained_by_hand() -> None:
    """Areas of squares from the origin: (1.5^2 - 1) / (2^2 - 1) = .41667; (2^2 - 1) / (2^2 - 1) = 1; 0 / 3 = 0."""
    assert retained(gains({0: (2.0, 1.5)}))["value"] == pytest.approx(1.25 / 3)
    found = retained(gains({0: (2.0, 1.5), 1: (2.0, 2.0), 2: (2.0, 1.0)}))
    assert found["value"] == pytest.approx((1.25 / 3 + 1 + 0) / 3)
    assert found["ci_seeds"][0] < found["value"] < found["ci_seeds"][1]
    assert found["ci_items"][0] < found["value"] < found["ci_items"][1]
    assert found["over_items"] == "95% over 6 base items, expanded bootstrap"


def test_the_untouched_reference_retains_null_and_so_does_a_row_that_gains_nothing() -> None:
    runs = gains({0: (2.0, 1.5)})
    assert retained(runs, row="reference")["value"] is None
    assert "baseline" in retained(runs, row="reference")["over_seeds"]
    for home in (1.0, 0.9):  # no gain, and a loss
        found = retained(gains({0: (2.0, 1.5), 1: (home, home)}))
        assert found["value"] is None and found["ci_items"] is None
        assert "not told from 0 (seed 1: " in found["over_seeds"]


def scores(**rows: list[float]) -> dict[str, dict[str, float]]:
    return {row: dict(zip(ITEMS, values, strict=True)) for row, values in rows.items()}


def test_rank_changes_name_what_was_planted() -> None:
    """a over b is kept, a over c is lost in noise, b and c invert; d is level with itself shifted by noise."""
    noise = [0.01, -0.01, 0.02, -0.02, 0.005, -0.005]
    flat, wild = np.array(noise), 40 * np.array(noise)
    home = scores(a=list(3 + flat), b=list(2 - flat), c=list(1 + flat[::-1]))
    away = scores(a=list(3 + wild), b=list(1 + flat), c=list(2 - flat[::-1]))
    found = shifted.rank_changes(home, away)
    assert found["ranks_home"] == {"a": 1, "b": 2, "c": 3} and found["ranks_away"] == {"a": 1, "c": 2, "b": 3}
    verdicts = {tuple(p["pair"]): p["verdict"] for p in found["pairs"]}
    assert verdicts == {("a", "b"): "kept", ("a", "c"): "kept", ("b", "c"): "inverted"}
    assert found["kendall_tau"] == pytest.approx(1 / 3)  # two pairs agree, one does not
    louder = scores(a=list(3 + 4 * wild), b=list(1 + flat), c=list(2 - flat[::-1]))
    lost = {tuple(p["pair"]): p["verdict"] for p in shifted.rank_changes(home, louder)["pairs"]}
    assert lost["a", "c"] == "lost"
    new = {tuple(p["pair"]): p["verdict"] for p in shifted.rank_changes(louder, home)["pairs"]}
    assert new["a", "c"] == "new"
    same = scores(a=noise, b=noise)
    assert shifted.rank_changes(same, same)["pairs"][0]["verdict"] == "level"


def test_holm_counts_all_pairs_of_a_side() -> None:
    rng = np.random.default_rng(0)
    home = scores(**{name: list(rng.normal(size=6)) for name in "abcd"})
    pairs = shifted.rank_changes(home, home)["pairs"]
    assert len(pairs) == 6
    smallest = min(pair["home"]["p"] for pair in pairs)
    assert min(pair["home"]["p_holm"] for pair in pairs) == pytest.approx(min(1.0, 6 * smallest))


def test_differences_of_two_rows_over_seeds() -> None:
    runs = {
        seed: [cell(row, "none", i, PREFERENCES[0], values=(0, 0), J=J) for row, J in (("m", 0.1 * seed), ("n", 0.0))
               for i in ITEMS]
        for seed in (1, 2, 3)
    }  # fmt: skip
    found = shifted.seed_differences(runs, rows=("m", "n"), shift="none", score=lambda c: c.J)
    assert found.estimate == pytest.approx(0.2) and found.n == 3


def test_missing_rows_are_told() -> None:
    with pytest.raises(UserError, match="row 'm' has none under shift 'rain'"):
        shifted.displacements({0: square("m", "none", side=1.0)}, row="m", shift="rain", objectives=("x", "y"))
    with pytest.raises(UserError, match="the rows on the two sides differ"):
        shifted.rank_changes(scores(a=[0.0] * 6), scores(b=[0.0] * 6))
