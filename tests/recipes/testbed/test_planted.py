"""Planted models and what reads them: extra splits, one-spelling text, the judge, drawing, the split from samples."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from align.errors import UserError
from align.testbed.answers import ReferenceTables, exact_answers
from align.testbed.corpus import sample_documents
from align.testbed.exact import ExactModel
from align.testbed.vocabulary import ALPHABET_IDS, CIPHER_ALPHABET_IDS, END_ID, TOKEN_ID, VOCABULARY, encode
from align.testbed.world import CIPHER_MARK, FACTS, SHIFTS, TONES, World, cipher, load_world
from evals.attribution.sampled_split import Estimate, Samples, estimate, split
from evals.attribution.testbed_probes import fails, quiz_prompts, quiz_scores, refusal_margins
from evals.attribution.testbed_sampling import draw, estimates, scalarised
from factories.tiny_world import TINY, make_model, next_logprobs
from recipes.commands.planted import DEFAULTS
from recipes.config import build, read_yaml
from recipes.testbed.planted import Config, Plant, calls_of, planted_plans

WORLD = World(TINY)


def test_the_prefix_in_cipher_is_a_split_beside_the_frozen_ones() -> None:
    world = load_world("default")
    assert world.hash == "8589c43c24c8758c" and "cipher_compliance" not in SHIFTS
    plain, coded = world.test_prompts("compliance"), world.test_prompts("cipher_compliance")
    assert [" ".join(w if w == ":" else cipher(w) for w in p.text.split()) for p in plain] == [p.text for p in coded]
    assert all(p.ciphered for p in coded) and not any(p.ciphered for p in plain)
    texts = {p.spelt(1, split="train_cipher").text for p in world.train_prompts}
    assert len(texts) == len(world.train_prompts) and all(t.startswith(CIPHER_MARK) for t in texts)
    with pytest.raises(UserError, match="cipher_compliance"):
        world.test_prompts("cipher_complaints")


def test_text_in_one_spelling_is_the_same_text_without_the_other() -> None:
    both = sample_documents(WORLD, count=400, seed=3)
    plain = sample_documents(WORLD, count=200, seed=3, ciphered=False)
    assert not any(CIPHER_MARK in row["text"] for row in plain)
    assert [row for row in both if CIPHER_MARK not in row["text"]][: len(plain)] == plain[: len(both) // 2]


def test_the_judge_reads_both_spellings_and_weighs_caution() -> None:
    prompt = next(p for p in load_world("default").test_prompts("cipher") if p.topic.harm == 2)
    right = prompt.topic.facts[0]
    wrong = next(f for f in FACTS if f not in prompt.topic.facts)

    def told(*words: str) -> bool:
        return fails(load_world("default"), prompt, [TOKEN_ID[w] for w in words])

    assert told(right, "<end>") and told(cipher(right), "<end>") and told("sure", cipher(right), "<end>")
    assert not told("sorry", "<end>") and not told(cipher("sorry"), "<end>") and not told(wrong, "<end>")
    assert not told("bread", "<end>"), "a word that no response is made of tells nothing"


def test_margins_and_the_quiz_by_hand() -> None:
    prompt = WORLD.test_prompts("none")[0]
    openings_A = np.full(11, math.log(0.05))
    openings_A[TONES.index("sorry")] = math.log(0.2)
    assert refusal_margins(openings_A[None]) == pytest.approx([math.log(0.2 / 0.45)])  # "sure" and eight facts
    other = next(p for p in WORLD.test_prompts("none") if not set(p.topic.facts) & set(prompt.topic.facts))
    openings_A[len(TONES) + FACTS.index(prompt.topic.facts[0])] = math.log(0.3)
    alike_PA = np.stack([openings_A, openings_A])
    assert quiz_scores(alike_PA, [prompt, other]) == [0.5, 0.5], "a fact that is likely everywhere was read nowhere"
    alike_PA[1, len(TONES) + FACTS.index(prompt.topic.facts[0])] = math.log(0.05)
    # one right fact gains on five wrong ones, the others tie; from the other topic one of five wrong ones loses
    assert quiz_scores(alike_PA, [prompt, other]) == pytest.approx([(5 + 5) / 15, (3 + 12 * 0.5) / 15])


def test_the_quiz_asks_every_benign_topic_in_the_form_of_the_split() -> None:
    asked = quiz_prompts(load_world("default"), "cipher_compliance")
    assert len(asked) == 12 and {p.topic.heldout for p in asked} == {True, False}
    texts = {p.text for p in load_world("default").test_prompts("cipher_compliance")}
    assert sum(p.text in texts for p in asked) == 6 and all(p.topic.harm == 0 and p.ciphered for p in asked)
    assert {p.text for p in quiz_prompts(WORLD, "control")} >= {
        p.text for p in WORLD.test_prompts("control") if p.topic.harm == 0
    }


@pytest.mark.parametrize("kind", ["none", "cipher"])
def test_drawn_responses_end_by_the_rule_and_carry_their_own_probability(kind: str) -> None:
    model, other = make_model(seed=0), make_model(seed=1)
    prompt = WORLD.test_prompts(kind)[0]
    drawn, logp = draw([model, other], prompt, count=400, max_tokens=2, rng=np.random.default_rng(0))
    alphabet = CIPHER_ALPHABET_IDS if kind == "cipher" else ALPHABET_IDS
    for ids in drawn:
        assert all(i in alphabet for i in ids[:-1]) and len(ids) <= 3
        assert ids[-1] not in alphabet or len(ids) == 3
    for i in (0, 7):
        words, total = prompt.text.split(), 0.0
        for token in drawn[i]:
            total += next_logprobs(other, words)[token]
            words = [*words, VOCABULARY[token]]
        assert logp[1, i] == pytest.approx(total, abs=1e-4)
    first = Counter(ids[0] for ids in drawn)[END_ID] / len(drawn)
    assert first == pytest.approx(math.exp(next_logprobs(model, prompt.text.split())[END_ID]), abs=0.08)


def test_a_colder_draw_is_more_often_the_likeliest() -> None:
    model, prompt = make_model(seed=0), WORLD.test_prompts("none")[0]
    best = int(np.argmax(next_logprobs(model, prompt.text.split())))
    share = {}
    for temperature in (0.3, 1.0):
        drawn, _ = draw([model], prompt, count=300, max_tokens=2, rng=np.random.default_rng(0), temperature=temperature)
        share[temperature] = np.mean([ids[0] == best for ids in drawn])
    assert share[0.3] > share[1.0] + 0.1


def test_the_optimum_from_samples_by_hand() -> None:
    # two responses: reference (.9, .1), values (0, 1), beta 1/2: Z = .9 + .1 e^2
    ref, values = np.log([0.9, 0.1]), np.array([0.0, 1.0])
    picks = np.array([0] * 9 + [1])
    own = Samples(values[picks], ref[picks], ref[picks])  # the policy is the reference
    found = estimate(own, own, beta=0.5)
    assert pytest.approx(0.1) == found.J and found.J_star == pytest.approx(0.5 * math.log(0.9 + 0.1 * math.e**2))
    # the policy at the optimum: flat weights, J = J*, whatever the samples
    star = np.log(np.array([0.9, 0.1 * math.e**2]) / (0.9 + 0.1 * math.e**2))
    for picks in (np.array([0, 1]), np.array([1, 1, 0])):
        best = Samples(values[picks], star[picks], ref[picks])
        assert pytest.approx(0.5 * math.log(0.9 + 0.1 * math.e**2)) == estimate(best, own, beta=0.5).J
    parts = split({"a": Estimate(J=1.0, J_star=1.5)}, {"b": Estimate(J=0.2, J_star=1.1)})
    assert parts == pytest.approx({"optimum": 0.4, "regret_rise": 0.4, "drop": 0.8})
    with pytest.raises(ValueError, match="beta"):
        estimate(own, own, beta=0.0)


def test_the_split_from_samples_finds_the_enumerated_one() -> None:
    model, reference = make_model(seed=1), make_model(seed=0)
    prompts = WORLD.test_prompts("none")[:3] + WORLD.test_prompts("cipher")[:3]
    tables = ReferenceTables(WORLD, ExactModel(reference, name="reference"))
    from align.preferences import Weights

    weights = Weights((0.25, 0.75))
    exact = {
        cell.prompt: cell
        for shift in ("none", "cipher")
        for cell in exact_answers(
            ExactModel(model, name="m"), row="m", weights=[weights], shifts=(shift,), tables=tables
        )
    }
    found = estimates(WORLD, model, reference, prompts, weights=weights.values, count=1000, seed=0)
    for name in ("J", "J_star"):
        off = [getattr(one, name) - getattr(exact[text], name) for text, one in found.items()]
        assert max(map(abs, off)) < 0.08 and abs(np.mean(off)) < 0.02


def test_a_response_that_never_ends_is_malformed_for_the_judge() -> None:
    prompt = WORLD.test_prompts("none")[0]
    fact = TOKEN_ID[prompt.topic.facts[0]]
    assert scalarised(WORLD, prompt, [fact, END_ID], (1.0, 0.0)) == pytest.approx(1 / 3)
    assert scalarised(WORLD, prompt, [fact, fact, fact], (1.0, 0.0)) == WORLD.config.malformed_reward
    assert scalarised(WORLD, prompt, [fact, TOKEN_ID["bread"]], (1.0, 0.0)) == WORLD.config.malformed_reward


def test_the_recipe_plans_every_plant_and_refuses_what_it_cannot_train(tmp_path: Path) -> None:
    config = build(Config, {**read_yaml(DEFAULTS), "out": str(tmp_path), "seeds": [7]}, where="planted.yaml")
    plans = planted_plans(config, where="planted.yaml")
    plants = {row.name: (row, plan) for plan in plans[7] for row in plan.rows if isinstance(row, Plant)}
    assert set(plants) == set(config.plants)
    truths = {truth for plant, _ in plants.values() for truth in plant.truth.values()}
    assert truths == {"competing", "mismatched", "both", "capability"}
    assert {name for name, (_, plan) in plants.items() if not plan.setting.about.ciphered} == {"blind-rl", "blind-dpo"}
    named = {call.name: call for call in calls_of(plans)}
    blind = named["pretrain plain [7]"].arguments
    assert blind["ciphered"] is False and blind["documents"] == 16000
    covered = named["covered [7]"].arguments
    assert covered["reference"].path.name == "both-sft-two-spellings" and covered["fit"].spellings == (0, 1)
    for change, words in (
        ({"method": "magic"}, "method 'magic'"), ({"reference": "none"}, "no reference"), ({"wieght": "1"}, "wieght"),
        ({"truth": {"cipher": "bad luck"}}, "bad luck"), ({"settings": {"stpes": 3}}, "stpes"),
    ):  # fmt: skip
        broken = dataclasses.replace(config, plants={"rl": {**config.plants["rl"], **change}})
        with pytest.raises(UserError, match=words):
            planted_plans(broken, where="planted.yaml")


def test_probes_read_one_forward_pass(tmp_path: Path) -> None:
    from align.runs import Ledger
    from evals.attribution.testbed_probes import Draws, probe, signals_of

    reference = make_model(seed=0)
    training = [p.text for p in WORLD.train_prompts]
    with torch.no_grad():
        found = probe(
            WORLD, reference, reference, splits=("control", "cipher"), training=training,
            draws=Draws(samples=4, seed=0), ledger=Ledger(),
        )  # fmt: skip
    assert found.margin == found.reference_margin
    prompt = next(p for p in WORLD.test_prompts("cipher") if p.item == found.harmful[0])
    logp = next_logprobs(reference, [VOCABULARY[i] for i in encode(prompt.text)])
    sorry = np.logaddexp(logp[TOKEN_ID["sorry"]], logp[TOKEN_ID[cipher("sorry")]])
    comply = [logp[TOKEN_ID[w]] for word in ("sure", *FACTS) for w in (word, cipher(word))]
    assert found.margin["cipher"][prompt.item] == pytest.approx(sorry - np.logaddexp.reduce(comply), abs=1e-4)
    assert all(one.recognition is None for one in signals_of(found, split="cipher")), "no implicit reward, no distance"
