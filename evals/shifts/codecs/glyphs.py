"""Codecs that a reader hardly sees or not at all: look-alikes, full-width letters, invisible and stacked characters.

Where a table of look-alikes is used, it is *swapped*: the look-alikes in a text become the plain letters. So each is a
permutation of the code points and comes back whatever the text was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from evals.shifts.base import Codec
from evals.shifts.codecs.reading import believable

_JOINER = "\u200d"
# Cyrillic and Greek letters that look like Latin ones.
_LOOKALIKES = dict(zip("aceijopsxyABCEHIKMOPTX", "асеіјорѕхуАВСЕНІКМОРТХ", strict=True))


def swapped(table: Mapping[str, str]) -> Codec:
    """Each key for its value and each value for its key. The lenient reader only brings values back to keys."""
    back = {value: key for key, value in table.items()}
    if len(back) != len(table) or set(back) & set(table):
        raise ValueError("a swap needs keys and values that are all different")
    both = str.maketrans({**table, **back})
    one_way = str.maketrans(back)
    return Codec(lambda t: t.translate(both), lambda t: t.translate(both), lambda t: t.translate(one_way))


def _interleaved(marks: str) -> Codec:
    """The `marks` after every character. Strict reading goes by place, lenient reading drops the marks everywhere."""
    step = len(marks) + 1
    drop = re.compile(f"[{marks}]")

    def decode(text: str) -> str:
        kept = text[::step]
        if "".join(char + marks for char in kept) != text:
            raise ValueError("the marks do not follow every character")
        return kept

    return Codec(lambda text: "".join(char + marks for char in text), decode, lambda text: drop.sub("", text))


# --- bytes in variation selectors ------------------------------------------------------------------------------------

_CARRIER = "\U0001f642"


def _selector(byte: int) -> str:
    return chr(0xFE00 + byte) if byte < 16 else chr(0xE0100 + byte - 16)


_BYTES = {_selector(byte): byte for byte in range(256)}


def _hide(text: str) -> str:
    return _CARRIER + "".join(_selector(byte) for byte in text.encode())


def _find(text: str) -> str:
    if not text.startswith(_CARRIER):
        raise ValueError("no carrier character at the start")
    try:
        return bytes(_BYTES[char] for char in text[1:]).decode()
    except KeyError as error:
        raise ValueError(f"{error.args[0]!r} is not a variation selector") from None


def _find_lenient(text: str) -> str:
    """Hidden runs of more than one selector are shown; a single selector belongs to an emoji and stays."""

    def read(match: re.Match[str]) -> str:
        text_read = believable(bytes(_BYTES[char] for char in match.group(1)))
        return match.group() if text_read is None else text_read

    return re.sub(f"{_CARRIER}?([\ufe00-\ufe0f\U000e0100-\U000e01ef]{{2,}})", read, text)


# --- Braille ---------------------------------------------------------------------------------------------------------

_CAPITAL, _NUMBER, _ESCAPE = "\u2820", "\u283c", "\u28ff"
_CELLS = "⠁⠃⠉⠙⠑⠋⠛⠓⠊⠚⠅⠇⠍⠝⠕⠏⠟⠗⠎⠞⠥⠧⠺⠭⠽⠵"
_TO_CELL = dict(zip("abcdefghijklmnopqrstuvwxyz", _CELLS, strict=True))
_FROM_CELL = {cell: letter for letter, cell in _TO_CELL.items()}
_DIGITS = {digit: _TO_CELL[letter] for digit, letter in zip("1234567890", "abcdefghij", strict=True)}
_FROM_DIGIT = {cell: digit for digit, cell in _DIGITS.items()}


def _braille_char(char: str) -> str:
    if char in _TO_CELL:
        return _TO_CELL[char]
    if char.isascii() and char.isupper():
        return _CAPITAL + _TO_CELL[char.lower()]
    if char in _DIGITS:
        return _NUMBER + _DIGITS[char]
    return _ESCAPE + char if "\u2800" <= char <= "\u28ff" else char


def _braille(text: str) -> str:
    """Letters and digits as cells, with a sign before each capital and each digit; Braille in the text is escaped."""
    return "".join(map(_braille_char, text))


def _read_braille(text: str, *, strict: bool) -> str:
    text_read: list[str] = []
    chars = iter(text)
    for char in chars:
        if char in (_CAPITAL, _NUMBER, _ESCAPE):
            after = next(chars, "")
            table = {_CAPITAL: {c: letter.upper() for c, letter in _FROM_CELL.items()}, _NUMBER: _FROM_DIGIT}
            read = after if char == _ESCAPE else table[char].get(after)
            if strict and not read:
                raise ValueError(f"{char!r} stands before {after!r}")
            text_read.append(read if read is not None else after)
        elif strict and "\u2800" <= char <= "\u28ff" and char not in _FROM_CELL:
            raise ValueError(f"{char!r} is no cell of this code")
        else:
            text_read.append(_FROM_CELL.get(char, char))
    return "".join(text_read)


FULL_WIDTH = swapped({" ": "\u3000", **{chr(c): chr(c + 0xFEE0) for c in range(0x21, 0x7F)}})
HOMOGLYPH = swapped(_LOOKALIKES)
TAGS = swapped({chr(c): chr(0xE0000 + c) for c in range(0x20, 0x7F)})
ZERO_WIDTH = _interleaved(_JOINER)
ZALGO = _interleaved("\u0335\u0351\u0330")
VARIATION_SELECTORS = Codec(_hide, _find, _find_lenient)
BRAILLE = Codec(_braille, lambda t: _read_braille(t, strict=True), lambda t: _read_braille(t, strict=False))
