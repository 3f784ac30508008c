"""Cleaning repairs Unicode, drops what it says, counts each drop once, and keeps the first of the repeats."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from align.data import CleanConfig, clean_comparisons, clean_text, clean_texts
from align.data.clean import rubbish
from align.data.dedup import exact_duplicates, jaccard, near_duplicates, shingles
from align.errors import UserError

WORDS = [a + b + c for a in "bdfgklmn" for b in "aeiou" for c in "bdfgklmnpt"]  # 400 of them


def prose(seed: int, n: int = 60) -> list[str]:
    return random.Random(seed).choices(WORDS, k=n)


def test_texts_are_mended() -> None:
    assert clean_text("e\u0301\x00a\r\nb\rc\u2028d\ufeff\te") == "\u00e9a\nb\nc\nd\te"
    assert clean_text("x<|end|>y<|e<|pad|>nd|>z") == "xyz"  # also where one deletion makes another
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert clean_text(family) == family  # zero-width joiners are part of the text
    assert clean_text("e\u0301", CleanConfig(unicode_form=None)) == "e\u0301"


def test_rubbish_and_lengths_are_dropped_by_reason() -> None:
    config = CleanConfig(min_characters=3, max_characters=120)
    rows = [
        {"text": "A plain sentence.", "n": 1},
        {"text": "  a  ", "n": 2},
        {"text": "word " * 40, "n": 3},
        {"text": "0101 1010 #### ---- 0101 1010 ab", "n": 4},
        {"text": "menu\nmenu\nmenu\nmenu\nmenu\n", "n": 5},
        {"text": "a  PLAIN\nsentence.", "n": 6},
    ]
    kept, drops = clean_texts(rows, config)
    assert [row["n"] for row in kept] == [1]
    assert drops == {
        "shorter than 3 characters": 1,
        "longer than 120 characters": 1,
        "more than 0.6 of the characters are no letters": 1,
        "more than 0.5 of the lines repeat another": 1,
        "exact duplicate of an earlier row": 1,
    }
    assert len(kept) + sum(drops.values()) == len(rows)


def test_other_scripts_are_language() -> None:
    for text in (
        "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e " * 4,
        "\u4f60\u597d\u4e16\u754c" * 6,
    ):
        assert rubbish(text, CleanConfig()) == ""


def test_token_limit_reads_the_tokenizer() -> None:
    def by_space(text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [0] * len(text.split())}

    config = CleanConfig(max_tokens=3)
    kept, drops = clean_texts([{"text": "a b c"}, {"text": "a b c d"}], config, tokenizer=by_space)
    assert len(kept) == 1 and drops == {"longer than 3 tokens": 1}
    with pytest.raises(UserError, match="max_tokens=3 needs a tokenizer"):
        clean_texts([{"text": "a"}], config)


def test_shingles_and_jaccard_by_hand() -> None:
    assert shingles("The cat, the CAT sat", words=2) == {"the cat", "cat the", "cat sat"}
    assert shingles("Hi", words=2) == {"hi"} and shingles("?!", words=2) == frozenset()
    assert jaccard(frozenset("abc"), frozenset("bcd")) == 0.5


def test_near_duplicates_keep_the_first_and_check_exactly() -> None:
    first = prose(1)
    close = first[:-1] + ["changed"]  # 55 of 57 shingles in common: 55 / 57
    half = first[:30] + prose(2, 30)  # 26 in common of 86
    documents = [(" ".join(words),) for words in (first, prose(3), close, half, first + ["more"])]
    assert near_duplicates(documents, threshold=0.8) == {2, 4}
    assert near_duplicates(documents, threshold=0.99) == set()
    assert near_duplicates(documents[::-1], threshold=0.8) == {2, 4}  # of the reversed list: `close` and `first`
    assert near_duplicates(documents, threshold=0.8, seed=9) == {2, 4}


def test_near_duplicates_agree_with_brute_force() -> None:
    generator = random.Random(0)
    documents: list[tuple[str, ...]] = []
    for i in range(150):
        words = prose(i % 50)
        for _ in range(generator.choice([0, 1, 2, 6, 12])):
            words[generator.randrange(60)] = "other"
        documents.append((" ".join(words),))
    expected: set[int] = set()
    for i, (text,) in enumerate(documents):
        earlier = (shingles(documents[j][0], words=5) for j in range(i) if j not in expected)
        if any(jaccard(shingles(text, words=5), other) >= 0.7 for other in earlier):
            expected.add(i)
    assert len(expected) > 20
    found = near_duplicates(documents, threshold=0.7)
    assert len(found ^ expected) <= 2  # hashing may miss a pair near the threshold, and no more than that


def test_two_replies_to_one_long_prompt_are_two_rows() -> None:
    prompt = " ".join(prose(1, 300))
    rows = [
        {"prompt": prompt, "chosen": " ".join(prose(i, 20)), "rejected": " ".join(prose(i + 9, 20))} for i in (2, 3)
    ]
    kept, drops = clean_comparisons(rows)
    assert len(kept) == 2 and not drops
    again = {**rows[0], "prompt": prompt + " please"}
    assert clean_comparisons([*rows, again])[1] == {"near duplicate of an earlier row": 1}


def test_comparisons_are_dropped_by_reason() -> None:
    good = {"prompt": "\n\nHuman: 1+1=2?\n\nAssistant:", "chosen": " Yes, it is.", "rejected": " No, it is three."}
    rows = [
        good,
        {**good, "chosen": " \x00 "},
        {**good, "rejected": "Yes, it is.  "},
        {**good, "rejected": " ?!?!?!?!?!?!?!?!?!?!?!?!"},
        {**good, "id": "again"},
        {**good, "chosen": good["rejected"], "rejected": good["chosen"]},  # the other label is another row
    ]
    kept, drops = clean_comparisons(rows)
    assert [row["chosen"] for row in kept] == [" Yes, it is.", " No, it is three."]
    assert drops == Counter(
        {
            "a completion is empty after cleaning": 1,
            "chosen and rejected are the same": 1,
            "more than 0.6 of the characters are no letters": 1,
            "exact duplicate of an earlier row": 1,
        }
    )


def test_exact_duplicates_do_not_join_parts() -> None:
    assert exact_duplicates([("a b", "c"), ("a", "b c"), ("A  b", "c")]) == {2}


def test_bad_rows_and_limits_are_named() -> None:
    with pytest.raises(UserError, match="row 2: column 'text' is missing or not text; fix it"):
        clean_texts([{"text": "a"}, {"txt": "b"}])
    with pytest.raises(UserError, match="near_threshold=1.5"):
        CleanConfig(near_threshold=1.5)
    with pytest.raises(UserError, match="max_characters=2"):
        CleanConfig(min_characters=3, max_characters=2)
