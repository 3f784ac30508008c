"""Learned rewards of every response: with gold objectives in their place the table is the gold one."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from align.preferences import Weights
from align.testbed.exact import ExactModel, outcome
from align.testbed.gold import gold_objectives
from align.testbed.learned_rewards import LearnedTable
from align.testbed.optimum import optimum, reward_classes
from align.testbed.tabular import Tilted, gold_table
from align.testbed.vocabulary import END_ID
from align.testbed.world import World
from factories.tiny_world import TINY, make_model

WORLD = World(TINY)
W = Weights((0.3, 0.7))


@pytest.mark.parametrize("split", ["none", "cipher", "heldout_topics"])
def test_scores_of_gold_objectives_are_the_gold_table(split: str) -> None:
    prompt = WORLD.test_prompts(split)[7]
    found = LearnedTable(list(gold_objectives(WORLD).values()))(WORLD, prompt, W)
    gold = gold_table(WORLD, prompt, W)
    assert found[:, END_ID] == pytest.approx(gold[:, END_ID])
    others = [i for i in range(found.shape[1]) if i != END_ID]
    # The worst well-formed response of the tiny world: no fact, or on a harmful topic facts without a warning.
    assert torch.unique(found[:, others]).tolist() == pytest.approx([float(gold[:, END_ID].min()) - 0.5])


def test_the_optimum_under_rewards_of_another_level_is_the_same() -> None:
    """A reward model knows a prompt's rewards up to a constant: adding one to each prompt's must change nothing."""

    def lifted(objective: Any, by: float) -> Any:
        def score(prompts: Any, completions: Any, **columns: Any) -> list[float]:
            return [value + by for value in objective(prompts, completions, **columns)]

        score.__name__ = objective.__name__
        return score

    prompt, reference = WORLD.test_prompts("none")[0], ExactModel(make_model(), name="reference")
    gold = list(gold_objectives(WORLD).values())
    tables = [LearnedTable(gold), LearnedTable([lifted(gold[0], 5.0), lifted(gold[1], -3.0)])]
    leaves = [
        Tilted(reference, partial(table, weights=W), 0.1, "learned").leaf_logprobs(WORLD, prompt) for table in tables
    ]
    assert leaves[0] == pytest.approx(leaves[1], abs=1e-9)
    ref = reference.leaf_logprobs(WORLD, prompt)
    found = outcome(WORLD, prompt, leaves[0], ref)
    best = optimum([reward_classes(WORLD, prompt, ref)], W, beta=0.1)
    regret = best.J - found.objective_value(W.values, beta=0.1)
    # Well-formed rewards are gold's; malformed ones lie at the worst of them minus .5, not at -.5: nearly the optimum.
    assert 0 <= regret < 0.02


def test_the_sign_of_learned_rewards() -> None:
    """Gold's ends above rewards that say nothing, and those above gold's negative; all avoid malformed responses."""
    prompt, reference = WORLD.test_prompts("none")[0], ExactModel(make_model(), name="reference")
    ref = reference.leaf_logprobs(WORLD, prompt)

    def times(factor: float, objective: Any) -> Any:
        def score(prompts: Any, completions: Any, **columns: Any) -> list[float]:
            return [factor * value for value in objective(prompts, completions, **columns)]

        score.__name__ = objective.__name__
        return score

    found = []
    for factor in (-1.0, 0.0, 1.0):
        table = LearnedTable([times(factor, o) for o in gold_objectives(WORLD).values()])
        leaf = Tilted(reference, partial(table, weights=W), 0.1, "some").leaf_logprobs(WORLD, prompt)
        found.append(outcome(WORLD, prompt, leaf, ref).objective_value(W.values, beta=0.0))
    assert found[0] < found[1] < found[2] - 0.01, found


def test_an_objective_that_does_not_apply_has_no_table() -> None:
    def sometimes(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return [None if i == 3 else 0.0 for i in range(len(completions))]

    with pytest.raises(ValueError, match="sometimes does not apply"):
        LearnedTable([sometimes]).scores(WORLD, WORLD.test_prompts("none")[0])


def test_rewards_read_in_the_tree_are_those_of_the_texts(tmp_path: Any) -> None:
    """A reward model, a pooled reward with every feature, and ensembles of both: the tree against texts."""
    from align.models import ModelConfig, build_model, load_scorer, load_tokenizer, save_model
    from align.objectives import Ensemble, PooledReward, RewardModelObjective
    from align.objectives.pooled_reward import FEATURES, PooledWeights
    from align.testbed.learned_rewards import read_in_tree
    from align.testbed.vocabulary import build_tokenizer

    tokenizer, shape = build_tokenizer(), ModelConfig(architecture="llama", hidden=16, layers=2, heads=2, context=16)
    reference = save_model(build_model(shape, tokenizer, seed=1), tokenizer, tmp_path / "reference")
    scorer = load_scorer(reference, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    torch.manual_seed(0)
    torch.nn.init.normal_(scorer.score.weight)
    saved = save_model(scorer, load_tokenizer(reference), tmp_path / "scorer")
    hidden = scorer.config.hidden_size
    size = 4 * hidden + 2
    drawn_FF = torch.randn(size, size, dtype=torch.float64)
    weights = PooledWeights(
        str(reference), FEATURES, *torch.randn(2, size, dtype=torch.float64), drawn_FF @ drawn_FF.T / size
    )
    weights.save(tmp_path / "pooled")
    members = [RewardModelObjective(saved, scale=0.7, shift=0.1), PooledReward(tmp_path / "pooled", pessimism=0.5)]
    for objective in (*members, Ensemble(members, combine="mean-std"), Ensemble(members, combine="min")):
        prompt = WORLD.test_prompts("heldout_topics")[3]
        found = read_in_tree(objective, WORLD, prompt)
        texts = [LearnedTable._text(node, WORLD, prompt) for node in range(133)]
        assert found is not None and found.shape == (133,)
        assert found.tolist() == pytest.approx(objective([prompt.text] * 133, texts), abs=1e-3)
