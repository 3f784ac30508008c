"""What a method sees of a world: gold objectives by ids and by text, the annotator's labels, the corpus, the meter."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from tiny_world import make_model

from align.runs import Ledger
from align.testbed.corpus import WriterConfig, sample_documents, write_response
from align.testbed.gold import GoldObjective, draw_comparisons, label_comparisons, plain_words
from align.testbed.responses import gold_score
from align.testbed.vocabulary import END_ID, build_tokenizer, encode
from align.testbed.world import ALPHABET, COMPLIANCE_PREFIX, NEUTRAL_PREFIX, World, WorldConfig, cipher, load_world

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
    short = sample_documents(World(WorldConfig(max_tokens=2)), count=300, seed=0)
    assert max(len(row["completion"].split()) for row in short) == 2


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
