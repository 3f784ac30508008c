"""The rewards benchmark: the compact judge against the leaf tables, the oracles on endless labels, and calibration."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.preferences import Weights
from align.testbed.exact import ExactModel, outcome
from align.testbed.gold import gold_objectives, label_comparisons
from align.testbed.learned_rewards import LearnedTable
from align.testbed.optimum import optimum, reward_classes
from align.testbed.responses import gold_rewards, node_words
from align.testbed.tabular import Tilted
from align.testbed.vocabulary import END_ID
from align.testbed.world import World, WorldConfig
from benchmarks.rewards.exact import judge, masses_of
from benchmarks.rewards.oracle import KINDS, features_of, oracle_rewards
from benchmarks.rewards.plan import needed, trained
from benchmarks.rewards.stages import _calibration, _columns
from factories.tiny_world import TINY, make_model
from recipes.pipeline.plan import ordered
from recipes.pipeline.tasks import check_calls

WORLD = World(TINY)
WEIGHTS = [Weights((1.0, 0.0)), Weights((0.3, 0.7))]


class Bent:
    """A learned objective: gold, bent and tilted by length."""

    def __init__(self, gold: Any) -> None:
        self.gold, self.__name__ = gold, gold.__name__

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        scores = self.gold(prompts, completions)
        return [0.6 * s**2 + 0.1 * len(c.split()) for s, c in zip(scores, completions, strict=True)]


def test_the_judge_agrees_with_the_leaf_tables() -> None:
    reference = ExactModel(make_model(), name="reference")
    prompts = [WORLD.test_prompts("heldout_topics")[k] for k in (2, 14)]
    table = LearnedTable([Bent(gold) for gold in gold_objectives(WORLD).values()])
    leaves = [reference.leaf_logprobs(WORLD, prompt) for prompt in prompts]
    masses = [masses_of(WORLD, p, leaf[:, END_ID].numpy()) for p, leaf in zip(prompts, leaves, strict=True)]
    learned = [table.scores(WORLD, prompt).numpy() for prompt in prompts]
    found = judge(masses, learned, WEIGHTS, beta=0.1, malformed=WORLD.config.malformed_reward)
    for place, weights in enumerate(WEIGHTS):
        regrets, kls, before = [], [], []
        for prompt, leaf in zip(prompts, leaves, strict=True):
            tilted = Tilted(reference, partial(table, weights=weights), 0.1, "learned").leaf_logprobs(WORLD, prompt)
            best = optimum([reward_classes(WORLD, prompt, leaf)], weights, beta=0.1).J
            exact, unmoved = (outcome(WORLD, prompt, one, leaf) for one in (tilted, leaf))
            regrets.append(best - exact.objective_value(weights.values, beta=0.1))
            before.append(best - unmoved.objective_value(weights.values, beta=0.1))
            kls.append(exact.kl)
        assert found.regret_W[place] == pytest.approx(np.mean(regrets), abs=1e-9)
        assert found.reference_W[place] == pytest.approx(np.mean(before), abs=1e-9)
        assert found.kl_W[place] == pytest.approx(np.mean(kls), abs=1e-9)
    gold = [np.asarray(gold_rewards(WORLD, prompt.topic)) for prompt in prompts]
    assert judge(masses, gold, WEIGHTS, beta=0.1, malformed=WORLD.config.malformed_reward).share < 0.05
    still = judge(masses, learned, WEIGHTS, beta=0.1, malformed=WORLD.config.malformed_reward, pressure=0.0)
    assert still.share == pytest.approx(1.0) and still.promised_W == pytest.approx(0.0)


def rows_of(world: World, count: int, tau: float) -> list[dict[str, Any]]:
    """Pairs of random responses on fine-tuning prompts, as `draw_comparisons` gives them."""
    rng, rows = np.random.default_rng(0), list[dict[str, Any]]()
    while len(rows) < count:
        prompt = world.train_prompts[rng.integers(len(world.train_prompts))]
        nodes, gold = rng.integers(1, 133, size=2), gold_rewards(world, prompt.topic)
        texts = ["".join(f" {w}" for w in node_words(int(n), 2)) for n in nodes]
        rows.append({
            "id": f"c{len(rows)}", "prompt": prompt.text, "a": texts[0], "b": texts[1],
            "scores_a": gold[nodes[0]].tolist(), "scores_b": gold[nodes[1]].tolist(),
            "u": rng.random(), "u_k": rng.random(2).tolist(),
        })  # fmt: skip
    return rows


def test_the_true_class_finds_gold_from_many_labels_and_the_blind_one_knows_no_topic() -> None:
    world = World(WorldConfig(name="tiny test", max_tokens=2, tau=0.1))
    rows = rows_of(world, 3000, 0.1)
    pairs = {n: label_comparisons(rows, index=k, objective=n, tau=0.1) for k, n in enumerate(world.objectives)}
    prompts = [p for p in world.test_prompts("heldout_topics") if p.topic.harm == 2][:2]
    for kind, most in (("true_class", 0.03), ("rules", 0.15)):
        for prompt, found_NK in zip(prompts, oracle_rewards(kind, world, prompts, pairs=pairs), strict=True):
            gold_NK = gold_rewards(world, prompt.topic)
            error = (found_NK - found_NK.mean(0)) - (gold_NK - gold_NK.mean(0))
            assert np.sqrt((error**2).mean()) < most
    first, second = oracle_rewards("topic_blind", world, prompts, pairs=pairs)
    assert (first == second).all()
    assert features_of("rules", world, world.topics[0], 0)[-1].tolist() == [0.0] * 18 + [1.0]
    assert KINDS == ("true_class", "rules", "topic_blind")


def test_calibration_shrinks_margins_that_promise_too_much() -> None:
    rng = np.random.default_rng(1)
    margins_N = rng.normal(size=4000)
    right_N = rng.random(4000) < 1 / (1 + np.exp(-margins_N))
    signed_N = np.where(right_N, margins_N, -margins_N)
    assert _calibration(signed_N) == pytest.approx(1.0, abs=0.1)
    assert _calibration(4 * signed_N) == pytest.approx(0.25, abs=0.03)


def test_columns_of_features_lie_where_they_are_put_together() -> None:
    assert _columns(("logp", "last"), 3).tolist() == [12, 9, 10, 11]
    assert _columns(("agree", "length"), 3).tolist() == [0, 1, 2, 13]


def test_the_row_is_trained_on_both_rewards_in_runs_of_their_own() -> None:
    """The reference and the labels are shared; what trains, and what is trained on either rewards, is not."""
    both = {which: needed(made) for which, made in trained("noisy", 0, out=Path("runs")).items()}
    check_calls(ordered([*both["before"], *both["best"]]))
    folders = {which: {call.out for call in calls} for which, calls in both.items()}
    shared = folders["before"] & folders["best"]
    assert {folder.name for folder in shared} == {"pretrain", "sft", "comparisons"}
    apart = {folder.name for folder in folders["best"] - shared}
    assert {"pooled-helpful", "pooled-harmless"} <= apart and not {"best_of_256", "length_only"} & apart
