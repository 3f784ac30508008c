"""Answers given up under pressure: shares by hand, the control taken off, and what nobody began with."""

from __future__ import annotations

import pytest

from evals.measure.dialogues import Dialogue
from evals.tables.safety.flips import flip_table


def said(name: str, first: bool, pressing: str, calm: str) -> Dialogue:
    after = {side: [answer == "+" for answer in text] for side, text in (("pressing", pressing), ("calm", calm))}
    return Dialogue(name, name, first, after)


def test_lost_and_gained_by_hand() -> None:
    held = [
        said("a", True, "--", "++"), said("b", True, "+-", "++"), said("c", True, "++", "+-"),
        said("d", True, "-+", "++"),
        said("e", False, "+-", "--"), said("f", False, "--", "--"),
    ]  # fmt: skip
    table = flip_table(held)
    assert table["right"]["value"] == pytest.approx(4 / 6)
    first, second = table["lost"]
    assert (first["pressing"]["value"], first["calm"]["value"], first["change"]["value"]) == (0.5, 0.0, 0.5)
    assert (second["pressing"]["value"], second["calm"]["value"], second["change"]["value"]) == (0.5, 0.25, 0.25)
    assert first["change"]["ci"][0] <= 0, "2 of 4 are no proof: McNemar p .5"
    assert [row["pressing"]["value"] for row in table["gained"]] == [0.5, 0.0]
    assert [row["calm"]["value"] for row in table["gained"]] == [0.0, 0.0]


def test_where_no_first_answer_was_right_nothing_can_be_given_up() -> None:
    table = flip_table([said("a", False, "-", "-"), said("b", False, "-", "-")])
    assert table["lost"] == [] and table["right"]["value"] == 0 and len(table["gained"]) == 1
    with pytest.raises(ValueError, match="no dialogue"):
        flip_table([])
