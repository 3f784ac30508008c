"""A planted shift is found, an identical suite shows none, and the drop splits exactly. CPU, a few seconds."""

import json
from dataclasses import replace

import numpy as np
import pytest

from align.data.answers import ExactAnswer, SampledAnswer
from align.errors import UserError
from evals.tables.under_shift import generalization
from evals.tables.under_shift.parts import PARTS
from factories import synthetic

OBJECTIVES = ("helpful", "harmless")
SETTING = {"objectives": OBJECTIVES, "headline": "harmless", "reference_point": (-0.1, -0.1), "draws": 200}
HOME = {"reference": 0.0, "tuned": 0.8}


def relabel(cells: list[ExactAnswer], shift: str) -> list[ExactAnswer]:
    return [replace(cell, shift=shift, prompt=f"{shift} {cell.prompt}") for cell in cells]


@pytest.fixture(scope="module")
def home() -> list[ExactAnswer]:
    return synthetic.exact_answers(HOME, prompts=synthetic.topics(8))


@pytest.fixture(scope="module")
def table(home: list[ExactAnswer]) -> dict:
    """identical: the same rows again. cipher: learning transfers by a third. prefix: the objectives pull harder."""
    weak = synthetic.exact_answers({"reference": 0.0, "tuned": 0.25}, prompts=synthetic.topics(8), shift="cipher")
    harder = synthetic.exact_answers(HOME, prompts=synthetic.topics(8, conflict=1.0), shift="prefix")
    others = synthetic.exact_answers(HOME, prompts=synthetic.topics(6, start=100), shift="held-out topics")
    shifted = [
        *synthetic.with_parts([*relabel(home, "identical"), *weak], home, adversarial=False),
        *synthetic.with_parts(harder, home, adversarial=True),
    ]
    return generalization.shifts_table([*home, *shifted, *others], **SETTING)


def test_an_identical_suite_shows_none(table: dict) -> None:
    row = table["identical"]["tuned"]
    assert all(gap["gap"] == 0 and gap["ci"] == [0, 0] for gap in row["gaps"])
    assert row["gain_retained"] == 1 and row["gain_retained_ci"] == [1, 1]
    assert all(row[part] == 0 for part in (*PARTS, "drop", "reward_drop"))


def test_a_planted_mismatch_is_found(table: dict, home: list[ExactAnswer]) -> None:
    row = table["cipher"]["tuned"]
    assert row["gap"] > 0 and row["gap_ci"][0] > 0
    assert row["gap_of"]["preference"] == [0, 1] and row["gap_of"]["n"] == 8
    assert row["gap_of"]["over"] == "95% over 8 base items, paired"
    assert all(row[part] == pytest.approx(0, abs=1e-12) for part in ("surface", "competing", "carried_over"))
    assert row["mismatched"] > 0 and row["mismatched_ci"][0] > 0
    assert 0 < row["gain_retained"] < 1 and row["gain_retained_ci"][1] < 1
    values = [c.values[1] for c in home if c.row == "tuned" and c.preference == (0, 1)]
    weak = synthetic.exact_answers({"tuned": 0.25}, prompts=synthetic.topics(8), preferences=[(0, 1)])
    assert row["gap"] == pytest.approx(np.mean(values) - np.mean([c.values[1] for c in weak]))


def test_a_planted_conflict_is_called_competing(table: dict) -> None:
    row = table["prefix"]["tuned"]
    middle = next(entry for entry in row["split"] if entry["preference"] == [0.5, 0.5])
    assert middle["competing"] > 5 * abs(middle["mismatched"]) and middle["surface"] == pytest.approx(0, abs=1e-12)
    assert row["conflict"]


def test_the_split_is_exact(table: dict, home: list[ExactAnswer]) -> None:
    before = np.mean([c.J for c in home if c.row == "tuned"])
    weak = synthetic.exact_answers({"tuned": 0.25}, prompts=synthetic.topics(8))
    assert table["cipher"]["tuned"]["drop"] == pytest.approx(before - np.mean([c.J for c in weak]), abs=1e-12)
    for shift, rows in table.items():
        for row in rows.values():
            if shift == "held-out topics":  # other items: nothing of them was there before
                assert row["mismatched"] is None and "items of its own" in row["split_over"] and row["drop"] is not None
                continue
            for entry in (row, *row["split"]):
                assert sum(entry[part] for part in PARTS) == pytest.approx(entry["drop"], abs=1e-12)


def test_other_items_are_compared_unpaired_and_say_so(table: dict) -> None:
    row = table["held-out topics"]["tuned"]
    assert "8 against 6 others, unpaired" in row["gap_of"]["over"]
    assert "resampled separately" in row["gain_retained_over"]
    assert row["gap_ci"][0] < 0 < row["gap_ci"][1]


def test_the_reference_is_its_own_baseline(table: dict) -> None:
    row = table["cipher"]["reference"]
    assert row["gap"] == 0 and row["gain_retained"] is None and "baseline" in row["gain_retained_over"]


def test_a_drop_that_the_reference_shares_is_no_gap(home: list[ExactAnswer]) -> None:
    """Every score falls by 0.3 for everyone: a level effect of the shift, not a failure of the method."""
    lower = [replace(c, values=tuple(v - 0.3 for v in c.values)) for c in relabel(home, "lower")]
    row = generalization.shifts_table([*home, *lower], **SETTING)["lower"]["tuned"]
    assert all(gap["gap"] == pytest.approx(0, abs=1e-12) for gap in row["gaps"])


def test_no_gain_no_retention() -> None:
    """A row that is the reference plus noise: the denominator's interval includes 0, so retention is null."""
    rng = np.random.default_rng(0)
    cells = synthetic.exact_answers({"reference": 0.0, "tuned": 0.0}, prompts=synthetic.topics(8))
    noise = {item: rng.normal(0, 0.05, 2) for item in sorted({c.item for c in cells})}
    cells = [
        replace(c, values=tuple((np.array(c.values) + noise[c.item] * (c.row == "tuned")).tolist())) for c in cells
    ]
    row = generalization.shifts_table([*cells, *relabel(cells, "same")], **SETTING)["same"]["tuned"]
    assert row["gain_retained"] is None and row["gain_retained_ci"] is None
    assert row["gain_retained_over"].startswith("null: the gain in distribution") and row["gain_id"] is not None


def test_a_loss_has_no_retention() -> None:
    """A row that is worse than the reference on every item: a ratio of two losses would read as a gain retained."""
    cells = synthetic.exact_answers({"reference": 0.0, "tuned": 0.0}, prompts=synthetic.topics(8))
    cells = [replace(c, values=tuple(v - 0.05 * (c.row == "tuned") for v in c.values)) for c in cells]
    row = generalization.shifts_table([*cells, *relabel(cells, "same")], **SETTING)["same"]["tuned"]
    assert row["gain_id"] < 0 and row["gain_retained"] is None and row["gain_retained_ci"] is None
    assert row["gain_retained_over"].startswith("null: the row loses hypervolume")


def test_verbs_of_a_topic_are_one_item(table: dict) -> None:
    """Eight topics with two verbs: n is 8, not 16."""
    assert {gap["n"] for gap in table["cipher"]["tuned"]["gaps"]} == {8}


def test_sampled_cells_have_gaps_and_no_split() -> None:
    rng, cells = np.random.default_rng(0), []
    for shift, lift in (("none", 1.0), ("ood", 0.2)):
        for item in range(15):
            for row, preference in (("reference", (0.5, 0.5)), ("tuned", (0.0, 1.0))):
                values = rng.normal(0, 0.2, 2) + [0, lift * (row == "tuned")]
                cells.append(
                    SampledAnswer(
                        row=row, preference=preference, shift=shift, item=f"p{item}", prompt=f"p{item}", sample=0,
                        completion=" x", values=tuple(values.tolist()), kl=0.1,
                    )
                )  # fmt: skip
    table = generalization.shifts_table(cells, **SETTING | {"reference_point": (-2, -2)})
    row = table["ood"]["tuned"]
    assert row["gap_ci"][0] > 0.4 and row["competing"] is None and "no exact optimum" in row["split_over"]
    json.dumps(table, allow_nan=False)


def test_mistakes_are_named(home: list[ExactAnswer]) -> None:
    with pytest.raises(UserError, match="'brief' is not one of the objectives"):
        generalization.shifts_table(home, **SETTING | {"headline": "brief"})
    alone = [c for c in relabel(home, "cipher") if c.row == "tuned"]
    with pytest.raises(UserError, match="'reference' has none under shift 'cipher'"):
        generalization.shifts_table([*home, *alone], **SETTING)
    fewer = [c for c in relabel(home, "cipher") if c.row != "tuned" or c.item != "topic 1"]
    with pytest.raises(UserError, match="differ in base items"):
        generalization.shifts_table([*home, *fewer], **SETTING)


def test_bootstrap_is_deterministic(home: list[ExactAnswer]) -> None:
    weak = synthetic.exact_answers({"reference": 0.0, "tuned": 0.25}, prompts=synthetic.topics(8), shift="cipher")
    twice = [generalization.shifts_table([*home, *weak], **SETTING) for _ in range(2)]
    assert json.dumps(twice[0]) == json.dumps(twice[1])
