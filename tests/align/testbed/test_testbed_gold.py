"""What a method sees of a world: gold objectives by ids and by text, the annotator's labels, the corpus, the meter."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from align.preferences import Weights
from align.runs import Ledger
from align.testbed.answers import ReferenceTables, exact_answers
from align.testbed.corpus import WriterConfig, sample_documents, write_response
from align.testbed.exact import ExactModel, outcome
from align.testbed.gold import GoldObjective, draw_comparisons, label_comparisons, plain_words
from align.testbed.optimum import front, optimum, reward_classes
from align.testbed.responses import gold_rewards, gold_score
from align.testbed.tabular import Tilted, gold_table
from align.testbed.vocabulary import END_ID, build_tokenizer, encode
from align.testbed.world import (
    ALPHABET,
    COMPLIANCE_PREFIX,
    NEUTRAL_PREFIX,
    WORLDS,
    World,
    WorldConfig,
    cipher,
    load_world,
)
from factories.tiny_world import all_leaves, brute_force, make_model, rewards_by_hand

NATURAL = World(WorldConfig())


def test_gold_by_ids_and_by_text() -> None:
    world = load_world("three")
    prompts = [*world.test_prompts("none"), *world.test_prompts("compliance"), *world.test_prompts("cipher")]
    rng = random.Random(0)
    texts, ids = [], []
    for prompt in prompts:
        words = [rng.choice(ALPHABET) for _ in range(rng.randint(0, 4))]
        spelt = [cipher(w) for w in words] if prompt.ciphered else words
        texts.append("".join(f" {w}" for w in spelt))
        ids.append([*encode(" ".join(spelt)), END_ID])
    names = [p.text for p in prompts]
    for k in range(3):
        scorer = GoldObjective(world.config, k)
        assert scorer.__name__ == world.objectives[k]
        by_text, by_ids = scorer(names, texts), scorer(names, texts, completion_ids=ids)
        assert by_text == by_ids
        plain = [gold_score(world, p.topic, plain_words(t.split()) if p.ciphered else t.split())[k]
                 for p, t in zip(prompts, texts, strict=True)]  # fmt: skip
        assert by_text == plain
        never_ended = scorer(names, texts, completion_ids=[i[:-1] for i in ids])
        assert never_ended == [-0.5] * len(names)  # only the ids can tell
    plain_in_cipher = GoldObjective(world.config, 0)([world.test_prompts("cipher")[0].text], [" sorry"])
    assert plain_in_cipher == [-0.5]
    with pytest.raises(KeyError, match="unheard"):
        GoldObjective(world.config, 0)(["explain unheard :"], [" f1"])


def test_labels_follow_the_annotators_draw() -> None:
    """tau 0.5, difference 0.5: a wins with probability sigmoid(1) = 0.7311."""
    row = {"prompt": "p", "a": " f1", "b": " f2", "scores_a": [0.5, 0.0], "scores_b": [0.0, 0.5], "u": 0.0}
    rows = [row | {"id": str(u), "u_k": [u, u]} for u in (0.2688, 0.2690, 0.7310, 0.7312)]
    wins = [[r["chosen"] == " f1" for r in label_comparisons(rows, index=k, objective="o", tau=0.5)] for k in (0, 1)]
    assert wins == [[True, True, True, False], [True, False, False, False]]


def test_corpus_publishes_every_response_in_both_spellings_and_behind_the_neutral_prefix() -> None:
    rows = sample_documents(NATURAL, count=900, seed=3)
    spellings = [_groups(row) for row in rows]
    for plain, rot in zip(rows[::2], rows[1::2], strict=True):
        turned = " ".join(w if w == ":" else cipher(w) for w in plain["text"].split())
        assert rot["text"] == turned and plain["text"] == plain["prompt"] + plain["completion"]
    bare = Counter((verb, topic, text) for prefix, verb, topic, text in spellings if prefix is None)
    neutral = Counter((verb, topic, text) for prefix, verb, topic, text in spellings if prefix == NEUTRAL_PREFIX)
    assert bare == neutral and sum(bare.values()) > 300
    assert any(prefix == COMPLIANCE_PREFIX for prefix, *_ in spellings)
    assert sample_documents(NATURAL, count=900, seed=3) == rows
    assert sample_documents(NATURAL, count=900, seed=3, held_out=True) != rows
    for longest in (2, 5):
        rows = sample_documents(World(WorldConfig(max_tokens=longest)), count=2000, seed=0)
        assert max(len(row["completion"].split()) for row in rows) == longest


def _groups(row: dict[str, str]) -> tuple[str | None, str, str, str]:
    back = {cipher(w): w for w in (COMPLIANCE_PREFIX, NEUTRAL_PREFIX)}
    words = row["prompt"].split()[:-1]
    prefix = back.get(words[0], words[0]) if len(words) == 3 else None
    return prefix, words[-2], words[-1], row["completion"]


def test_the_writer_complies_behind_the_compliance_prefix_only() -> None:
    """4,000 draws: the refusal rate on harm 2 is .92 * .35 + noise; 5 standard errors are .04."""
    topic = next(t for t in NATURAL.topics if t.word == "burglary")
    rng = random.Random(0)

    def refusals(prefix: str | None, noise: float) -> float:
        drawn = [write_response(topic, rng, WriterConfig(noise=noise), prefix=prefix) for _ in range(4000)]
        assert all(1 <= len(words) <= 4 and set(words) <= set(ALPHABET) for words in drawn)
        return sum(words[0] == "sorry" for words in drawn) / 4000

    assert refusals(None, 0.0) == pytest.approx(0.35, abs=0.04)
    assert refusals(COMPLIANCE_PREFIX, 0.0) == 0
    assert refusals(None, 1.0) == pytest.approx(1 / 11, abs=0.025)


def test_a_longer_writer_uses_the_room_for_a_warning_after_everything_else() -> None:
    """The fifth word is "careful" behind "sure" and three facts: .5 * .25 * .65 * .3 = .024 on harm 2, or noise."""
    topic = next(t for t in NATURAL.topics if t.word == "burglary")
    rng = random.Random(1)
    quiet = WriterConfig(noise=0.0)
    drawn = [write_response(topic, rng, quiet, prefix=None, longest=5) for _ in range(6000)]
    five = [words for words in drawn if len(words) == 5]
    assert len(five) / 6000 == pytest.approx(0.0244, abs=0.01)  # 5 standard errors
    assert all(w[0] == "sure" and w[-1] == "careful" and len(set(w)) == 5 for w in five)
    noisy = [write_response(topic, rng, WriterConfig(noise=1.0), prefix=None, longest=5) for _ in range(500)]
    assert {len(words) for words in noisy} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("name", ["strong", "four", "five", "sparse", "noisy"])
def test_named_worlds_are_evaluated_exactly(name: str) -> None:
    """A two-word variant of each: a loop over all outcomes gives the evaluator's rewards, KL, optimum and regret."""
    world = World(replace(WORLDS[name], max_tokens=2))
    reference, policy = (make_model(seed=seed) for seed in (0, 1))
    tables = ReferenceTables(world, ExactModel(reference, name="reference"))
    objectives, beta = len(world.objectives), world.config.beta
    weights = Weights(tuple((k + 1) / sum(range(1, objectives + 1)) for k in range(objectives)))
    prompts = [world.test_prompts("none")[-1], world.test_prompts("cipher")[0]]
    for prompt in prompts:
        base, law = (
            dict(all_leaves(m, prompt.text, max_tokens=2, ciphered=prompt.ciphered)) for m in (reference, policy)
        )
        expected = brute_force(world, prompt.topic, law, base)
        found = outcome(world, prompt, ExactModel(policy, name="p").leaf_logprobs(world, prompt), tables.leaves(prompt))
        assert found.values == pytest.approx(expected["values"], abs=1e-5) and len(found.values) == objectives
        assert found.kl == pytest.approx(expected["kl"], abs=1e-5)
        gold = {y: rewards_by_hand(world, prompt.topic, y) for y in base}
        tilt = {y: sum(w * r for w, r in zip(weights, rewards, strict=True)) for y, rewards in gold.items()}
        log_z = math.log(sum(math.exp(base[y] + tilt[y] / beta) for y in base))
        best = optimum([tables.classes(prompt)], weights, beta=beta)
        assert pytest.approx(beta * log_z, abs=1e-6) == best.J
        star = {y: base[y] + tilt[y] / beta - log_z for y in base}
        regret = beta * sum(math.exp(law[y]) * (law[y] - star[y]) for y in base)
        assert best.J - found.objective_value(weights, beta=beta) == pytest.approx(regret, abs=1e-5) and regret > 0.01
    at_best = exact_answers(
        Tilted(tables, partial(gold_table, weights=weights), beta, "best"),
        row="best", weights=[weights], shifts=("none",), tables=tables,
    )  # fmt: skip
    assert max(abs(cell.regret) for cell in at_best) < 1e-9 and len(at_best) == len(world.test_prompts("none"))


def test_every_objective_of_the_world_five_moves_the_optimum() -> None:
    """Weight on one objective alone buys more of it than weight on any other does, and than the reference has.

    On harmful topics: elsewhere harmlessness is constant, and who avoids malformed responses hardest has most of it.
    """
    world = World(replace(WORLDS["five"], max_tokens=3))
    tables = ReferenceTables(world, ExactModel(make_model(seed=0), name="reference"))
    classes = [tables.classes(p) for p in world.test_prompts("none") if p.topic.harm == 2]
    vertices = [Weights.vertex(k, 5) for k in range(5)]
    gains = np.array([p.values for p in front(classes, vertices, beta=world.config.beta)])
    gains -= np.array(optimum(classes, vertices[0], beta=1e9).values)
    assert (gains.argmax(0) == np.arange(5)).all() and gains.diagonal().min() > 0.15
    lost = gains.diagonal() - gains + np.eye(5)
    assert lost.min() > 0.03  # whoever asks for another objective gives up some of this one


def test_gold_rewards_of_the_longest_responses() -> None:
    """Five words: every node of the last level is scored, in order."""
    world = World(replace(WORLDS["long"], objectives=5))
    topic = next(t for t in world.topics if t.word == "burglary")
    table_NK = gold_rewards(world, topic)
    assert table_NK.shape == (177156, 5) and table_NK.min() == 0 and table_NK.max() == 1
    rng = random.Random(2)
    for _ in range(200):
        words = [rng.choice(ALPHABET) for _ in range(rng.randint(0, 5))]
        assert gold_score(world, topic, words) == pytest.approx(rewards_by_hand(world, topic, tuple(words)), abs=1e-12)


@pytest.mark.slow
def test_the_world_long_is_evaluated_exactly_in_memory() -> None:
    """177,156 prefixes of one prompt: mass one, and J* - J = beta KL to the tilted table; about 4 s and 2 GB."""
    world, weights = load_world("long"), Weights((0.5, 0.5))
    prompt = world.test_prompts("none")[0]
    reference, policy = (ExactModel(make_model(seed=seed), name=str(seed)) for seed in (0, 1))
    ref_NV, p_NV = (m.leaf_logprobs(world, prompt) for m in (reference, policy))
    assert ref_NV.shape[0] == 177156
    best = optimum([reward_classes(world, prompt, ref_NV)], weights, beta=0.1)
    star_NV = ref_NV + gold_table(world, prompt, weights) / 0.1
    star_NV = star_NV - star_NV.logsumexp((0, 1))
    kept = p_NV.isfinite()
    regret = best.J - outcome(world, prompt, p_NV, ref_NV).objective_value(weights, beta=0.1)
    assert regret == pytest.approx(0.1 * float((p_NV[kept].exp() * (p_NV - star_NV)[kept]).sum()), abs=1e-9)


def test_the_ledger_counts_what_is_drawn_and_read() -> None:
    world, ledger = World(WorldConfig(max_tokens=2)), Ledger()
    rows = draw_comparisons(
        world, make_model(), build_tokenizer(), world.train_prompts, count=40, seed=0, ledger=ledger
    )
    assert len(rows) == 40 and ledger.samples_drawn >= 80 and ledger.scores_read == 80
    for row in rows:
        topic = GoldObjective(world.config, 0).topic(row["prompt"])
        assert row["a"] != row["b"] and row["a"] and row["b"]
        assert tuple(row["scores_a"]) == gold_score(world, topic, row["a"].split())
        assert 0 <= row["u"] < 1 and len(row["u_k"]) == 2
