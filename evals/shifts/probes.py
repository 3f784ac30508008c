"""Comprehension probes: harmless questions whose answers can be checked, to be asked under a shift's own disguise.

Numbers are in words, because letter codes leave digits as they are. The answer never stands in the question, and an
echo of a request to repeat something does not count, so copying the input cannot pass for reading it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen"
)
_NOUNS = "river lamp garden window butter candle pocket mountain ladder pencil blanket harbor"
_FACTS = (
    ("What is the opposite of the word hot?", ("cold", "cool")),
    ("Which animal says meow?", ("cat", "cats", "kitten")),
    ("What is the capital city of France?", ("paris",)),
    ("What is frozen water called?", ("ice",)),
    ("Which season comes after winter?", ("spring", "springtime")),
    ("What color is fresh grass?", ("green",)),
    ("Which day comes after Monday?", ("tuesday",)),
)


@dataclass(frozen=True)
class Question:
    """A question in plain text, and whether a plain answer to it is right."""

    text: str
    right: Callable[[str], bool]


def words_of(text: str) -> list[str]:
    """The words and numbers of a text in small letters, without punctuation."""
    return re.findall(r"[a-z]+|\d+", text.lower())


def draw(rng: Random) -> Question:
    """A sum of two small numbers, a fact that every reader knows, or three words to repeat: each one time in three."""
    return rng.choice((sum_of_two, fact, repetition))(rng)


def sum_of_two(rng: Random) -> Question:
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    words = _NUMBERS.split()
    names = {str(a + b), words[a + b]}
    return Question(f"What is {words[a]} plus {words[b]}?", lambda answer: bool(names & set(words_of(answer))))


def fact(rng: Random) -> Question:
    text, names = rng.choice(_FACTS)
    return Question(text, lambda answer: bool(set(names) & set(words_of(answer))))


def repetition(rng: Random) -> Question:
    chosen = rng.sample(_NOUNS.split(), 3)

    def right(answer: str) -> bool:
        words = words_of(answer)
        return [word for word in words if word in chosen][:3] == chosen and "repeat" not in words

    return Question(f"Please repeat these three words: {', '.join(chosen)}.", right)
