"""MOD on the world of one-token responses: exact specialists give the exact optimum, for any betas and divergence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from align.errors import UserError
from align.methods import mod
from align.policies.base import ModelPolicy
from align.policies.load import load_family
from align.policies.mixed import MixedFamily, MixedPolicy
from align.preferences import Weights
from align.runs import Ledger
from factories.made_models import make_adapter, specialist
from factories.tiny_bandit import (
    OBJECTIVES,
    PAIRS,
    PROMPT_ROWS,
    PROMPTS,
    WORDS,
    fit,
    kl,
    next_distribution,
    optimum,
    pair_rows,
    scalarised,
)

WEIGHTS = Weights((0.3, 0.7))


def distribution(policy: Any, prompt: str) -> list[float]:
    ids = torch.tensor([[WORDS.index(word) for word in prompt.split()]])
    return policy.next_token_logprobs(ids, torch.ones_like(ids))[0].double().exp().tolist()


def distances(policy: Any, reference: str, weights: Sequence[float], beta: float) -> tuple[float, float]:
    """KL(pi || pi*_w) of a policy and of the reference, mean over the prompts."""
    ours, theirs = 0.0, 0.0
    for prompt in PROMPTS:
        ref = next_distribution(reference, prompt)
        best = optimum(ref, scalarised(prompt, weights), beta=beta)
        ours += kl(distribution(policy, prompt), best) / len(PROMPTS)
        theirs += kl(ref, best) / len(PROMPTS)
    return ours, theirs


def mixture(reference: str, tmp_path: Path, points: Sequence[Weights] = (WEIGHTS,), **config: Any) -> MixedFamily:
    return fit(mod, mod.Config(**config), reference=reference, weights=list(points), out=tmp_path)


# -------------------------------------------------------------------------------------------------------- the optimum


def test_equal_betas_give_the_optimum_and_leave_the_reference_unread(reference: str, tmp_path: Path) -> None:
    beta = 0.5
    parts = tuple(specialist(reference, tmp_path / name, name, beta=beta) for name in OBJECTIVES)
    family = mixture(reference, tmp_path / "out", specialists=parts)
    for weights in (WEIGHTS, Weights((0.5, 0.5)), Weights((1.0, 0.0))):
        ours, theirs = distances(family.policy(weights), reference, weights, beta)
        assert ours < 1e-6 < 0.02 < theirs
    assert distances(family.policy(WEIGHTS), reference, (0.7, 0.3), beta)[0] > 1e-3
    assert reference not in family.policy(WEIGHTS).parts
    claim = family.optimises["0.3,0.7"]
    assert "no J" in claim and "one-token responses the optimum of E[w.r] - beta KL(pi||ref) at w = 0.3,0.7" in claim
    assert "coefficients 0.3,0.7)" in claim and "given specialists" in claim


def test_unequal_betas_need_the_reference(reference: str, tmp_path: Path) -> None:
    betas, beta = (0.25, 1.0), 0.5
    parts = tuple(
        specialist(reference, tmp_path / name, name, beta=b) for name, b in zip(OBJECTIVES, betas, strict=True)
    )
    family = mixture(reference, tmp_path / "out", specialists=parts, betas=betas, beta=beta)
    policy = family.policy(WEIGHTS)
    assert policy.parts[0] == reference and policy.mixture.coefficients == pytest.approx((-0.55, 0.15, 1.4))
    ours, theirs = distances(policy, reference, WEIGHTS, beta)
    assert ours < 1e-6 < 0.02 < theirs
    naive = mixture(reference, tmp_path / "naive", specialists=parts)  # as if all betas were one
    assert distances(naive.policy(WEIGHTS), reference, WEIGHTS, beta)[0] > 0.1 * theirs
    ours, _ = distances(family.policy(Weights((0.0, 1.0))), reference, (0.0, 1.0), beta)
    assert ours < 1e-6  # at a vertex the specialist is moved to the beta that is asked for
    assert "0.5 KL(pi||ref)" in family.optimises["0.3,0.7"]


def test_another_beta_than_that_of_the_specialists_can_be_asked_for(reference: str, tmp_path: Path) -> None:
    parts = tuple(specialist(reference, tmp_path / name, name, beta=0.5) for name in OBJECTIVES)
    for beta in (0.25, 1.0):
        family = mixture(reference, tmp_path / str(beta), specialists=parts, betas=(0.5, 0.5), beta=beta)
        ours, theirs = distances(family.policy(WEIGHTS), reference, WEIGHTS, beta)
        assert ours < 1e-6 < 0.01 < theirs


def test_three_objectives_one_of_weight_zero(reference: str, tmp_path: Path) -> None:
    parts = tuple(specialist(reference, tmp_path / name, name, beta=0.5) for name in OBJECTIVES)
    two = mixture(reference, tmp_path / "2", specialists=parts)
    three = fit(
        mod, mod.Config(specialists=(*parts, parts[0])), reference=reference, weights=[Weights((0.3, 0.7, 0.0))],
        out=tmp_path / "3", objectives={**OBJECTIVES, "three": OBJECTIVES["one"]},
    )  # fmt: skip
    for prompt in PROMPTS:
        narrow = distribution(two.policy(WEIGHTS), prompt)
        assert distribution(three.policy(Weights((0.3, 0.7, 0.0))), prompt) == narrow
        assert distribution(three.policy(Weights((0.1, 0.7, 0.2))), prompt) == pytest.approx(narrow, abs=1e-6)


@pytest.mark.parametrize("divergence", ["forward_kl", "alpha"])
def test_other_divergences_read_the_rule_and_say_for_whom_it_is(
    divergence: str, reference: str, tmp_path: Path
) -> None:
    parts = tuple(specialist(reference, tmp_path / name, name, beta=0.5) for name in OBJECTIVES)
    rules = {"divergence": divergence, "alpha": 0.25}
    solved = mixture(reference, tmp_path / "a", specialists=parts, **rules)
    published = mixture(reference, tmp_path / "b", specialists=parts, normaliser="rescale", **rules)
    alpha = {"forward_kl": 1.0, "alpha": 0.25}[divergence]
    for prompt in PROMPTS:
        a, b, ref = (next_distribution(model, prompt) for model in (*parts, reference))
        means = [(0.3 * x**-alpha + 0.7 * y**-alpha) ** (-1 / alpha) for x, y in zip(a, b, strict=True)]
        assert distribution(published.policy(WEIGHTS), prompt) == pytest.approx(
            [m / sum(means) for m in means], abs=1e-5
        )
        found = distribution(solved.policy(WEIGHTS), prompt)
        constants = [
            (p / r) ** -alpha - 0.3 * (x / r) ** -alpha - 0.7 * (y / r) ** -alpha
            for p, r, x, y in zip(found, ref, a, b, strict=True)
            if p > 1e-3
        ]
        assert max(constants) - min(constants) < 1e-3 * max(1.0, abs(constants[0]))
    expected = "KL(ref||pi)" if divergence == "forward_kl" else "D_0.25(pi||ref)"
    assert expected in solved.optimises["0.3,0.7"] and expected not in published.optimises["0.3,0.7"]


# --------------------------------------------------------------------------------------------- specialists trained here


def test_specialists_are_trained_at_the_vertices_and_mixed(reference: str, tmp_path: Path) -> None:
    ledger, rows = Ledger(), pair_rows(64)
    settings = {**PAIRS, "epochs": 1.0, "lora_r": 2, "learning_rate": 1e-2}
    points = [Weights((1.0, 0.0)), WEIGHTS]
    config = mod.Config(method="dpo", method_config=settings, beta=0.25)
    family = fit(mod, config, reference=reference, weights=points, out=tmp_path / "run.partial", comparisons=rows,
                 ledger=ledger)  # fmt: skip
    assert family.gains == (2.0, 2.0)  # trained at 0.5, asked for 0.25
    assert ledger.scores_read == 2 * 64  # one label per pair and specialist
    assert "specialists trained by dpo at the vertices" in family.optimises["0.3,0.7"]
    family.save(tmp_path / "run.partial")
    (tmp_path / "run.partial").rename(tmp_path / "run")
    again = load_family(tmp_path / "run")
    policy = again.policy(WEIGHTS)
    assert isinstance(policy, MixedPolicy) and policy.name == "mod@0.3,0.7"
    one, two = (ModelPolicy(path) for path in again.parts)
    for prompt in PROMPTS:
        tables = [torch.tensor(next_distribution(reference, prompt)).log()]
        tables += [torch.tensor(distribution(part, prompt)).log() for part in (one, two)]
        expected = (-1.0 * tables[0] + 0.6 * tables[1] + 1.4 * tables[2]).softmax(-1)
        assert distribution(policy, prompt) == pytest.approx(expected.tolist(), abs=1e-4)
    views = [component.model for component in policy.components()]
    assert len({id(view.backbone) for view in views}) == 1  # the reference and two adapters of it
    replies = policy.generate(list(PROMPTS), max_new_tokens=1, seed=0)
    assert len(replies) == 2 and again.policy(Weights((1.0, 0.0))).samples_per_response == 1


def test_on_policy_specialists_are_charged_once_each(reference: str, tmp_path: Path) -> None:
    settings = {"steps": 2, "batch_size": 16, "num_generations": 8, "max_completion_length": 1, "learning_rate": 1e-3}
    ledger = Ledger()
    fit(mod, mod.Config(method_config=settings), reference=reference, weights=[WEIGHTS], out=tmp_path,
        prompts=PROMPT_ROWS, ledger=ledger)  # fmt: skip
    assert ledger.samples_drawn == 2 * 2 * 16


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"divergence": "js"}, "divergence must be one of reverse_kl"),
        ({"divergence": "alpha", "alpha": 0.0}, "alpha must be above 0"),
        ({"normaliser": "none"}, "normaliser must be one of root, rescale"),
        ({"beta": -1.0}, "beta must be at least 0"),
        ({"betas": (0.1,)}, "betas must be 2 numbers above 0"),
        ({"betas": (0.1, 0.0)}, "betas must be 2 numbers above 0"),
        ({"betas": (0.1, 0.2)}, "set beta to that of the J"),
        ({"specialists": ("a", "b"), "beta": 0.1}, "set betas, one per specialist"),
        ({"specialists": ("a",)}, "1 specialists for 2 objectives"),
        ({"method": "ppo2"}, "no method 'ppo2' to train specialists with; choose one of .*dpo"),
        ({"method": "rewarded_soups"}, "no method 'rewarded_soups'"),
        ({"method": "dpo", "method_config": {"learning": 1}}, "no key 'learning'"),
    ],
)
def test_bad_settings_are_told_before_anything_is_trained(
    config: dict[str, Any], message: str, reference: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        mixture(reference, tmp_path, **config)
    assert not list(tmp_path.iterdir())


def test_specialists_of_another_vocabulary_are_refused(reference: str, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="different tokenizers"):
        mixture(reference, tmp_path, specialists=(reference, str(tiny_model)))


def test_adapters_may_be_given(reference: str, tmp_path: Path) -> None:
    adapters = tuple(make_adapter(reference, tmp_path / str(r), r=r, seed=r) for r in (1, 2))
    family = mixture(reference, tmp_path / "out", specialists=adapters)
    ours = torch.tensor(distribution(family.policy(WEIGHTS), "x :"))
    one, two = (torch.tensor(distribution(ModelPolicy(path), "x :")).log() for path in adapters)
    assert torch.allclose(ours, (0.3 * one + 0.7 * two).softmax(-1), atol=1e-5)


@pytest.mark.parametrize("method", ["genarm", "mod", "lagrangian"])
def test_only_methods_that_train_a_model_per_weights_make_specialists(
    method: str, reference: str, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=f"no method '{method}' to train specialists with; choose one of .*modpo, rebel"
    ):
        mixture(reference, tmp_path, method=method)
