"""The four parts of a drop on a world: against the closed form over all outcomes, and 0 for who learned nothing."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from align.functional.parts import References, exact_parts
from align.preferences import Weights
from align.testbed.answers import ReferenceTables, exact_answers
from align.testbed.exact import ExactModel
from align.testbed.tabular import Tilted, gold_table
from align.testbed.transport import Remembered, control_of, plain_of
from align.testbed.vocabulary import alphabet_ids
from align.testbed.world import World
from evals.tables.under_shift.parts import PARTS, drop_parts
from factories.tiny_world import TINY, make_model

WORLD = World(TINY)
WEIGHTS = Weights((0.3, 0.7))
SHIFTS = ("cipher", "compliance", "control")


@pytest.fixture(scope="module")
def tables() -> ReferenceTables:
    return ReferenceTables(WORLD, ExactModel(make_model(seed=0), name="reference"))


def parts(policy, tables: ReferenceTables, shift: str) -> dict:
    sides = [
        exact_answers(policy, row="p", weights=[WEIGHTS], shifts=[side], tables=tables) for side in ("none", shift)
    ]
    return drop_parts(*sides)


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_parts_are_those_of_the_closed_form_over_all_outcomes(tables, shift):
    policy = Remembered(ExactModel(make_model(seed=1), name="p"))
    wanted = {name: [] for name in (*PARTS, "reward_drop")}
    for prompt in WORLD.test_prompts(shift):
        plain, control = plain_of(WORLD, prompt), control_of(WORLD, prompt)
        assert plain.item == control.item == prompt.item
        order = np.arange(tables.leaves(plain).shape[1])
        order[list(alphabet_ids(0))], order[list(alphabet_ids(prompt.spelling))] = (
            alphabet_ids(prompt.spelling), alphabet_ids(0),
        )  # fmt: skip
        reward_NV = gold_table(WORLD, plain, WEIGHTS).numpy()  # of the plain leaves

        def outcomes(leaf_NV, *, like=prompt, order=order):
            table = leaf_NV.numpy()
            return (table[:, order] if like.spelling else table).ravel()

        used = np.isfinite(tables.leaves(plain).numpy().ravel())
        found = exact_parts(
            reward_NV.ravel()[used],
            plain_N=policy.leaf_logprobs(WORLD, plain).numpy().ravel()[used],
            shifted_N=outcomes(policy.leaf_logprobs(WORLD, prompt))[used],
            references=References(
                tables.leaves(plain).numpy().ravel()[used], outcomes(tables.leaves(control), like=control)[used],
                outcomes(tables.leaves(prompt))[used],
            ),
            beta=WORLD.config.beta,
        )  # fmt: skip
        for name in wanted:
            wanted[name].append(getattr(found, name))
    got = parts(policy, tables, shift)
    for name, values in wanted.items():
        assert got[name] == pytest.approx(np.mean(values), abs=1e-9), name
    assert abs(got["mismatched"]) > 1e-4


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_untouched_reference_and_policies_in_closed_form_have_no_mismatched_part(tables, shift):
    tilted = [Tilted(tables, partial(gold_table, weights=WEIGHTS), WORLD.config.beta * k, "tilted") for k in (1, 0.5)]
    for policy in (tables, *tilted):
        found = parts(policy, tables, shift)
        assert abs(found["mismatched"]) < 1e-9
        assert found["drop"] == pytest.approx(sum(found[part] for part in PARTS), abs=1e-12)
    assert abs(parts(tilted[0], tables, shift)["carried_over"]) < 1e-9  # the optimum is the optimum everywhere


def test_only_behind_the_prefix_words_can_compete(tables):
    assert parts(tables, tables, "cipher")["competing"] == 0 and parts(tables, tables, "control")["competing"] == 0
    assert parts(tables, tables, "compliance")["competing"] != 0


def test_held_out_topics_have_nothing_to_carry_over_from():
    assert all(plain_of(WORLD, prompt) is None for prompt in WORLD.test_prompts("heldout_topics"))
