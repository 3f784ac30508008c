"""The fixed points benchmark: its commands name rules and trainers that belong together, RDPO among its rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from align.testbed.theory.hypotheses import LIBRARY
from align.testbed.theory.random_worlds import SequenceWorld, draw_trees
from benchmarks.fixed_points.commands import LINES
from benchmarks.fixed_points.run import RULES, measured, sequence_rows
from recipes.conformance.check import Target
from recipes.conformance.trainers import check_target

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.row)
def test_a_line_names_a_rule_and_the_trainer_that_should_end_there(line) -> None:  # type: ignore[no-untyped-def]
    assert line.rule in {one.name for one in LIBRARY} and line.row in {*RULES, "rdpo"}
    if line.trainer:
        name, *words = line.trainer.split()
        options = dict(word.removeprefix("options.").split("=") for word in words if word != "--set")
        check_target(name)
        assert Target(name=name, options=options).predicted in (line.rule, None)
        assert Target(name=name, options=options).predicted or "use_bias_correction_kl" in options


def test_rdpo_is_a_row_that_is_blind_to_the_size_of_rewards_and_says_whether_it_settled() -> None:
    """One objective ten times as large: the plain sum moves, and RDPO's policy stays where it was."""
    world = SequenceWorld("test", 3, 1, 2, beta=2.0)
    tree = draw_trees(world, draws=2, seed=0)
    larger = type(tree)(tree.logref, tuple(level * np.array([10.0, 1.0]) for level in tree.rewards), tree.branching)
    rows, others = (sequence_rows(world, one, (0.5, 0.5)) for one in (tree, larger))
    assert others["rdpo"].logp == pytest.approx(rows["rdpo"].logp, abs=1e-6)
    assert np.abs(others["plain"].logp - rows["plain"].logp).max() > 0.1
    values = measured(rows["rdpo"], world=world, tree=tree, weights=(0.5, 0.5))
    assert (values["share"] > 0).all() and values["late"] == pytest.approx(0, abs=1e-4)


def test_the_page_has_every_line_with_its_command() -> None:
    page, result = ((RESULTS / f"fixed_points.{end}").read_text(encoding="utf-8") for end in ("md", "json"))
    for line in LINES:
        assert line.setting in page and (f"`rule:{line.rule}`" in page or f'`"rule:{line.rule}"`' in page)
        assert line.trainer is None or f"`{line.trainer}`" in page
    shares = {one["row"]: one["share"] for one in json.loads(result)["commands"]}
    assert shares["plain"] == 0 and shares["gdpo"] > 0.1 and shares["rdpo"] > 0.1
    assert json.loads(result)["draws"] >= 60
