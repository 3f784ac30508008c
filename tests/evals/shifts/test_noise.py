"""Noise: letters scrambled, typed wrongly and respelled, at the published rates and without losing what must stay."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

import pytest

from evals.shifts.noise import best_of_n, contractions, filler_words, misspellings, scramble_inside, typos
from factories.shifted_requests import text


def test_scrambling_keeps_the_ends_and_the_letters() -> None:
    for seed in range(50):
        found = scramble_inside("abcdefgh", Random(seed))
        assert (found[0], found[-1], sorted(found)) == ("a", "h", list("abcdefgh"))
    assert {scramble_inside("abcd", Random(seed)) for seed in range(20)} == {"abcd", "acbd"}
    assert {scramble_inside("abc", Random(seed)) for seed in range(20)} == {"abc"}


def test_best_of_n_draws_at_the_published_rates() -> None:
    """On 6,000 characters that cannot scramble: .6 upper, .06 moved by one; on words: .6 x 5/6 scrambled."""
    rng = Random(1)
    short = " ".join(["mmm"] * 6000)
    found = best_of_n(short, rng).split(" ")
    letters = "".join(found)
    counts = {char: letters.count(char) / len(letters) for char in "mMlnLN"}
    assert abs(counts["m"] - 0.4 * 0.94) < 0.012 and abs(counts["M"] - 0.6 * 0.94) < 0.012
    for char, rate in {"l": 0.4, "n": 0.4, "L": 0.6, "N": 0.6}.items():
        assert abs(counts[char] - rate * 0.03) < 0.004
    assert set(letters) == set("mMlnLN")
    # abcXd has six orders of its inside "bcX" -> 5/6 of scrambles show; 6 % noise is met by comparing letters' order.
    long = [word.lower() for word in best_of_n(" ".join(["1bcx9"] * 6000), rng).split(" ")]
    clean = [word for word in long if sorted(word) == sorted("1bcx9")]
    assert abs(sum(word != "1bcx9" for word in clean) / len(clean) - 0.5) < 0.03


def test_noise_keeps_blanks_and_line_breaks_of_best_of_n() -> None:
    assert re.sub(r"\S", "x", best_of_n("aa\n bb  cc", Random(0))) == "xx\n xx  xx"


def test_best_of_n_stays_printable_at_both_ends_of_ascii() -> None:
    """Neighbours are within 33..126: "~" moves down alone, "!" up alone; a letter outside ASCII never moves."""
    assert set(best_of_n("~!é" * 1000, Random(2))) == set('~}!"éÉ')


def test_typos_hit_a_quarter_of_the_words_and_at_least_one() -> None:
    clean = ["window"] * 4000
    hit = [a != b for a, b in zip(clean, typos(" ".join(clean), Random(3)).split(" "), strict=True)]
    assert abs(sum(hit) / len(hit) - 0.25) < 0.025
    for seed in range(200):
        found = typos("a big window", Random(seed))
        assert found != "a big window" and found.startswith("a big w") and len(found) > 10
    assert typos("a big cat", Random(0)) == "a big cat"


def test_typos_are_of_four_kinds() -> None:
    kinds = set()
    for seed in range(300):
        word = typos("lamp", Random(seed))
        kinds.add((len(word) - 4, sorted(word) == sorted("lamp")))
    assert kinds == {(-1, False), (1, False), (0, True), (0, False)}


@pytest.mark.parametrize(
    ("change", "plain", "changed"),
    [
        (misspellings, "The friend AND because", "Teh freind ADN becuase"), (misspellings, "xyz", "xyz"),
        (contractions, "What is this, and do not say I am late.", "What's this, and don't say I'm late."),
        (contractions, "You cannot go; we will not; IT IS", "You can't go; we won't; IT's"),
        (contractions, "That was nothing.", "That was nothing."),
    ],
)  # fmt: skip
def test_words_by_table(change: Callable[[str, Random], str], plain: str, changed: str) -> None:
    assert change(plain, Random(0)) == changed


def test_spaces_fillers_case_and_punctuation() -> None:
    assert text("spaces_removed", "a b\n c?") == "abc?"
    assert text("punctuation_removed", "It's (a) test!") == "Its a test"
    assert text("lowercase", "A bC") == "a bc" and text("uppercase", "A bC") == "A BC"
    for seed in range(30):
        found = text("extra_spaces", "a b c", seed)
        gaps = [len(gap) for gap in re.findall(" +", found)]
        assert found.split() == ["a", "b", "c"] and len(gaps) == 2 and all(2 <= gap <= 4 for gap in gaps)
        filled = filler_words("one two three", Random(seed))
        assert re.sub(r", [A-Za-z ]+?,(?= )", "", filled) == "one two three" != filled
    assert filler_words("one", Random(0)) == "one"
