"""The methods table on small exact worlds where every number has a second derivation. CPU, a few seconds."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from align.data.answers import ExactAnswer, SampledAnswer
from align.errors import UserError
from align.functional import fronts
from evals.measure import answers as store
from evals.tables import tradeoffs
from evals.tables.surfaces import ExactPoint, exact_points
from factories import synthetic

OBJECTIVES = ("helpful", "harmless")
ORIGIN = (-0.1, -0.1)
STRENGTHS = {"reference": 0.0, "optimum": 1.0, "half": 0.5, "overspender": 5.0}


@pytest.fixture(scope="module")
def prompts() -> list[synthetic.Prompt]:
    return synthetic.topics(3)


@pytest.fixture(scope="module")
def cells(prompts: list[synthetic.Prompt]) -> list[ExactAnswer]:
    return synthetic.exact_answers(STRENGTHS, prompts=prompts)


@pytest.fixture(scope="module")
def table(cells: list[ExactAnswer], prompts: list[synthetic.Prompt]) -> dict:
    solve = synthetic.front_at_kl(prompts[::2], steps=40)  # both verbs of a topic have its rewards
    return tradeoffs.exact_table(
        cells, objectives=OBJECTIVES, reference_point=ORIGIN, front_at_kl=solve, info={"half": {"note": "one half"}}
    )


def test_rows_are_ranked_by_regret_share(table: dict) -> None:
    shares = [row["regret_share"] for row in table.values()]
    assert shares == sorted(shares)
    assert table["optimum"]["regret_share"] == pytest.approx(0, abs=1e-12)
    assert table["reference"]["regret_share"] == pytest.approx(1)


def test_regret_is_beta_kl_to_the_optimum(table: dict, prompts: list[synthetic.Prompt]) -> None:
    expected = np.mean(
        [
            synthetic.BETA * synthetic.kl(synthetic.tilt(p, w, strength=0.5), synthetic.tilt(p, w, strength=1.0))
            for w in synthetic.grid(2, 4)
            for p in prompts
        ]
    )
    assert table["half"]["regret"] == pytest.approx(expected, rel=1e-9)
    assert table["half"]["regret_share"] == pytest.approx(expected / table["reference"]["regret"], rel=1e-9)


def test_front_points_are_means_over_prompts(table: dict, cells: list[ExactAnswer]) -> None:
    point = table["half"]["front"][0]
    own = [c for c in cells if c.row == "half" and list(c.preference) == point["preference"]]
    assert len(own) == 6 and point["preference"] == [0, 1]
    for name in ("kl", "J", "regret", "J_star"):
        assert point[name] == pytest.approx(np.mean([getattr(c, name) for c in own]))
    assert point["J_star"] - point["J"] == pytest.approx(point["regret"])


def test_raw_hypervolume_is_zero_for_the_reference_and_one_for_the_optimum(table: dict) -> None:
    assert table["reference"]["raw_hypervolume"] == pytest.approx(0)
    assert table["optimum"]["raw_hypervolume"] == pytest.approx(1)
    assert 0 < table["half"]["raw_hypervolume"] < 1


def test_raw_hypervolume_pays_for_overspending(prompts: list[synthetic.Prompt]) -> None:
    """Why it never ranks: with one preference, more KL is more volume, though regret rises."""
    cells = synthetic.exact_answers({"reference": 0.0, "overspender": 5.0}, prompts=prompts, preferences=[(1, 0)])
    rows = tradeoffs.exact_table(cells, objectives=OBJECTIVES, reference_point=(-0.1, -9), front_at_kl=None, info={})
    assert rows["overspender"]["raw_hypervolume"] > 1 and rows["overspender"]["regret"] > 0


def test_matched_kl_does_not_pay_for_overspending(table: dict) -> None:
    """Each point mixed with the reference down to the optimum's KL at its preference, from the pieces."""
    stars = {tuple(p["preference"]): p for p in table["optimum"]["front"]}
    start = np.array(table["reference"]["front"][0]["values"])
    for row in ("half", "optimum", "overspender"):
        points = []
        for point in table[row]["front"]:
            spent, allowed = point["kl"], stars[tuple(point["preference"])]["kl"]
            points.append(start + min(1, allowed / spent) * (np.array(point["values"]) - start))
        best = [star["values"] for star in stars.values()]
        volume, low, high = (fronts.hypervolume(p, ref_point=ORIGIN) for p in (points, [start], best))
        assert table[row]["matched_kl_hypervolume"] == pytest.approx((volume - low) / (high - low))
    shares = {row: table[row]["matched_kl_hypervolume"] for row in table}
    assert shares["optimum"] == pytest.approx(1) and shares["reference"] == pytest.approx(0)
    assert shares["overspender"] < 0.99, "its own KL buys more than the optimum has, raw"
    assert shares["half"] == pytest.approx(table["half"]["raw_hypervolume"]), "who spends less is left as it is"


def test_controllability_and_exchange_rate(table: dict) -> None:
    assert table["half"]["kendall_tau"] == {"helpful": 1, "harmless": 1}
    assert table["reference"]["kendall_tau"] == {"helpful": 0, "harmless": 0}
    rate = table["optimum"]["exchange_rate"]
    assert rate["of"] == "helpful" and rate["per"] == "harmless" and rate["overall"] < 0
    assert table["reference"]["exchange_rate"] is None


def test_every_point_of_a_concave_front_is_nondominated(table: dict) -> None:
    assert all(point["nondominated"] for point in table["optimum"]["front"])


def test_interval_over_seeds_is_null_with_its_reason(table: dict, cells: list[ExactAnswer]) -> None:
    assert table["half"]["regret_share_ci"] is None
    assert table["half"]["regret_share_ci_over"].startswith("no interval: 1 training seed")
    with_seeds = tradeoffs.exact_table(
        cells,
        objectives=OBJECTIVES,
        reference_point=ORIGIN,
        front_at_kl=None,
        info={},
        seed_shares={"half": [0.2, 0.25, 0.3]},
    )
    low, high = with_seeds["half"]["regret_share_ci"]
    assert low < 0.25 < high and "3 training seeds" in with_seeds["half"]["regret_share_ci_over"]


def test_gate() -> None:
    passes = {"regret_share": 0.25, "samples_per_response": 1, "complete": True, "bar": 0.25}
    assert tradeoffs.gate(**passes)[0] is True
    assert tradeoffs.gate(**passes | {"regret_share": 0.2501})[0] is False
    assert tradeoffs.gate(**passes | {"samples_per_response": 16}) == (
        False,
        "fails: spends 16 samples of the policy on each response",
    )
    assert tradeoffs.gate(**passes | {"complete": False})[0] is False
    assert tradeoffs.gate(**passes | {"regret_share": None})[0] is False


def test_controls_fail_through_the_same_gate(cells: list[ExactAnswer]) -> None:
    info = {"half": {"samples_per_response": 256}}
    table = tradeoffs.exact_table(
        cells, objectives=OBJECTIVES, reference_point=ORIGIN, front_at_kl=None, info=info, bar=0.5
    )
    controls = tradeoffs.controls_table(table, controls={"best of n": "half", "overspender": "overspender"})
    assert table["optimum"]["passes"] and not any(control["passes"] for control in controls.values())
    assert "256 samples" in controls["best of n"]["why"]
    with pytest.raises(UserError, match="which has no cells"):
        tradeoffs.controls_table(table, controls={"x": "absent"})


def test_a_row_that_skips_preferences_fails(cells: list[ExactAnswer]) -> None:
    fewer = [c for c in cells if c.row != "optimum" or c.preference == (0.5, 0.5)]
    table = tradeoffs.exact_table(fewer, objectives=OBJECTIVES, reference_point=ORIGIN, front_at_kl=None, info={})
    assert table["optimum"]["regret_share"] == pytest.approx(0, abs=1e-12) and not table["optimum"]["passes"]


def test_rows_must_share_prompts(cells: list[ExactAnswer]) -> None:
    missing = [c for c in cells if not (c.row == "half" and c.item == "topic 1")]
    with pytest.raises(UserError, match="'half' is measured on 4 prompts"):
        tradeoffs.exact_table(missing, objectives=OBJECTIVES, reference_point=ORIGIN, front_at_kl=None, info={})
    uneven = [c for i, c in enumerate(cells) if not (c.row == "half" and c.preference == (1, 0) and i % 2)]
    with pytest.raises(UserError, match=r"preference \[1.0, 0.0\] is measured on other prompts"):
        tradeoffs.exact_table(uneven, objectives=OBJECTIVES, reference_point=ORIGIN, front_at_kl=None, info={})
    with pytest.raises(UserError, match="'reference' has none"):
        tradeoffs.exact_table(
            [c for c in cells if c.row != "reference"],
            objectives=OBJECTIVES,
            reference_point=ORIGIN,
            front_at_kl=None,
            info={},
        )


def test_three_objectives(tmp_path: object) -> None:
    prompts, preferences = synthetic.topics(2, objectives=3), synthetic.grid(3, 2)
    cells = synthetic.exact_answers({"reference": 0.0, "half": 0.5}, prompts=prompts, preferences=preferences)
    table = tradeoffs.exact_table(
        cells, objectives=("a", "b", "c"), reference_point=(-0.1,) * 3, front_at_kl=None, info={}
    )
    assert len(table["half"]["front"]) == 6 and len(table["half"]["exchange_rate"]["preferences"]) == 3
    assert 0 < table["half"]["raw_hypervolume"] < 1
    json.dumps(table, allow_nan=False)


def sampled_cells(*, lift: float, seed: int = 0) -> list[SampledAnswer]:
    """Judge scores of 12 prompts x 4 samples; row "tuned" gains `lift` on the objective that it is asked for."""
    rng, cells = np.random.default_rng(seed), []
    for item in range(12):
        level = rng.normal(size=2)
        for row, preference in (("reference", (0.5, 0.5)), ("tuned", (1.0, 0.0)), ("tuned", (0.0, 1.0))):
            for sample in range(4):
                gain = lift * np.array(preference) * (row == "tuned")
                cells.append(
                    SampledAnswer(
                        row=row, preference=preference, shift="none", item=f"p{item}", prompt=f"prompt {item}",
                        sample=sample, completion=" words",
                        values=tuple((level + gain + 0.3 * rng.normal(size=2)).tolist()),
                        kl=0.0 if row == "reference" else 1.0 + 0.1 * float(rng.normal()),
                    )
                )  # fmt: skip
    return cells


def test_sampled_rows_have_intervals_and_no_regret() -> None:
    cells = sampled_cells(lift=1.0)
    table = tradeoffs.sampled_table(cells, objectives=OBJECTIVES, reference_point=(-4, -4), info={}, draws=200)
    tuned = table["tuned"]
    assert list(table) == ["tuned", "reference"] and tuned["regret_share"] is None and tuned["passes"] is None
    assert tuned["raw_hypervolume_ci"][0] > 0 and table["reference"]["raw_hypervolume"] == 0
    point = tuned["front"][1]
    own = [c.values[0] for c in cells if c.row == "tuned" and c.preference == (1, 0)]
    assert point["values"][0] == pytest.approx(np.mean(own)) and "12 prompts, 48 samples" in point["ci_over"]
    item_means = np.array(own).reshape(12, 4).mean(1)  # equal counts: the clustered error is that of the item means
    half = 2.20099 * item_means.std(ddof=1) / math.sqrt(12)
    assert point["values_ci"][0][1] - point["values"][0] == pytest.approx(half, rel=1e-5)
    json.dumps(table, allow_nan=False)


KEYS = [
    "row", "preference", "shift", "item", "prompt", "values", "kl", "J", "J_star", "regret", "values_star", "kl_star",
    "malformed",
]  # fmt: skip


def test_points_of_means_give_the_table_of_their_answers(table: dict, cells: list[ExactAnswer]) -> None:
    """What a benchmark keeps of each row and preference is its means: the gated numbers are those of all answers."""
    written = {row: [p.jsonable() for p in exact_points(c for c in cells if c.row == row)] for row in table}
    points = {row: [ExactPoint.parse(json.loads(json.dumps(p))) for p in found][::-1] for row, found in written.items()}
    yardstick = tradeoffs.Yardstick(objectives=OBJECTIVES, reference_point=ORIGIN)
    again = tradeoffs.points_table(points, yardstick=yardstick, info={})
    for row, entry in again.items():
        for name in ("regret", "regret_share", "raw_hypervolume", "kl"):
            assert entry[name] == pytest.approx(table[row][name], abs=1e-12), (row, name)
    with pytest.raises(ValueError, match="regret None, which is no number"):
        ExactPoint.parse({**written["half"][0], "regret": None})


def test_cells_on_disk(tmp_path: object, cells: list[ExactAnswer]) -> None:
    path = tmp_path / "run" / "cells.jsonl"  # type: ignore[operator]
    assert store.append_answers(path, cells[:3]) == 3
    with path.open("a") as file:
        file.write('{"row": "unfinished')
    store.append_answers(path, cells[3:])
    assert store.read_answers(path) == store.read_exact(path) == cells
    assert list(json.loads(path.read_text().splitlines()[0])) == KEYS
    with pytest.raises(UserError, match="holds exact answers"):
        store.read_sampled(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: not valid JSON"),
        ('{"row": "x"}', ":2: the answer has no 'preference'"),
        ("[]", ":2: the answer is not a JSON object"),
    ],
)
def test_bad_cells_name_file_and_line(tmp_path: object, cells: list[ExactAnswer], line: str, message: str) -> None:
    path = tmp_path / "cells.jsonl"  # type: ignore[operator]
    path.write_text(json.dumps(cells[0].jsonable()) + "\n" + line + "\n")
    with pytest.raises(UserError, match=message):
        store.read_answers(path)


def test_cells_are_checked_before_anything_is_written(tmp_path: object, cells: list[ExactAnswer]) -> None:
    path = tmp_path / "cells.jsonl"  # type: ignore[operator]
    with pytest.raises(UserError, match="answer 2 of the batch needs 'values' to be finite"):
        store.append_answers(path, [cells[0], replace(cells[1], values=(math.nan, 0.0))])
    assert not path.exists()
    with pytest.raises(UserError, match="no such file"):
        store.read_answers(path)
    store.append_answers(path, [cells[0], cells[0]])
    with pytest.raises(UserError, match="repeats"):
        store.read_answers(path)
