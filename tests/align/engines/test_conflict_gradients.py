"""Cosines of objectives' gradients before training, and the conflict in a summary."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from align.engines.gradient_conflict import Settings, gradient_conflict, leave_one_out, mean_labels
from align.errors import UserError
from align.functional import conflict
from align.runs import Ledger, open_run, run_stage
from factories.made_conflict_log import AGAINST, ONE, Opposed
from factories.tiny_bandit import OBJECTIVES, PROMPT_ROWS, PROMPTS, WORDS, pair_rows, problem_of, reward
from recipes.pipeline.conflict_summary import gradient_cosines, training_conflict

# --------------------------------------------------------------------------------------- gradients, before any training


def cosines(reference: str, objectives: Any, **changes: Any) -> Any:
    ledger = changes.pop("ledger", Ledger())
    rows = {name: changes.pop(name) for name in ("prompts", "comparisons") if name in changes}
    settings = Settings(**{"samples": 64, "max_completion_length": 1, **changes})
    return gradient_conflict(problem_of(reference, objectives=objectives, **rows), settings, ledger=ledger)


@pytest.mark.parametrize("lora_r", [0, 2])
def test_opposed_rewards_have_cosine_minus_one_and_equal_ones_one(lora_r: int, reference: str) -> None:
    objectives = {**AGAINST, "thrice": Opposed("thrice", ONE, 3.0)}
    rows = [{**r, "scores_a": [r["scores_a"][0] * f for f in (1, -1, 3)],
             "scores_b": [r["scores_b"][0] * f for f in (1, -1, 3)]} for r in pair_rows(24)]  # fmt: skip
    found = cosines(reference, objectives, comparisons=rows, lora_r=lora_r)
    expected = [[1, -1, 1], [-1, 1, -1], [1, -1, 1]]
    np.testing.assert_allclose(found.policy_KK, expected, atol=1e-5)
    np.testing.assert_allclose(found.dpo_KK, expected, atol=1e-5)
    assert found.names == ("one", "against", "thrice") and found.reliability_K[0] == pytest.approx(
        found.reliability_K[1]
    )


def exact_gradients(reference: str) -> np.ndarray:
    """(K, D): gradients of the sum over both prompts of E[r_k], every response enumerated."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(reference)
    rows = []
    for name in ("one", "two"):
        total = torch.zeros(())
        for prompt in PROMPTS:
            ids = torch.tensor([[WORDS.index(word) for word in prompt.split()]])
            p_V = model(input_ids=ids).logits[0, -1].softmax(-1)
            total = total + (p_V * torch.tensor([reward(name, prompt, word) for word in WORDS])).sum()
        grads = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), grads, strict=True)]
        rows.append(torch.cat([g.ravel() for g in flat]).numpy())
    return np.stack(rows)


def test_the_policy_gradients_cosine_is_that_of_the_enumerated_gradients(reference: str) -> None:
    """An oracle without samples, baselines or log-probabilities."""
    exact = conflict.gradient_cosines(exact_gradients(reference))[0, 1]
    found = cosines(reference, OBJECTIVES, samples=4096, batch_size=4096)
    assert abs(exact) < 0.95 and found.policy_KK[0, 1] == pytest.approx(exact, abs=0.1)


def test_the_dpo_cosine_is_that_of_the_dpo_losses(reference: str) -> None:
    """Oracle: the losses themselves, -log sigmoid(beta margin) with hard labels, differentiated at the reference."""
    from transformers import AutoModelForCausalLM

    rows = pair_rows(16)
    model = AutoModelForCausalLM.from_pretrained(reference)
    gradients = []
    for k in (0, 1):
        loss = torch.zeros(())
        for row in rows:
            sign = np.sign(row["scores_a"][k] - row["scores_b"][k])
            ids = torch.tensor([[WORDS.index(word) for word in row["prompt"].split()]])
            logp_V = model(input_ids=ids).logits[0, -1].log_softmax(-1)
            margin = logp_V[WORDS.index(row["a"].strip())] - logp_V[WORDS.index(row["b"].strip())]
            # minus the frozen reference, which at the reference leaves value 0 and the gradient
            loss = loss - abs(sign) * torch.nn.functional.logsigmoid(0.5 * sign * (margin - margin.detach()))
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), grads, strict=True)]
        gradients.append(torch.cat([g.ravel() for g in flat]).numpy())
    expected = conflict.gradient_cosines(np.stack(gradients))[0, 1]
    ledger = Ledger()
    found = cosines(reference, OBJECTIVES, comparisons=rows, ledger=ledger)
    assert found.dpo_KK[0, 1] == pytest.approx(expected, abs=1e-4) and abs(expected) < 0.99
    bare = [{k: v for k, v in row.items() if not k.startswith("scores")} for row in rows]
    asked = Ledger()
    again = cosines(reference, OBJECTIVES, comparisons=bare, ledger=asked)
    assert again.dpo_KK[0, 1] == pytest.approx(expected, abs=1e-4)
    assert ledger.samples_drawn == asked.samples_drawn == 128
    assert (ledger.scores_read, asked.scores_read) == (128 * 2 + 16 * 2, 128 * 2 + 16 * 2 * 2)


def test_it_is_repeatable_and_leaves_the_global_generator_alone(reference: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = cosines(reference, OBJECTIVES, seed=3)
    assert torch.equal(torch.rand(3), expected)
    other = cosines(reference, OBJECTIVES, seed=3, batch_size=64)
    np.testing.assert_array_equal(one.policy_KK, other.policy_KK)
    assert not np.allclose(cosines(reference, OBJECTIVES, seed=4).policy_KK, one.policy_KK)
    assert one.comparisons == 0 and one.dpo_KK is None and one.samples == 128 and one.weights > 1000


def test_signals_by_hand() -> None:
    """Leave-one-out: 1 - (2 + 6) / 2, ...; a score that does not apply is in no mean; labels are signs or tanh."""
    nan = math.nan
    found = leave_one_out(np.array([[1.0, nan], [2.0, 1.0], [6.0, 4.0], [5.0, 7.0], [nan, nan], [nan, 7.0]]), group=3)
    assert found[:, 0].tolist() == [-3.0, -1.5, 4.5, 0.0, 0.0, 0.0] and found[:, 1].tolist() == [0, -3, 3, 0, 0, 0]
    margins = np.array([[0.4, 0.0, -2.0]])
    assert mean_labels(margins, tau=0.0).tolist() == [[1.0, 0.0, -1.0]]
    chance = 1 / (1 + math.exp(-0.4 / 0.5))
    assert mean_labels(margins, tau=0.5)[0, 0] == pytest.approx(2 * chance - 1)


def test_sizes_that_mean_nothing_are_one_line(reference: str) -> None:
    for wrong in ({"samples": 1}, {"batch_size": 0}, {"lora_r": -1}, {"tau": -0.1}, {"prompts": PROMPT_ROWS[:1]}):
        with pytest.raises(UserError, match="gradient conflict"):
            cosines(reference, OBJECTIVES, **wrong)
    with pytest.raises(UserError, match="carry 2 scores, not 1"):
        cosines(reference, {"one": ONE}, comparisons=pair_rows(4))


# ----------------------------------------------------------------------------------------------------- to the summary


def made_run(folder: Path, **metrics: Any) -> Path:
    run_stage(folder, stage="made", config={}, body=lambda *_: metrics)
    return folder


def test_the_summary_takes_what_each_point_logged(tmp_path: Path) -> None:
    """A run per point, one run of all points, one policy for every preference, and rows that logged nothing."""
    logged = {"names": ["one", "two"], "trace": [{"step": 1}]}
    rows: dict[str, dict[str, Path]] = {"each": {}, "all": {}, "joint": {}, "offline": {}}
    for label in ("0,1", "0.5,0.5"):
        rows["each"][label] = made_run(tmp_path / "each" / label, optimises="J")
        made_run(tmp_path / "each" / label / "points" / label, **({"conflict": logged} if label != "0,1" else {}))
        rows["all"][label] = tmp_path / "all"
        made_run(tmp_path / "all" / "points" / label, conflict={**logged, "of": label})
        rows["joint"][label] = tmp_path / "joint"
        rows["offline"][label] = made_run(tmp_path / "offline" / label)
    made_run(tmp_path / "joint" / "conditioned", conflict=logged)
    assert training_conflict(rows) == {
        "each": [{"asked": "0.5,0.5", **logged}],
        "all": [{"asked": label, "of": label, **logged} for label in ("0,1", "0.5,0.5")],
        "joint": [{"asked": "every preference", **logged}],
    }


def test_the_summary_says_over_what_the_gradients_are(reference: str, tmp_path: Path) -> None:
    found = cosines(reference, AGAINST, samples=8)
    entries = gradient_cosines(open_run(made_run(tmp_path / "bare", **found.metrics())))
    assert set(entries) == {"gradient_cosines", "gradient_cosines_over"} and "16 reference samples" in str(entries)
    assert entries["gradient_cosines"][0][1] == pytest.approx(-1.0)
    rows = [{**row, "scores_a": [1.0, 0.0], "scores_b": [0.0, 0.0]} for row in pair_rows(6)]
    silent = cosines(reference, AGAINST, samples=8, comparisons=rows)
    entries = gradient_cosines(open_run(made_run(tmp_path / "silent", **silent.metrics())))
    assert entries["dpo_gradient_cosines"][0][0] == pytest.approx(1.0) and entries["dpo_gradient_cosines"][0][1] is None
    assert "none" in entries["dpo_gradient_cosines_over"]  # no preference, no direction: no number
