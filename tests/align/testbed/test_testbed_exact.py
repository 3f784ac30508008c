"""Exact evaluation against plain forward passes, loops over all outcomes, sampling, and regret = beta KL."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import partial

import pytest
import torch

from align.preferences import Weights
from align.runs import Ledger
from align.testbed.answers import ReferenceTables, exact_answers, outcomes
from align.testbed.exact import ExactModel, leaves_from_nodes, outcome
from align.testbed.gold import GoldObjective, sample_responses
from align.testbed.responses import level_starts, node_tokens, node_words
from align.testbed.tabular import Tilted, gold_table
from align.testbed.tree import node_logprobs
from align.testbed.vocabulary import (
    ALPHABET_IDS,
    CIPHER_ALPHABET_IDS,
    END_ID,
    VOCABULARY,
    alphabet_ids,
    build_tokenizer,
    encode,
)
from align.testbed.world import Prompt, World, cipher
from factories.tiny_world import TINY, all_leaves, brute_force, make_model, next_logprobs

WORLD = World(TINY)
MIDDLE = Weights((0.3, 0.7))
PREFERENCES = [Weights((0.0, 1.0)), MIDDLE, Weights((1.0, 0.0))]


def prompts() -> list[Prompt]:
    """One of each harm level and kind: plain, ciphered, prefixed."""
    plain, rot, forced = (WORLD.test_prompts(shift) for shift in ("none", "cipher", "compliance"))
    return [plain[0], rot[7], forced[14], plain[15]]


@pytest.fixture(scope="module")
def reference():
    return make_model(seed=0)


@pytest.fixture(scope="module")
def policy():
    return make_model(seed=1)


@pytest.fixture(scope="module")
def tables(reference) -> ReferenceTables:
    return ReferenceTables(WORLD, ExactModel(reference, name="reference"))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("ciphered", [False, True])
def test_the_tree_pass_is_the_plain_forward_pass(architecture: str, ciphered: bool) -> None:
    """Depth 3, so that caches of children of children are used, and more parents than one chunk of rows (242)."""
    model = make_model(architecture, seed=2)
    prompt = "absolutely present burglary :"
    if ciphered:
        prompt = " ".join(w if w == ":" else cipher(w) for w in prompt.split())
    nodes_NV = node_logprobs(model, encode(prompt), alphabet=alphabet_ids(ciphered), max_tokens=3)
    assert nodes_NV.shape == (1464, len(VOCABULARY)) and nodes_NV.dtype == torch.float64
    assert torch.allclose(nodes_NV.exp().sum(1), torch.ones(1464, dtype=torch.float64), atol=1e-12)
    rng = random.Random(0)
    for node in [0, 1, 11, 12, 132, 133, 1463, *rng.sample(range(133, 1464), 25)]:
        words = node_words(node, 3)
        path = prompt.split() + [cipher(w) if ciphered else w for w in words]
        expected = torch.tensor(next_logprobs(model, path), dtype=torch.float64)
        assert (nodes_NV[node] - expected).abs().max() < 1e-5, words


def test_more_parents_than_one_pass_holds(monkeypatch: pytest.MonkeyPatch, policy) -> None:
    from align.testbed import tree

    ids = encode(prompts()[0].text)
    whole_NV = node_logprobs(policy, ids, alphabet=ALPHABET_IDS, max_tokens=3)
    monkeypatch.setattr(tree, "ROWS_PER_PASS", 5)
    assert torch.allclose(node_logprobs(policy, ids, alphabet=ALPHABET_IDS, max_tokens=3), whole_NV, atol=1e-5)


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_leaf_masses_sum_to_one(max_tokens: int, policy) -> None:
    world = World(replace(TINY, max_tokens=max_tokens))
    for prompt in (world.test_prompts("none")[3], world.test_prompts("cipher")[3]):
        leaf_NV = ExactModel(policy, name="p").leaf_logprobs(world, prompt)
        assert leaf_NV.shape == (level_starts(max_tokens)[-1], len(VOCABULARY))
        assert float(leaf_NV.exp().sum()) == pytest.approx(1, abs=1e-12)
        alphabet = list(alphabet_ids(prompt.ciphered))
        inner = level_starts(max_tokens)[max_tokens]  # below the last depth, a valid continuation is no leaf
        assert torch.isinf(leaf_NV[:inner, alphabet]).all() and torch.isfinite(leaf_NV[inner:]).all()


def test_leaves_by_the_chain_rule_by_hand() -> None:
    """max_tokens 1, every next token 1/V after nothing; after a word, half the mass ends."""
    size = len(VOCABULARY)
    nodes_NV = torch.full((12, size), 1 / size, dtype=torch.float64)
    nodes_NV[1:] = 0.5 / (size - 1)
    nodes_NV[1:, END_ID] = 0.5
    leaf_NV = leaves_from_nodes(nodes_NV.log(), alphabet=ALPHABET_IDS, max_tokens=1).exp()
    assert float(leaf_NV[0, END_ID]) == pytest.approx(1 / size)
    assert leaf_NV[1:, END_ID].tolist() == pytest.approx([0.5 / size] * 11)
    assert float(leaf_NV[0, list(ALPHABET_IDS)].sum()) == 0
    assert float(leaf_NV[5, ALPHABET_IDS[2]]) == pytest.approx(0.5 / (size - 1) / size)  # a word too many


@pytest.mark.parametrize("index", range(4))
def test_outcome_is_the_sum_over_all_responses(index: int, reference, policy, tables: ReferenceTables) -> None:
    """Values, KL and malformed mass of 133 responses and 8,000 malformed endings, by loops."""
    prompt = prompts()[index]
    law, base = (
        dict(all_leaves(model, prompt.text, max_tokens=2, ciphered=prompt.ciphered)) for model in (policy, reference)
    )
    assert sum(math.exp(v) for v in law.values()) == pytest.approx(1, abs=1e-9)
    expected = brute_force(WORLD, prompt.topic, law, base)
    (found,) = outcomes(ExactModel(policy, name="p"), prompts=[prompt], tables=tables)
    assert found.values == pytest.approx(expected["values"], abs=1e-5)
    assert found.kl == pytest.approx(expected["kl"], abs=1e-5) and found.kl > 0.1
    assert found.malformed == pytest.approx(expected["malformed"], abs=1e-5)
    assert found.objective_value((0.3, 0.7), beta=0.1) == pytest.approx(
        0.3 * expected["values"][0] + 0.7 * expected["values"][1] - 0.1 * expected["kl"], abs=1e-5
    )


def test_a_ciphered_prompt_is_answered_in_cipher(policy) -> None:
    """The plain words are malformed endings there, and the other way round."""
    plain, rot = (ExactModel(policy, name="p").leaf_logprobs(WORLD, p) for p in (prompts()[0], prompts()[1]))
    assert torch.isinf(plain[0, list(ALPHABET_IDS)]).all() and torch.isfinite(plain[0, list(CIPHER_ALPHABET_IDS)]).all()
    assert torch.isinf(rot[0, list(CIPHER_ALPHABET_IDS)]).all() and torch.isfinite(rot[0, list(ALPHABET_IDS)]).all()
    words = prompts()[1].text.split()
    expected = next_logprobs(policy, words)[encode("~fbeel")[0]] + next_logprobs(policy, [*words, "~fbeel"])[END_ID]
    assert float(rot[2, END_ID]) == pytest.approx(expected, abs=1e-5)  # node 2 is "sorry"


@pytest.mark.parametrize("index", [0, 1])
def test_sampling_agrees_with_enumeration(index: int, policy, tables: ReferenceTables) -> None:
    """4,000 samples scored by their ids. Bounds are 5 standard errors: below 1e-6 to fail for each of 6 numbers."""
    prompt, count = prompts()[index], 4000
    (exact,) = outcomes(ExactModel(policy, name="p"), prompts=[prompt], tables=tables)
    ledger = Ledger()
    policy.generation_config.eos_token_id = [i for i in range(len(VOCABULARY)) if i not in alphabet_ids(index == 1)]
    ids = sample_responses(
        policy, build_tokenizer(), [prompt.text] * count, max_tokens=2, seed=0, ledger=ledger, batch_size=2000
    )
    assert ledger.samples_drawn == count
    for k in range(2):
        scores = GoldObjective(TINY, k)([prompt.text] * count, [""] * count, completion_ids=ids)
        spread = float(torch.tensor(scores).std()) / math.sqrt(count)
        assert sum(scores) / count == pytest.approx(exact.values[k], abs=5 * spread)
        broken = sum(s == TINY.malformed_reward for s in scores) / count
    p = exact.malformed
    assert 0.05 < p < 0.999 and broken == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / count))


def leaf_kl(p_NV: torch.Tensor, q_NV: torch.Tensor) -> float:
    finite = p_NV.isfinite()
    return float((p_NV[finite].exp() * (p_NV[finite] - q_NV[finite])).sum())


@pytest.mark.parametrize("weights", PREFERENCES, ids=lambda w: w.label)
def test_regret_is_beta_kl_to_the_optimum_prompt_by_prompt(weights: Weights, policy, tables: ReferenceTables) -> None:
    """J*_w - J_w = beta KL(pi || pi*_w): pi* is tilted leaf by leaf here, J* comes from the reward classes."""
    model = ExactModel(policy, name="p")
    (none, cipher_) = (WORLD.test_prompts(s)[:6] for s in ("none", "cipher"))
    for prompt in [*none, *cipher_]:
        cells = list(_cells(model, prompt, weights, tables))
        star_NV = tables.leaves(prompt) + gold_table(WORLD, prompt, weights) / TINY.beta
        star_NV = star_NV - star_NV.logsumexp((0, 1))
        predicted = TINY.beta * leaf_kl(model.leaf_logprobs(WORLD, prompt), star_NV)
        assert cells[0].regret == pytest.approx(predicted, abs=1e-6)
        assert cells[0].regret > 0.01


def _cells(policy, prompt: Prompt, weights: Weights, tables: ReferenceTables):
    from align.testbed.answers import Measured, answers_of

    (found,) = outcomes(policy, prompts=[prompt], tables=tables)
    return answers_of({prompt: Measured(found)}, row="p", shift="none", weights=weights, tables=tables)


@pytest.mark.parametrize("weights", PREFERENCES, ids=lambda w: w.label)
def test_the_optimum_has_no_regret_and_a_perturbed_one_what_kl_predicts(weights: Weights, tables) -> None:
    """Both go through the evaluator as any policy does, under every shift."""
    table = partial(gold_table, weights=weights)
    star = Tilted(tables, table, TINY.beta, "optimum")
    warm = Tilted(tables, table, TINY.beta, "perturbed", temperature=1.5)
    shifts = ("none", "cipher", "heldout_topics")
    at_star, at_warm = (
        exact_answers(p, row=p.name, weights=[weights], shifts=shifts, tables=tables) for p in (star, warm)
    )
    assert len(at_star) == 54
    assert max(abs(cell.regret) for cell in at_star) < 1e-9
    flat, steep = (p.leaf_logprobs(WORLD, prompts()[3]) for p in (warm, star))
    odds = [float(table_NV[2, END_ID] - table_NV[0, END_ID]) for table_NV in (flat, steep)]
    assert odds[0] == pytest.approx(odds[1] / 1.5, abs=1e-9)  # p^(1 / temperature)
    for cell, best in zip(at_warm, at_star, strict=True):
        prompt = next(p for p in WORLD.test_prompts(cell.shift) if p.text == cell.prompt)
        predicted = TINY.beta * leaf_kl(warm.leaf_logprobs(WORLD, prompt), star.leaf_logprobs(WORLD, prompt))
        assert cell.regret == pytest.approx(predicted, abs=1e-9) and cell.regret > 1e-3
        assert cell.J_star == pytest.approx(best.J, abs=1e-9)
        assert best.values == pytest.approx(best.values_star, abs=1e-9)
        assert best.kl == pytest.approx(best.kl_star, abs=1e-9)


def test_a_soup_goes_through_the_same_path(reference, policy, tables: ReferenceTables) -> None:
    """Half-way between two models in weight space: its numbers are those of enumerating the merged model."""
    soup = make_model(seed=0)
    ends = (reference.state_dict(), policy.state_dict())
    soup.load_state_dict({name: (ends[0][name] + ends[1][name]) / 2 for name in ends[0]})
    prompt = prompts()[0]
    law, base = (dict(all_leaves(m, prompt.text, max_tokens=2)) for m in (soup, reference))
    expected = brute_force(WORLD, prompt.topic, law, base)
    (found,) = outcomes(ExactModel(soup, name="soup"), prompts=[prompt], tables=tables)
    assert found.values == pytest.approx(expected["values"], abs=1e-5)
    assert found.kl == pytest.approx(expected["kl"], abs=1e-5)
    (still,) = outcomes(ExactModel(reference, name="end"), prompts=[prompt], tables=tables)
    assert still.kl == pytest.approx(0, abs=1e-12)


def test_cells_of_several_preferences_share_the_measurement(policy, tables: ReferenceTables) -> None:
    cells = exact_answers(
        ExactModel(policy, name="p"), row="p", weights=PREFERENCES, shifts=("none", "control"), tables=tables
    )
    assert len(cells) == 3 * 2 * 18 and {c.shift for c in cells} == {"none", "control"}
    one = [c for c in cells if c.prompt == cells[0].prompt]
    assert len(one) == 3 and len({tuple(c.values) for c in one}) == 1 and len({c.J for c in one}) == 3
    for cell in one:
        weighted = sum(w * v for w, v in zip(cell.preference, cell.values, strict=True))
        assert pytest.approx(weighted - 0.1 * cell.kl, abs=1e-12) == cell.J
        assert cell.regret == pytest.approx(cell.J_star - cell.J, abs=1e-12)
    train = exact_answers(tables, row="reference", weights=[MIDDLE], shifts=("train",), tables=tables)
    assert len(train) == 216 and max(c.kl for c in train) == 0


def test_a_table_without_unit_mass_is_refused(tables: ReferenceTables) -> None:
    prompt = prompts()[0]
    leaf_NV = tables.leaves(prompt)
    with pytest.raises(ValueError, match="not 1"):
        outcome(WORLD, prompt, leaf_NV + 1e-6, leaf_NV)


def test_node_order_is_the_order_of_the_reward_table() -> None:
    """The tree reads children in alphabet order; the rewards are indexed by the same numbering."""
    assert node_tokens(2)[1:12, 0].tolist() == list(range(11))
    assert [VOCABULARY[i] for i in ALPHABET_IDS][:4] == ["sure", "sorry", "careful", "f1"]
    assert node_words(12 + 11 * 2 + 3, 2) == ["careful", "f1"]
