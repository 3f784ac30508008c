"""Pooled rewards: features by hand and in the tree, the maximum against scipy, what is saved, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from align.errors import UserError
from align.functional.bradley_terry import fit_linear_reward
from align.models import load_model, load_tokenizer
from align.objectives import PooledReward, learned_reward
from align.objectives.pooled_reward import FEATURES, PooledWeights, is_pooled, pooled_features
from align.runs import Ledger
from align.training.pooled_reward import PooledConfig, fit_pooled_reward


def test_features_are_those_of_one_unpadded_pass(tiny_model: Path) -> None:
    model, tokenizer = load_model(tiny_model).eval(), load_tokenizer(tiny_model)
    rows: list[Any] = [([3, 4, 5], [6, 7, 1]), ([3], [9]), ([5, 4], [8, 1])]
    found_BF = pooled_features(model, rows, pad_id=tokenizer.pad_token_id or 0, batch_size=2)
    embed_VH = model.get_output_embeddings().weight
    for (head, tail), found_F in zip(rows, found_BF, strict=True):
        ids = torch.tensor([[*head, *tail]])
        with torch.no_grad():
            states_TH = model.base_model(input_ids=ids).last_hidden_state[0]
            logp_TV = model(input_ids=ids).logits[0].log_softmax(-1)
        at = range(len(head), len(head) + len(tail))
        expected = [
            sum(states_TH[t - 1] * embed_VH[ids[0, t]] for t in at), sum(embed_VH[ids[0, t]] for t in at),
            sum(states_TH[t] for t in at), states_TH[at[-1]],
            sum(logp_TV[t - 1, ids[0, t]] for t in at)[None], torch.tensor([float(len(tail))]),
        ]  # fmt: skip
        assert torch.allclose(found_F, torch.cat(expected), atol=1e-4)
    some = pooled_features(model, rows, names=("length", "logp"), pad_id=0)
    assert some.shape == (3, 2) and some[:, 0].tolist() == [3.0, 1.0, 2.0]


def test_the_most_probable_weights_are_scipys_and_the_evidence_picks_the_prior() -> None:
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    truth_F, d_NF = np.array([1.0, -0.5, 0.0]), rng.normal(size=(400, 3))
    chosen_N = rng.random(400) < 1 / (1 + np.exp(-d_NF @ truth_F))
    d_NF = np.where(chosen_N[:, None], d_NF, -d_NF)
    fit = fit_linear_reward(d_NF, strengths=[4.0])

    def loss(w_F: np.ndarray) -> float:
        return float(np.logaddexp(0, -d_NF @ w_F).sum() + 2.0 * w_F @ w_F)

    assert fit.weights_F == pytest.approx(minimize(loss, np.zeros(3), tol=1e-12).x, abs=1e-5)
    steps = 1e-3 * np.eye(3)
    curvature_FF = [
        [sum(i * j * loss(fit.weights_F + i * a + j * b) for i in (1, -1) for j in (1, -1)) / 4e-6 for b in steps]
        for a in steps
    ]
    assert fit.covariance_FF == pytest.approx(np.linalg.inv(curvature_FF), abs=1e-5)
    assert fit.weights_F == pytest.approx(truth_F, abs=0.35)
    chosen = fit_linear_reward(d_NF)
    fits = [fit_linear_reward(d_NF, strengths=[s]) for s in (1.0, 10.0, 1000.0)]
    assert chosen.evidence >= max(one.evidence for one in fits) and 1 <= chosen.strength <= 10
    noise = np.where(rng.random(400)[:, None] < 0.5, d_NF, -d_NF)  # labels that say nothing: the strongest prior
    assert fit_linear_reward(noise).strength > 100
    assert fit_linear_reward(-d_NF, strengths=[4.0]).weights_F == pytest.approx(-fit.weights_F, abs=1e-6)


def test_evidence_of_one_feature_is_the_integral() -> None:
    d_N1 = np.array([[1.0], [0.5], [-0.25], [1.5], [0.75]])
    grid = np.linspace(-10, 10, 20001)
    likelihood = np.prod(1 / (1 + np.exp(-d_N1 * grid)), axis=0)
    exact = np.log(np.sum(likelihood * np.exp(-(grid**2))) / np.sum(np.exp(-(grid**2))))  # strength 2
    assert fit_linear_reward(d_N1, strengths=[2.0]).evidence == pytest.approx(exact, abs=0.02)


def rows_of(count: int = 60) -> list[dict[str, str]]:
    """Shorter replies are better; every tenth label says the opposite."""
    long = " sure bread is clay and wool"
    pairs = [(" sure", long) if i % 10 else (" sorry tea is ink", " no") for i in range(count)]
    return [{"prompt": f"explain bread {i % 4} :", "chosen": a, "rejected": b} for i, (a, b) in enumerate(pairs)]


@pytest.fixture(scope="module")
def fitted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    out = tmp_path_factory.mktemp("pooled")
    rows = rows_of()
    return out, fit_pooled_reward(
        PooledConfig(), model=tiny_model, rows=rows, out=out, ledger=Ledger(), validation=rows[:20]
    )


def test_a_solved_reward_orders_its_pairs_and_returns_to_units(fitted: tuple[Path, dict[str, object]]) -> None:
    out, metrics = fitted
    assert metrics["train_accuracy"] == pytest.approx(1.0) and metrics["trained_on"] == 60
    prompts = ["explain bread 1 :"] * 2
    good, bad = PooledReward(out)(prompts, [" sure", " sure bread is clay and wool"])
    assert good is not None and bad is not None and good > bad
    scaled = PooledReward(out, scale=2.0, shift=-1.0)(prompts[:1], [" sure"])
    assert scaled == pytest.approx([2 * good - 1], abs=1e-4)
    assert isinstance(learned_reward(out, name="x"), PooledReward) and is_pooled(out)
    assert not is_pooled(out.parent)


def test_pessimism_takes_posterior_deviations_off(fitted: tuple[Path, dict[str, object]]) -> None:
    weights = PooledWeights.load(fitted[0])
    size = len(weights.weights_F)
    assert weights.names == FEATURES
    assert weights.rewards(weights.centre_F[None], pessimism=3.0).item() == pytest.approx(0.0)
    features_BF = (weights.centre_F + torch.randn(4, size, dtype=torch.float64)).float()
    deviation = features_BF.double() - weights.centre_F
    expected = (
        deviation @ weights.weights_F
        - 2 * torch.einsum("bf,fg,bg->b", deviation, weights.covariance_FF, deviation).sqrt()
    )
    assert torch.allclose(weights.rewards(features_BF, pessimism=2.0), expected)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at most once"):
        PooledConfig(features=("agree", "agree"))
    with pytest.raises(UserError, match="numbers above 0"):
        PooledConfig(strengths=(0.0,))
    with pytest.raises(UserError, match="at least 0"):
        PooledReward(tmp_path, pessimism=-1.0)
    (tmp_path / "pooled.json").write_text(json.dumps({"backbone": "x"}))
    with pytest.raises(UserError, match="holds no pooled reward"):
        PooledReward(tmp_path)(["a"], ["b"])
