"""Low-rank soups, fixed points as predictions on the testbed's worlds, and the published study."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from align.errors import UserError
from align.preferences import Weights
from align.testbed.answers import ReferenceTables, exact_answers
from align.testbed.exact import ExactModel, leaves_from_nodes, outcome
from align.testbed.tabular import Tilted, gold_table
from align.testbed.theory.low_rank import MERGES, Factors, log_policy, merge, objective, train
from align.testbed.theory.predictions import KINDS, Predicted, world_tree
from align.testbed.vocabulary import END_ID, alphabet_ids
from align.testbed.world import World
from factories.oracles import predicted_fixed_point
from factories.tiny_world import TINY, make_model

W = (0.3, 0.7)


# ---- soups of low-rank specialists --------------------------------------------------------------------------------


def low_rank_world(seed: int = 0):
    rng = np.random.default_rng(seed)
    logref = np.log(rng.dirichlet(np.ones(7), size=5))
    left, right = rng.normal(size=(5, 2)), rng.normal(size=(2, 2, 7))
    return logref, left @ right[0], left @ right[1], rng


def test_gradients_of_the_low_rank_objective_by_differences() -> None:
    from align.testbed.theory.low_rank import _gradients

    logref, reward, _, rng = low_rank_world()
    b, a = rng.normal(size=(5, 2)), rng.normal(size=(2, 7))
    value = lambda b, a: objective(log_policy(logref, b @ a), logref=logref, reward=reward, beta=0.7)  # noqa: E731
    gb, ga = _gradients(b, a, logref, reward, 0.7)
    for at in ((0, 0), (3, 1)):
        step = np.zeros_like(b)
        step[at] = 1e-6
        assert (value(b + step, a) - value(b - step, a)) / 2e-6 == pytest.approx(gb[at], abs=1e-7)
    step = np.zeros_like(a)
    step[1, 4] = 1e-6
    assert (value(b, a + step) - value(b, a - step)) / 2e-6 == pytest.approx(ga[1, 4], abs=1e-7)


def test_specialists_reach_an_optimum_that_fits_their_rank_and_their_exact_soup_is_the_optimum() -> None:
    """Rewards of rank 2: the specialist is ref exp(r / beta), and `sum_k w_k r_k / beta` has rank 2 here, too."""
    logref, one, two, rng = low_rank_world(1)
    beta = 1.0
    starts = rng.normal(size=(2, 2, 7)) / math.sqrt(7)
    found = [train(logref, reward=r, beta=beta, a0=a0) for r, a0 in ((one, starts[0]), (two, starts[1]))]
    for r, s in zip((one, two), found, strict=True):
        assert s.gradient < 1e-7
        assert np.exp(log_policy(logref, s.delta)) == pytest.approx(np.exp(log_policy(logref, r / beta)), abs=1e-5)
    star = np.exp(log_policy(logref, (0.3 * one + 0.7 * two) / beta))
    law = {how: np.exp(log_policy(logref, merge(found, weights=W, how=how))) for how in MERGES}
    assert law["delta"] == pytest.approx(star, abs=1e-5)
    assert np.abs(law["factors"] - star).max() > 0.02 and np.abs(law["peft_linear"] - star).max() > 0.02


def test_merges_by_hand() -> None:
    """B_1 A_1 = 1 * 2, B_2 A_2 = 3 * 4 as 1 x 1 factors, w = (.5, .5)."""
    pair = [Factors(np.array([[b]]), np.array([[a]]), np.zeros(())) for b, a in ((1.0, 2.0), (3.0, 4.0))]
    found = {how: float(merge(pair, weights=(0.5, 0.5), how=how)[0, 0]) for how in MERGES}
    assert found == pytest.approx({"delta": 7, "factors": 2 * 3, "peft_linear": 0.5 * 4 * 6, "svd": 7})
    for how in MERGES:
        assert merge(pair, weights=(0.0, 1.0), how=how)[0, 0] == pytest.approx(12)
    with pytest.raises(ValueError, match="no merge"):
        merge(pair, weights=(0.5, 0.5), how="ties")
    rng = np.random.default_rng(0)
    wide = [Factors(rng.normal(size=(6, 2)), rng.normal(size=(2, 6)), np.zeros(())) for _ in range(2)]
    cut, whole = (merge(wide, weights=W, how=how) for how in ("svd", "delta"))
    assert np.linalg.matrix_rank(cut) == 2 and np.linalg.matrix_rank(whole) == 4
    size = np.linalg.svd(whole, compute_uv=False)
    assert np.linalg.norm(whole - cut) == pytest.approx(math.hypot(size[2], size[3]))


# ---- predictions on the testbed's worlds ---------------------------------------------------------------------------

WORLD = World(TINY)


@pytest.fixture(scope="module")
def tables() -> ReferenceTables:
    return ReferenceTables(WORLD, ExactModel(make_model(seed=0), name="reference"))


def some_prompts(world: World = WORLD):
    plain, cipher = world.test_prompts("none"), world.test_prompts("cipher")
    return [plain[0], plain[9], plain[-1], cipher[-1]]


def test_the_tree_of_a_world_holds_the_reference(tables: ReferenceTables) -> None:
    prompts = some_prompts()
    leaves = [tables.leaves(p) for p in prompts]
    tree = world_tree(WORLD, prompts=prompts, leaves=leaves)
    assert np.exp(tree.leaf_logref).sum(-1) == pytest.approx(1, abs=1e-12)
    law = np.exp(tree.leaf_logref)
    for i, (prompt, leaf_NV) in enumerate(zip(prompts, leaves, strict=True)):
        known = outcome(WORLD, prompt, leaf_NV, leaf_NV)
        assert law[i] @ tree.leaf_rewards[i] == pytest.approx(known.values, abs=1e-10)
        assert law[i][(tree.leaf_rewards[i] == -0.5).all(-1)].sum() == pytest.approx(known.malformed, abs=1e-10)


def test_the_scalarised_prediction_is_the_optimum_leaf_by_leaf(tables: ReferenceTables) -> None:
    weights = Weights(W)
    star = Tilted(tables, partial(gold_table, weights=weights), WORLD.config.beta, "optimum")
    prompts = some_prompts()
    found = predicted_fixed_point("scalarised", prompts=prompts, tables=tables, weights=W)
    for prompt, leaf_NV in zip(prompts, found, strict=True):
        best_NV = star.leaf_logprobs(WORLD, prompt).numpy()
        finite = np.isfinite(best_NV)
        assert (np.isfinite(leaf_NV) == finite).all()
        assert leaf_NV[finite] == pytest.approx(best_NV[finite], abs=1e-9)


def nodes_of(leaf_NV: torch.Tensor, ids: tuple[int, ...]) -> torch.Tensor:
    """(N, V) next-token log-probabilities of a leaf table of two-word responses, node by node in plain sums."""
    table = leaf_NV.exp()
    node_NV = table.clone()
    for a in range(11):
        node_NV[1 + a, list(ids)] = table[12 + 11 * a : 23 + 11 * a].sum(1)
    for a in range(11):
        node_NV[0, ids[a]] = node_NV[1 + a].sum()
    return (node_NV / node_NV.sum(1, keepdim=True)).log()


def test_the_token_mod_prediction_by_brute_force(tables: ReferenceTables) -> None:
    """Next-token tables of the single-objective optima over the whole vocabulary, averaged in logs, normalised."""
    for prompt in some_prompts()[1:]:
        ids = alphabet_ids(prompt.ciphered)
        best = [
            Tilted(tables, partial(gold_table, weights=Weights.vertex(k, 2)), WORLD.config.beta, "best")
            for k in range(2)
        ]
        parts = [nodes_of(b.leaf_logprobs(WORLD, prompt), ids) for b in best]
        mixed = (W[0] * parts[0] + W[1] * parts[1]).log_softmax(-1)
        expected = leaves_from_nodes(mixed, alphabet=ids, max_tokens=2).numpy()
        (found,) = predicted_fixed_point("token_mod", prompts=[prompt], tables=tables, weights=W)
        finite = np.isfinite(expected)
        assert found[finite] == pytest.approx(expected[finite], abs=1e-8)
        assert found[:, END_ID] == pytest.approx(expected[:, END_ID], abs=1e-8)


def test_the_token_kl_prediction_by_brute_force(tables: ReferenceTables) -> None:
    """Per node `ref exp(Q / beta)` with Q the mean reward below, over the whole vocabulary in a loop."""
    prompt = some_prompts()[2]
    ids, beta = list(alphabet_ids(False)), WORLD.config.beta
    ref_NV = nodes_of(tables.leaves(prompt), tuple(ids))
    reward_NV = gold_table(WORLD, prompt, Weights(W))
    node_NV, value = ref_NV.clone(), torch.zeros(133, dtype=torch.float64)
    for node in reversed(range(133)):
        q = reward_NV[node].clone()
        for a in range(11):
            child = node * 11 + 1 + a
            if child < 133:
                q[ids[a]] = value[child]
        node_NV[node] = (ref_NV[node] + q / beta).log_softmax(0)
        value[node] = (node_NV[node].exp() * q).sum()
    expected = leaves_from_nodes(node_NV, alphabet=tuple(ids), max_tokens=2).numpy()
    (found,) = predicted_fixed_point("token_kl", prompts=[prompt], tables=tables, weights=W)
    finite = np.isfinite(expected)
    assert found[finite] == pytest.approx(expected[finite], abs=1e-8)


def test_predictions_are_rows_of_the_exact_table(tables: ReferenceTables) -> None:
    """Every kind through the evaluator: unit mass, and regret as the rules say; scales pool their population."""
    weights = Weights((0.5, 0.5))
    population = WORLD.test_prompts("none")
    shares = {}
    for kind in KINDS:
        row = Predicted(kind, tables, weights, kind, group=8, population=population)
        cells = exact_answers(row, row=kind, weights=[weights], shifts=("none",), tables=tables)
        assert len(cells) == 18
        shares[kind] = float(np.mean([c.regret for c in cells]))
    still = exact_answers(tables, row="reference", weights=[weights], shifts=("none",), tables=tables)
    reference = float(np.mean([c.regret for c in still]))
    assert shares["scalarised"] == pytest.approx(0, abs=1e-9)
    assert 1e-4 < shares["token_kl"] < shares["token_k3"] < reference
    assert 1e-4 < shares["token_mod"] < reference
    runaway = min(shares[kind] for kind in ("group", "gdpo", "batch"))
    assert runaway > 3 * shares["token_kl"]  # unit advantages outweigh beta


def test_four_objectives_have_predictions_too() -> None:
    world = World(replace(TINY, objectives=4))
    tables = ReferenceTables(world, ExactModel(make_model(seed=0), name="reference"))
    prompt = world.test_prompts("none")[-1]
    weights = Weights((0.1, 0.2, 0.3, 0.4))
    for kind in KINDS:
        leaf_NV = Predicted(kind, tables, weights, kind).leaf_logprobs(world, prompt)
        assert float(leaf_NV.exp().sum()) == pytest.approx(1, abs=1e-9)


def test_a_rule_without_a_prediction_is_refused(tables: ReferenceTables) -> None:
    with pytest.raises(UserError, match="no predicted fixed point for 'dpo'"):
        predicted_fixed_point("dpo", prompts=some_prompts(), tables=tables, weights=W)


# ---- the study ------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[3]


def test_the_published_page_is_made_from_the_published_numbers() -> None:
    from benchmarks.fixed_points.page import page

    folder = ROOT / "docs" / "results"
    result = json.loads((folder / "fixed_points.json").read_text(encoding="utf-8"))
    text = (folder / "fixed_points.md").read_text(encoding="utf-8")
    assert page(result) == text and result["command"] in text
    assert min(result["draws"], result["soup_draws"]) >= 20
    assert min(len(result["sequences"]), len(result["soups"])) >= 3


def test_the_studys_numbers_of_a_small_world_again_by_hand() -> None:
    """Three draws of two-token worlds: the row's share as a mean of ratios from loops over the 16 responses."""
    from benchmarks.fixed_points import run as study

    world = replace(study.WORLDS[1], prompts=2)
    rows = study.measure_sequences(world, draws=3, seed=0)
    tree = study.draw_trees(world, draws=3, seed=0)
    shares = []
    for draw_ in range(3):
        for w in study.WEIGHTS:
            regrets = {"reference": 0.0, "token_mod": 0.0}
            for x in range(2):
                first, second = (np.exp(level[draw_, x]) for level in tree.logref)
                reward = tree.rewards[1][draw_, x]
                ref = {(a, b): first[0, a] * second[a, b] for a in range(4) for b in range(4)}

                def tilted(weights, ref=ref, reward=reward):
                    law = {y: p * math.exp(reward[y] @ np.array(weights) / world.beta) for y, p in ref.items()}
                    return {y: p / sum(law.values()) for y, p in law.items()}

                star, parts = tilted(w), [tilted(e) for e in np.eye(2)]
                heads = [[sum(p[a, b] for b in range(4)) for a in range(4)] for p in parts]
                top = [heads[0][a] ** w[0] * heads[1][a] ** w[1] for a in range(4)]
                law = {}
                for a in range(4):
                    one, two = ([p[a, b] / h[a] for b in range(4)] for p, h in zip(parts, heads, strict=True))
                    tail = [one[b] ** w[0] * two[b] ** w[1] for b in range(4)]
                    law |= {(a, b): top[a] / sum(top) * tail[b] / sum(tail) for b in range(4)}
                for name, p in (("reference", ref), ("token_mod", law)):
                    regrets[name] += sum(p[y] * math.log(p[y] / star[y]) for y in p)
            shares.append(regrets["token_mod"] / regrets["reference"])
    assert rows["token_mod"]["share"]["mean"] == pytest.approx(np.mean(shares), rel=1e-4)
    assert rows["token_mod"]["share"]["n"] == 3
    assert rows["plain"]["share"]["mean"] == 0 == rows["sequence_mod"]["share"]["mean"]
    for row in rows.values():
        assert row["share"]["mean"] >= row["share_best_beta"]["mean"] - 1e-9 >= row["share_best_weights"]["mean"] - 2e-9
    again = study.measure_sequences(world, draws=3, seed=0)
    assert again == rows != study.measure_sequences(world, draws=3, seed=1)


def test_the_studys_soups_of_a_world_that_fits() -> None:
    from benchmarks.fixed_points import run as study

    rows = study.measure_soups(study.LOW_RANK_WORLDS[0], draws=3, seed=0)
    for init in ("independent A", "shared A"):
        assert rows[f"delta, {init}"]["share"]["mean"] == pytest.approx(0, abs=1e-4)
        assert rows[f"factors, {init}"]["share"]["mean"] > 0.1 and rows[f"factors, {init}"]["exact_better"] == 3
