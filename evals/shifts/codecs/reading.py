"""Reading what a model wrote in a code: the longest readable prefix; text around it and unreadable text stay."""

from __future__ import annotations

import re
from collections.abc import Callable

READABLE_CHARACTERS = 12  # a readable prefix this long is believed, however much unreadable text follows in the run
_COMMON = (
    "no the a an of and to in is are was it that this for on with as be at by from or you your i we they he she not "
    "have has can will do what how when where who there here if so but all one about please words answer yes "
    "sorry"
)
_WORD = re.compile(r"[A-Za-z']+")


def utf8_prefix(data: bytes) -> str:
    """The text of the longest prefix of `data` that is valid UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start].decode()


def printable_prefix(text: str) -> str:
    """`text` up to its first control or unassigned character; line breaks and tabs are fine."""
    for i, char in enumerate(text):
        if not (char.isprintable() or char in "\n\r\t"):
            return text[:i]
    return text


def believable(data: bytes) -> str | None:
    """What bytes say as text; None unless most of them, or READABLE_CHARACTERS from the start, can be read."""
    text = printable_prefix(utf8_prefix(data))
    enough = len(text) >= READABLE_CHARACTERS or 2 * len(text.encode()) >= len(data)
    return text if enough and any(char.isalnum() for char in text) else None


def runs(pattern: str, read: Callable[[str], str | None]) -> Callable[[str], str]:
    """A lenient reader: every match of `pattern` that `read` understands is replaced, all other text stays."""
    compiled = re.compile(pattern)

    def lenient(text: str) -> str:
        """every run of the code that can be read is read, other text stays"""
        return compiled.sub(lambda match: known_or(read(match.group()), match.group()), text)

    return lenient


def known_or(found: str | None, otherwise: str) -> str:
    return otherwise if found is None else found


def commonness(text: str) -> int:
    """How many of the most common English words occur in `text`, with repetition."""
    return sum(word.lower() in _COMMON.split() for word in _WORD.findall(text))


def likelier(decode: Callable[[str], str]) -> Callable[[str], str]:
    """A lenient reader for codes that use ordinary letters: decoded where that holds more common words than before."""

    def lenient(text: str) -> str:
        """decoded where that holds more common words, else as it is"""
        decoded = decode(text)
        return decoded if commonness(decoded) > commonness(text) else text

    return lenient
