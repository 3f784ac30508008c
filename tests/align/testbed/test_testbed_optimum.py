"""The exact optimum against direct tilts, gradients, dense searches and Monte Carlo; best-of-n; the conflict dial."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from align.preferences import Weights, simplex_grid
from align.testbed.answers import ReferenceTables, exact_answers
from align.testbed.exact import ExactModel, outcome
from align.testbed.optimum import (
    front,
    front_at_kl,
    optimum,
    reward_classes,
)
from align.testbed.responses import gold_rewards
from align.testbed.tabular import SoftBestOfN, Tilted, gold_table, length_table, soft_best_of_n_gain
from align.testbed.vocabulary import END_ID, VOCABULARY
from align.testbed.world import Prompt, World
from evals.tables.tradeoffs import exact_table
from factories.oracles import beta_at_kl, constrained_optimum
from factories.tiny_world import TINY, make_model

WORLD = World(TINY)
BETA = TINY.beta
GRID = simplex_grid(2, 4)
MIDDLE = Weights((0.5, 0.5))


def six_prompts() -> list[Prompt]:
    """Two of each harm level."""
    return WORLD.test_prompts("none")[::3]


@pytest.fixture(scope="module")
def tables() -> ReferenceTables:
    return ReferenceTables(WORLD, ExactModel(make_model(seed=0), name="reference"))


@pytest.fixture(scope="module")
def classes(tables: ReferenceTables) -> list:
    return [tables.classes(prompt) for prompt in six_prompts()]


def leaf_rewards(world: World, prompt: Prompt) -> np.ndarray:
    """(leaves, K) gold rewards of the flattened leaf table, filled in by hand."""
    table = np.full((133, len(VOCABULARY), world.config.objectives), world.config.malformed_reward)
    table[:, END_ID] = gold_rewards(world, prompt.topic)
    return table.reshape(-1, world.config.objectives)


def direct(tables: ReferenceTables, tilt: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Values, KL and log Z of `ref exp(tilt . r)`, averaged over the six prompts, from the leaf table itself."""
    parts = []
    for prompt in six_prompts():
        ref = tables.leaves(prompt).exp().numpy().ravel()
        rewards = leaf_rewards(WORLD, prompt)
        p = ref * np.exp(rewards @ tilt)
        z = p.sum()
        p /= z
        kept = p > 0
        parts.append([*(p @ rewards), np.sum(p[kept] * np.log(p[kept] / ref[kept])), np.log(z)])
    mean = np.mean(parts, axis=0)
    return mean[:2], mean[2], mean[3]


@pytest.mark.parametrize("weights", GRID, ids=lambda w: w.label)
@pytest.mark.parametrize("beta", [0.03, 0.1, 1.0])
def test_the_optimum_is_the_tilted_reference(weights: Weights, beta: float, classes, tables: ReferenceTables) -> None:
    values, kl, log_z = direct(tables, np.array(weights.values) / beta)
    point = optimum(classes, weights, beta=beta)
    assert point.values == pytest.approx(values, abs=1e-9)
    assert point.kl == pytest.approx(kl, abs=1e-9)
    assert pytest.approx(beta * log_z, abs=1e-9) == point.J
    assert pytest.approx(np.dot(weights.values, point.values) - beta * point.kl, abs=1e-9) == point.J


def test_reward_classes_carry_the_reference(tables: ReferenceTables) -> None:
    for prompt, found in zip(six_prompts(), map(tables.classes, six_prompts()), strict=True):
        mass = np.exp(found.log_mass_C)
        assert mass.sum() == pytest.approx(1, abs=1e-9)
        still = outcome(WORLD, prompt, tables.leaves(prompt), tables.leaves(prompt))
        assert mass @ found.rewards_CK == pytest.approx(still.values, abs=1e-9)
        assert mass[-1] == pytest.approx(still.malformed, abs=1e-9) and tuple(found.rewards_CK[-1]) == (-0.5, -0.5)
        assert len(found.rewards_CK) < 20


@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_on_a_tabular_policy_reach_the_optimum(sign: int, tables: ReferenceTables) -> None:
    """Free logits on all leaves of a small prompt, gradients of the exact J; a wrong sign ends elsewhere."""
    world = World(replace(TINY, max_tokens=1))
    prompt = world.test_prompts("none")[14]
    leaf_NV = ExactModel(make_model(seed=0), name="reference").leaf_logprobs(world, prompt)
    ref = leaf_NV[leaf_NV.isfinite()]
    weights = Weights((0.3, 0.7))
    reward = gold_table(world, prompt, weights)[leaf_NV.isfinite()]
    best = optimum([reward_classes(world, prompt, leaf_NV)], weights, beta=BETA)
    logits = ref.clone().requires_grad_()
    # Gradients over p are natural ones: plain ones vanish where a leaf has lost its mass, and a long step gets stuck.
    for _ in range(400):
        logp = logits.log_softmax(0)
        value = (logp.exp() * (reward - sign * BETA * (logp - ref))).sum()
        (gradient,) = torch.autograd.grad(value, logits)
        with torch.no_grad():
            logits += 0.1 / BETA * gradient / logp.exp().clamp(min=1e-300)
    logp = logits.detach().log_softmax(0)
    J = float((logp.exp() * (reward - BETA * (logp - ref))).sum())
    start = float((ref.exp() * reward).sum())
    assert best.J - start > 0.05
    if sign == 1:
        assert best.J >= J - 1e-12 and pytest.approx(best.J, abs=1e-6) == J
        star = Tilted(_Table(leaf_NV), partial(gold_table, weights=weights), BETA, "optimum")
        expected = star.leaf_logprobs(world, prompt)[leaf_NV.isfinite()]
        assert float((logp.exp() - expected.exp()).abs().max()) < 1e-3
    else:
        assert best.J - J > 0.01


class _Table:
    """A leaf table as a tree policy."""

    name, samples_per_response = "table", 1

    def __init__(self, leaf_NV: torch.Tensor) -> None:
        self.leaf_NV = leaf_NV

    def leaf_logprobs(self, world: World, prompt: Prompt) -> torch.Tensor:
        return self.leaf_NV


def test_the_front_is_monotone(classes) -> None:
    points = front(classes, simplex_grid(2, 20), beta=BETA)  # the first weight rises
    values = np.array([p.values for p in points])
    assert (np.diff(values[:, 0]) > 0).all() and (np.diff(values[:, 1]) < 0).all()
    J = np.array([p.J for p in points])
    assert (np.diff(J, 2) > -1e-12).all()  # J* is convex in the weights, as a maximum of linear functions


@pytest.mark.parametrize("kl", [0.05, 0.7, 2.0])
def test_beta_at_kl_spends_the_kl(kl: float, classes) -> None:
    for weights in GRID:
        beta = beta_at_kl(classes, weights, kl=kl)
        assert optimum(classes, weights, beta=beta).kl == pytest.approx(kl, abs=1e-6)
    points = front_at_kl(classes, GRID, kl=kl)
    again = [optimum(classes, w, beta=beta_at_kl(classes, w, kl=kl)).values for w in GRID]
    assert points.shape == (5, 2) and points == pytest.approx(np.array(again))
    utilities = np.array([w.values for w in GRID]) @ points.T
    assert (utilities.argmax(1) == range(5)).all()  # each point is the best for its own weights at this KL


def test_beta_at_kl_at_its_ends(classes) -> None:
    assert beta_at_kl(classes, MIDDLE, kl=500) == pytest.approx(math.exp(-7))
    with pytest.raises(ValueError, match="positive"):
        beta_at_kl(classes, MIDDLE, kl=0)


@pytest.mark.parametrize(("maximise", "constrain", "share"), [(0, 1, 0.3), (0, 1, 0.9), (1, 0, 0.6)])
def test_the_constrained_optimum(maximise: int, constrain: int, share: float, classes, tables) -> None:
    """Feasible and tight (complementary slackness), and no multiplier of a dense search serves better."""
    free, most = (optimum(classes, Weights.vertex(k, 2), beta=BETA) for k in (maximise, constrain))
    threshold = (1 - share) * free.values[constrain] + share * most.values[constrain]
    found = constrained_optimum(classes, maximise=maximise, constrain=constrain, threshold=threshold, beta=BETA)
    assert found.feasible and found.multiplier > 0
    assert found.multiplier * (found.point.values[constrain] - threshold) == pytest.approx(0, abs=1e-8)
    best, at = -math.inf, 0.0
    for multiplier in np.linspace(0, 2 * found.multiplier, 401):
        tilt = np.zeros(2)
        tilt[maximise], tilt[constrain] = 1 / BETA, multiplier / BETA
        values, kl, _ = direct(tables, tilt)
        if values[constrain] >= threshold - 1e-9 and values[maximise] - BETA * kl > best:
            best, at = values[maximise] - BETA * kl, multiplier
    assert pytest.approx(best, abs=1e-3) == found.point.J and best - 1e-8 <= found.point.J
    assert at == pytest.approx(found.multiplier, abs=found.multiplier / 150)
    assert pytest.approx(found.point.values[maximise] - BETA * found.point.kl, abs=1e-12) == found.point.J


def test_slack_and_infeasible_constraints(classes) -> None:
    free = optimum(classes, Weights.vertex(0, 2), beta=BETA)
    slack = constrained_optimum(classes, maximise=0, constrain=1, threshold=free.values[1] - 0.01, beta=BETA)
    assert slack.feasible and slack.multiplier == 0
    assert slack.point.values == pytest.approx(free.values) and pytest.approx(free.J) == slack.point.J
    beyond = constrained_optimum(classes, maximise=0, constrain=1, threshold=1.01, beta=BETA)
    assert not beyond.feasible


def test_the_conflict_dial_opens_the_front() -> None:
    """Agreeing: one point. Opposed: more than half the reward range. Monotone in between."""
    world, reference = World(replace(TINY, max_tokens=3)), ExactModel(make_model(seed=0), name="reference")
    leaves = [(p, reference.leaf_logprobs(world, p)) for p in world.test_prompts("none")[::3]]
    spans = []
    for dial in (0.0, 0.25, 0.5, 0.75, 1.0):
        turned = World(replace(world.config, conflict=dial))
        found = [reward_classes(turned, prompt, leaf_NV) for prompt, leaf_NV in leaves]
        values = np.array([p.values for p in front(found, GRID, beta=BETA)])
        spans.append(float((values.max(0) - values.min(0)).max()))
    assert spans[0] < 1e-6
    assert spans[-1] > 0.5
    assert spans == sorted(spans)


def test_soft_best_of_one_is_the_reference(tables: ReferenceTables) -> None:
    prompt = six_prompts()[4]
    leaf_NV = SoftBestOfN(tables, partial(gold_table, weights=MIDDLE), BETA, 1, "one").leaf_logprobs(WORLD, prompt)
    ref_NV = tables.leaves(prompt)
    assert torch.equal(leaf_NV.isfinite(), ref_NV.isfinite())
    assert float((leaf_NV - ref_NV)[ref_NV.isfinite()].abs().max()) < 1e-8


REWARDS, MASSES = np.array([-0.5, 0.0, 0.3, 1.0]), np.array([0.4, 0.3, 0.2, 0.1])


def two_draws(beta: float) -> np.ndarray:
    """p(y) / ref(y) of soft best-of-two: sum over the other draw z of ref(z) 2 a(y) / (a(y) + a(z))."""
    tilt = np.exp(REWARDS / beta)
    return np.array([sum(m * 2 * a / (a + b) for m, b in zip(MASSES, tilt, strict=True)) for a in tilt])


@pytest.mark.parametrize("beta", [0.1, 0.5, 5.0])
def test_soft_best_of_two_exactly(beta: float) -> None:
    gain = soft_best_of_n_gain(REWARDS, MASSES, beta=beta, n=2)
    assert gain == pytest.approx(two_draws(beta), abs=1e-8)
    assert gain @ MASSES == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("n", [5, 64])
def test_soft_best_of_n_by_monte_carlo(n: int) -> None:
    """40,000 tournaments; 5 standard errors of a proportion (below 1e-6 each)."""
    rng = np.random.default_rng(0)
    draws = rng.choice(4, size=(40_000, n), p=MASSES)
    tilt = np.exp(REWARDS / 0.3)[draws]
    wins = (tilt.cumsum(1) > rng.random((40_000, 1)) * tilt.sum(1, keepdims=True)).argmax(1)
    share = np.bincount(draws[np.arange(40_000), wins], minlength=4) / 40_000
    expected = soft_best_of_n_gain(REWARDS, MASSES, beta=0.3, n=n) * MASSES
    assert expected.sum() == pytest.approx(1, abs=1e-8)
    assert (np.abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / 40_000)).all()


def test_soft_best_of_many_approaches_the_optimum() -> None:
    star = MASSES * np.exp(REWARDS / 0.3)
    star /= star.sum()
    distance = [
        np.abs(soft_best_of_n_gain(REWARDS, MASSES, beta=0.3, n=n) * MASSES - star).sum() for n in (4, 64, 1024, 16384)
    ]
    assert distance == sorted(distance, reverse=True) and distance[-1] < 1e-3 < 0.1 < distance[0]
    with pytest.raises(ValueError, match="n >= 1"):
        soft_best_of_n_gain(REWARDS, MASSES, beta=0.3, n=0)


def test_the_controls_fail_the_gate_and_the_optimum_passes(tables: ReferenceTables) -> None:
    """Every row over the same preferences; best-of-n is good, and is charged for its samples."""

    def cells(row: str) -> list[dict]:
        found = []
        for w in GRID:
            gold = partial(gold_table, weights=w)
            policy = {
                "reference": tables,
                "optimum": Tilted(tables, gold, BETA, row),
                "kl_overspender": Tilted(tables, gold, BETA / 1000, row),
                "length_only": Tilted(tables, length_table, BETA, row),
                "best_of_n": SoftBestOfN(tables, gold, BETA, 1024, row),
            }[row]
            found += exact_answers(policy, row=row, weights=[w], shifts=("none",), tables=tables)
        return found

    rows = ("reference", "optimum", "kl_overspender", "length_only", "best_of_n")
    table = exact_table(
        [cell for row in rows for cell in cells(row)],
        objectives=WORLD.objectives,
        reference_point=(-0.5, -0.5),
        front_at_kl=None,
        info={"best_of_n": {"samples_per_response": 1024}},
    )
    assert {row: table[row]["passes"] for row in rows} == {row: row == "optimum" for row in rows}
    assert table["reference"]["regret_share"] == 1
    assert table["kl_overspender"]["regret_share"] > 0.25 and table["length_only"]["regret_share"] > 0.25
    assert table["best_of_n"]["regret_share"] < 0.25 and "1024 samples" in table["best_of_n"]["gate"]
    # spending KL buys the best hypervolume of all, which is why hypervolume does not rank
    assert table["kl_overspender"]["raw_hypervolume"] > 1 > table["length_only"]["raw_hypervolume"]


def test_the_length_table_pays_for_words_alone() -> None:
    table_NV = length_table(WORLD, six_prompts()[0])
    assert table_NV[[0, 1, 12], END_ID].tolist() == [0, 0.5, 1] and float(table_NV[:, 0].abs().max()) == 0
