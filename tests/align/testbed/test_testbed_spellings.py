"""A world of several spellings: every one is read, sampled, scored and enumerated alike, and no other world changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from align.errors import UserError
from align.models import ModelConfig, build_model
from align.testbed.corpus import sample_documents
from align.testbed.exact import ExactModel, outcome
from align.testbed.gold import gold_objectives, plain_words
from align.testbed.vocabulary import (
    ALPHABETS,
    END_ID,
    ENDING_IDS,
    TOKEN_ID,
    VOCABULARY,
    build_tokenizer,
    encode,
    ending_ids,
    response_words,
    vocabulary,
)
from align.testbed.world import SHIFTS, WORLDS, World, WorldConfig, cipher, load_world, spelling_of, spelling_split

SEVERAL = World(WorldConfig(name="two words", max_tokens=2, spellings=3))


def test_spellings_by_hand() -> None:
    assert [cipher("bread", s) for s in range(4)] == ["bread", "~oernq", "^euhdg", "=iylhk"]  # as is, +13, +3, +7
    assert [spelling_of(f"{cipher('present', s)} x :") for s in range(5)] == [0, 1, 2, 3, 4]
    assert [spelling_split(s) for s in range(3)] == ["none", "cipher", "cipher_2"]
    with pytest.raises(UserError, match="spellings must be 1 to 5, not 6"):
        WorldConfig(spellings=6)


def test_words_of_all_spellings_differ_and_one_vocabulary_is_the_start_of_the_next() -> None:
    assert vocabulary(1) == VOCABULARY and len(VOCABULARY) == 111
    assert len(set(vocabulary(4))) == len(vocabulary(4)) == 3 + 5 * (11 + 43)
    assert all(vocabulary(s + 1)[: len(vocabulary(s))] == vocabulary(s) for s in range(1, 5))
    assert all(list(ids) == list(range(ids[0], ids[0] + 11)) for ids in ALPHABETS)  # the tree slices them
    assert ending_ids(1) == ENDING_IDS
    assert set(ending_ids(3)) == set(range(len(vocabulary(3)))) - {i for ids in ALPHABETS[:4] for i in ids}


def test_splits_and_shifts_of_the_world() -> None:
    assert SEVERAL.shifts == (*SHIFTS, "cipher_2", "cipher_3") and load_world("default").shifts == SHIFTS
    for spelling in (1, 2, 3):
        prompts = SEVERAL.test_prompts(spelling_split(spelling))
        assert [p.item for p in prompts] == [p.item for p in SEVERAL.test_prompts("none")]
        assert {p.spelling for p in prompts} == {spelling} and all(p.ciphered for p in prompts)
    with pytest.raises(UserError, match="no shift 'cipher_4'"):
        SEVERAL.test_prompts("cipher_4")
    again = SEVERAL.train_prompts[5].spelt(2, split="train")
    assert (again.split, again.topic) == ("train", SEVERAL.train_prompts[5].topic) and again.spelling == 2


def test_the_corpus_has_every_response_in_every_spelling() -> None:
    rows = sample_documents(SEVERAL, count=400, seed=0)
    for start in range(0, 400, 4):
        plain = rows[start]
        for spelling, row in enumerate(rows[start : start + 4]):
            words = [w if w == ":" else cipher(w, spelling) for w in plain["text"].split()]
            assert row["text"].split() == words


def test_rewards_do_not_depend_on_the_spelling_and_a_foreign_word_is_malformed() -> None:
    plain = SEVERAL.test_prompts("none")[3]
    words = ["sure", plain.topic.facts[0]]
    helpful = gold_objectives(SEVERAL)["helpful"]
    for spelling in range(4):
        prompt = plain.spelt(spelling, split="train").text
        ids = [TOKEN_ID[cipher(w, spelling)] for w in words]
        assert helpful([prompt], [""], completion_ids=[[*ids, END_ID]]) == pytest.approx([1 / 3])
        assert helpful([prompt], [" ".join(cipher(w, spelling) for w in words)]) == pytest.approx([1 / 3])
        other = TOKEN_ID[cipher(words[1], (spelling + 1) % 4)]
        assert helpful([prompt], [""], completion_ids=[[ids[0], other, END_ID]]) == [-0.5]
    assert plain_words(["^vxuh"], spelling=2) == ["sure"] and plain_words(["~fher"], spelling=2) == ["~"]
    assert response_words([ALPHABETS[2][0], ALPHABETS[1][0], END_ID], spelling=2) == ["^vxuh", "~fher"]


@pytest.mark.parametrize("spelling", [0, 2, 3])
def test_the_evaluation_in_a_spelling_is_a_plain_forward_pass(spelling: int) -> None:
    """One response's leaf probability, word by word without the tree, and all mass accounted for."""
    shape = ModelConfig(hidden=16, layers=1, heads=2, context=16, init_std=0.3)
    model = build_model(shape, build_tokenizer(3), seed=0).eval()
    prompt = SEVERAL.test_prompts("none")[0].spelt(spelling, split="x")
    leaf_NV = ExactModel(model, name="m").leaf_logprobs(SEVERAL, prompt)
    assert leaf_NV.shape == (133, len(vocabulary(3)))
    result = outcome(SEVERAL, prompt, leaf_NV, leaf_NV)  # refuses a mass other than 1
    assert result.kl == 0 and 0 < result.malformed < 1
    ids, total = encode(prompt.text), 0.0
    for token in (ALPHABETS[spelling][1], ALPHABETS[spelling][4], END_ID):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        total += float(logits.double().log_softmax(-1)[token])
        ids = [*ids, token]
    assert float(leaf_NV[1 + 11 + 11 * 1 + 4, END_ID]) == pytest.approx(total, abs=1e-5)


def test_the_named_world_differs_in_spellings_and_length_only() -> None:
    named = WORLDS["spellings"]
    assert replace(named, name="default", max_tokens=4, spellings=1) == WORLDS["default"]
    assert load_world(named).corpus_key != load_world(replace(named, spellings=3)).corpus_key
    assert load_world(named).hash != load_world(replace(named, spellings=3)).hash
