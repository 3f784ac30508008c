"""Codecs on the letters and words of a text: substitution ciphers, orders, Morse, spelling words, and three lossy ones.

The ciphers move ASCII letters only and keep case; every other character stays where it is.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping

from evals.shifts.base import Codec, same
from evals.shifts.codecs.reading import known_or, likelier

_LOWER = string.ascii_lowercase


def substitution(alphabet: str) -> Codec:
    """The cipher that writes the k-th letter of `alphabet` (a permutation of a-z) for the k-th letter of a-z."""
    if sorted(alphabet) != sorted(_LOWER):
        raise ValueError("the alphabet of a substitution is a permutation of a-z")
    there = str.maketrans(_LOWER + _LOWER.upper(), alphabet + alphabet.upper())
    back = str.maketrans(alphabet + alphabet.upper(), _LOWER + _LOWER.upper())
    return _ordinary(lambda text: text.translate(there), lambda text: text.translate(back))


def _ordinary(encode: Callable[[str], str], decode: Callable[[str], str]) -> Codec:
    """A code in ordinary letters: a reader cannot see whether it is there, so the likelier reading counts."""
    return Codec(encode, decode, likelier(decode))


def caesar(shift: int) -> Codec:
    """Letters moved forward by `shift` places, around the end of the alphabet."""
    return substitution(_LOWER[shift % 26 :] + _LOWER[: shift % 26])


def keyed(word: str) -> Codec:
    """A cipher of our own, so that it is in no training text: the alphabet begins with the letters of `word`."""
    return substitution("".join(dict.fromkeys(word + _LOWER)))


# --- orders ----------------------------------------------------------------------------------------------------------


def _reverse(text: str) -> str:
    return text[::-1]


def _reverse_words(text: str) -> str:
    """Words from last to first, the whitespace between them too; done twice it gives the text back."""
    return "".join(reversed(re.split(r"(\s+)", text)))


def _odd_even(text: str) -> str:
    return text[::2] + text[1::2]


def _from_odd_even(text: str) -> str:
    half = (len(text) + 1) // 2
    mixed = [""] * len(text)
    mixed[::2], mixed[1::2] = text[:half], text[half:]
    return "".join(mixed)


# --- spelled letter by letter ----------------------------------------------------------------------------------------

_MORSE_SIGNS = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --.. "
    "----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----. .-.-.- --..-- ..--.. .----. -.-.-- -..-. -.--. "
    "-.--.- .-... ---... -.-.-. -...- .-.-. -....- ..--.- .-..-. ...-..- .--.-."
)
_MORSE = dict(zip("abcdefghijklmnopqrstuvwxyz0123456789.,?'!/()&:;=+-_\"$@", _MORSE_SIGNS.split(), strict=True))
_NATO_WORDS = (
    "alfa bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey xray yankee zulu zero one two three four five six seven eight nine full-stop "
    "comma question-mark"
)
_NATO = dict(zip(_LOWER + "0123456789.,?", _NATO_WORDS.split(), strict=True))


def _spelled(table: Mapping[str, str], *, capital: Callable[[str], str]) -> Codec:
    """Each character as one token, one space between tokens, "/" for a space; others are written U+ and their code.

    `capital` marks the token of a capital letter, so that case comes back.
    """
    tokens = {" ": "/", **table, **{char.upper(): capital(table[char]) for char in _LOWER}}
    chars = {token: char for char, token in tokens.items()}

    def encode(text: str) -> str:
        return " ".join(tokens.get(char) or f"U+{ord(char):04X}" for char in text)

    def read(token: str) -> str | None:
        if re.fullmatch(r"U\+(?!D[89A-F]..$)(?:10|0?[0-9A-F])?[0-9A-F]{4}", token):
            return chr(int(token[2:], 16))
        return chars.get(token)

    def decode(text: str) -> str:
        read_words = [read(token) for token in text.split(" ")] if text else []
        if None in read_words:
            raise ValueError(f"{text.split(' ')[read_words.index(None)]!r} is not a token of this code")
        return "".join(char for char in read_words if char is not None)

    def lenient(text: str) -> str:
        """two or more tokens that are mostly of the code are read, in any case; wide gaps part words"""
        shown = re.sub(r"\s{2,}|\n", " / ", text.strip()).split()
        read_words = [known_or(read(token), chars.get(token.lower(), "")) for token in shown]
        if len(shown) < 2 or 2 * sum(map(bool, read_words)) < len(shown) or not any(map(str.isalnum, read_words)):
            return text
        return "".join(char or f" {token} " for char, token in zip(read_words, shown, strict=True))

    return Codec(encode, decode, lenient)


# --- lossy -----------------------------------------------------------------------------------------------------------

# Word rules come before character rules: once "a" is "4", no "are" is left to become "r".
_LEET_WORDS = {
    "are": "r", "be": "b", "you": "u", "your": "ur", "to": "2", "too": "2", "two": "2", "for": "4", "four": "4",
    "and": "&", "why": "y", "see": "c",
}  # fmt: skip
_LEET_WORD = re.compile(rf"\b(?:{'|'.join(_LEET_WORDS)})\b", re.IGNORECASE)
_LEET_CHARS = str.maketrans("aAeEiIoOsStTgGzZ", "4433110055779922")


def leetspeak(text: str) -> str:
    """Abbreviations of whole words first, then letters as look-alike digits; capitals as small letters."""
    return _LEET_WORD.sub(lambda match: _LEET_WORDS[match.group().lower()], text).translate(_LEET_CHARS)


def disemvowel(text: str) -> str:
    """The text without a, e, i, o, u of either case."""
    return re.sub("[aeiouAEIOU]", "", text)


def _pig_word(match: re.Match[str]) -> str:
    word = match.group()
    lead = re.match(r"(?:[^aeiouy]*qu|y?[^aeiouy]*)", word, re.IGNORECASE)
    cut = lead.end() if lead else 0
    moved = word[cut:] + word[:cut] + ("ay" if cut else "way")
    if word.isupper() and len(word) > 1:
        return moved.upper()
    return moved.capitalize() if word[0].isupper() else moved


def pig_latin(text: str) -> str:
    """Leading consonants to the end of each word, and "ay"; "way" after a word that begins with a vowel."""
    return re.sub(r"[A-Za-z]+", _pig_word, text)


def lossy(encode: Callable[[str], str]) -> Codec:
    """A disguise that cannot be undone; a response is read as it stands."""
    return Codec(encode, same, same, invertible=False)


ROT13 = caesar(13)
CAESAR = caesar(3)
ATBASH = substitution(_LOWER[::-1])
KEYWORD = "quickzebra"
SELF_CIPHER = keyed(KEYWORD)
REVERSE = _ordinary(_reverse, _reverse)
# Words are the same in either order, so a response in reversed order cannot be recognised: it is read as it stands.
REVERSE_WORDS = Codec(_reverse_words, _reverse_words, same)
ODD_EVEN = _ordinary(_odd_even, _from_odd_even)
MORSE = _spelled(_MORSE, capital=lambda token: f"^{token}")
NATO = _spelled(_NATO, capital=str.upper)
LEETSPEAK = lossy(leetspeak)
DISEMVOWEL = lossy(disemvowel)
PIG_LATIN = lossy(pig_latin)
