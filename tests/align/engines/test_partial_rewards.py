"""An objective that does not apply has no part in the advantage; a likelihood term that no cut of a batch moves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from align.engines.conditioned import RowWeighted
from align.engines.on_policy.partial_rewards import filled, filled_rows
from align.methods import dpo, morlhf, ppo
from align.objectives.metered import Metered
from align.preferences import Weights
from align.runs import Ledger, open_run
from factories.tiny_bandit import PAIRS, RL, fit, make_reference, pair_rows, problem_of, tensors, workspace

NAN = math.nan
PROMPT = [{"id": "0", "prompt": "x :"}]


def test_a_missing_score_is_the_mean_of_its_group() -> None:
    """Group 1: 1 and 3 are known, mean 2; the second function is known once. Group 2 has no score of the second one."""
    given = torch.tensor([[1.0, NAN], [NAN, NAN], [3.0, 7.0], [0.0, NAN], [NAN, NAN], [4.0, NAN]])
    expected = torch.tensor([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0], [0.0, NAN], [2.0, NAN], [4.0, NAN]])
    assert torch.equal(filled(given, group=3).nan_to_num(-1), expected.nan_to_num(-1))
    lists = [[None if math.isnan(x) else x for x in column] for column in given.T.tolist()]
    found = filled_rows(lists, keys=["a"] * 3 + ["b"] * 3)
    assert found == [[1.0, 2.0, 3.0, 0.0, 2.0, 4.0], [7.0, 7.0, 7.0, None, None, None]]


def advantages(reference: str, folder: Path, objectives: dict[str, Any], weights: Any, algorithm: str) -> list[float]:
    """Those of 8 samples of one prompt, before the first step: the KL is 0."""
    config = morlhf.Config(**{**RL, "steps": 1, "batch_size": 8, "num_generations": 8}, algorithm=algorithm)
    problem = problem_of(reference, objectives=objectives, prompts=PROMPT)
    trainer = morlhf.build_trainer(config, problem, workspace(folder), weights=Weights(weights))
    trainer.model.train()
    output = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    return output["advantages"].flatten().tolist()


def every_second(prompts: Any, completions: Any, **_: Any) -> list[float | None]:
    return [None if i % 2 else -5.0 for i in range(len(completions))]


def rising(prompts: Any, completions: Any, **_: Any) -> list[float | None]:
    return [float(i) for i in range(len(completions))]


def rising_evens(prompts: Any, completions: Any, **_: Any) -> list[float | None]:
    return [None if i % 2 else float(i) for i in range(len(completions))]


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_not_applying_is_no_advantage(algorithm: str, reference: str, tmp_path: Path) -> None:
    """Counted as 0, None would be +2.5 for the odd samples of the first case."""
    scale = 8 / 7 if algorithm == "rloo" else 1.0  # RLOO's baseline leaves the sample itself out
    only = advantages(reference, tmp_path / "one", {"some": every_second}, (1.0,), algorithm)
    assert only == pytest.approx([0.0] * 8, abs=1e-4)
    both = advantages(reference, tmp_path / "two", {"all": rising, "some": every_second}, (0.5, 0.5), algorithm)
    assert both == pytest.approx([scale * 0.5 * (i - 3.5) for i in range(8)], abs=1e-4)
    evens = advantages(reference, tmp_path / "evens", {"evens": rising_evens}, (1.0,), algorithm)  # mean of 0 2 4 6: 3
    assert evens == pytest.approx([0.0 if i % 2 else scale * (i - 3) for i in range(8)], abs=1e-4)


def test_rows_with_their_own_weights_are_filled_in_their_group() -> None:
    functions = {"all": rising, "some": rising_evens}
    reward = RowWeighted([Metered(name, function, Ledger()) for name, function in functions.items()])
    weights = [[0.5, 0.5]] * 4 + [[1.0, 0.0]] * 4
    # some: 0 None 2 None | 4 None 6 None, means 1 and 5
    expected = [0.0, 0.5 + 0.5, 1.0 + 1.0, 1.5 + 0.5, 4.0, 5.0, 6.0, 7.0]
    assert reward(["x"] * 8, ["y"] * 8, w=weights) == pytest.approx(expected)


def test_ppo_counts_a_missing_score_as_the_mean(reference: str, tmp_path: Path) -> None:
    config = ppo.Config(**{**RL, "steps": 1, "batch_size": 8, "num_generations": 8, "whiten": False})
    family = fit(
        ppo, config, reference=reference, weights=[Weights((1.0,))], out=tmp_path, prompts=PROMPT,
        objectives={"some": every_second},
    )  # fmt: skip
    metrics = open_run(Path(family.points["1"]).parent).metrics
    assert metrics["reward"] == pytest.approx(-5.0, abs=1e-4)


# ------------------------------------------------------------------------------------------ the likelihood beside DPO


def test_the_likelihood_term_is_the_same_however_a_batch_is_cut(tmp_path: Path) -> None:
    many_tokens = make_reference(tmp_path / "model", one_token=False)
    rows = [{**row, "a": row["a"] * (1 + i % 4)} for i, row in enumerate(pair_rows(16))]  # of unlike lengths
    found = []
    for size, steps in ((8, 1), (1, 8)):
        settings = {"batch_size": size, "gradient_accumulation": steps, "epochs": 2.0, "learning_rate": 1e-3}
        config = dpo.Config(**{**PAIRS, **settings}, mle_weight=1.0)
        out = tmp_path / str(size)
        family = fit(dpo, config, reference=many_tokens, weights=[Weights((0.5, 0.5))], out=out, comparisons=rows)
        found.append(tensors(family.points["0.5,0.5"]))
    assert max(float((found[0][name] - found[1][name]).abs().max()) for name in found[0]) < 1e-5
