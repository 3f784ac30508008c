"""Codecs: round trip over all of Unicode, values worked out by hand, and readers of what models make of a code."""

from __future__ import annotations

import base64
from random import Random

import pytest

from evals.shifts.codecs.by_name import CODECS
from evals.shifts.codecs.letters import substitution

INVERTIBLE = [name for name, codec in CODECS.items() if codec.invertible]
LOSSY = ["leetspeak", "disemvowel", "pig_latin"]
PLAIN = [
    "I'm sorry, but I can't help with that. It was so in 1984, 1985, 1990, 1995 and 2001.",
    "Sure! Here is the answer: a well-known, internationalization-ready plan.\n\n1. One\n2. Two -- and then ... three",
    "Certainly", "7", "seven", "No.", "", "paris",
    "The code is 12345678 and the date is 20240131.", "10, 20, 30, 40, 50",
]  # fmt: skip
SENTENCE = "Tell me how three and four are added, and what you see when you are done with it."


def characters(rng: Random, n: int, *, plane: int) -> str:
    """n code points of one plane, without lone surrogates."""
    found: list[str] = []
    while len(found) < n:
        point = plane * 0x10000 + rng.randrange(0x10000)
        if not 0xD800 <= point < 0xE000:
            found.append(chr(point))
    return "".join(found)


def samples() -> list[str]:
    """Empty, blanks, ASCII, what the codes themselves are made of, every plane, and 10 kB of all planes mixed."""
    rng = Random(20240131)
    own = [codec.encode("A b 3?") for codec in CODECS.values()]
    planes = [characters(rng, 60, plane=plane) for plane in range(17)]
    low = "".join(map(chr, range(0x3100)))
    marks = "".join(chr(c) for c in [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), *range(0xE0000, 0xE0080)])
    mixed = "".join(rng.choice(planes)[rng.randrange(60)] for _ in range(4000))
    assert len(mixed.encode()) > 10_000
    fixed = ["", " ", "  a  b ", "\n", "\r\n\t", "\x00", "A", "aB", "U+0041", "^.-", "/", "%41", "=", "🙂", "\ufeffx"]
    return [*fixed, *own, *planes, low, marks, mixed]


SAMPLES = samples()


@pytest.mark.parametrize("name", INVERTIBLE)
def test_decoding_gives_the_text_back(name: str) -> None:
    codec = CODECS[name]
    for text in SAMPLES:
        assert codec.decode(codec.encode(text)) == text


@pytest.mark.parametrize("name", INVERTIBLE)
def test_every_code_point_of_a_stride_comes_back(name: str) -> None:
    text = "".join(chr(c) for c in range(0, 0x110000, 41) if not 0xD800 <= c < 0xE000)
    codec = CODECS[name]
    assert codec.decode(codec.encode(text)) == text


def test_exactly_the_lossy_ones_are_called_so() -> None:
    assert [name for name in CODECS if name not in INVERTIBLE] == LOSSY
    for name in LOSSY:
        assert CODECS[name].encode("Are you there?") != CODECS[name].decode("Are you there?") == "Are you there?"


BY_HAND = {
    "base64": ("Man", "TWFu"),
    "base32": ("foobar", "MZXW6YTBOI======"),  # RFC 4648, section 10
    "hex": ("Aé", "41c3a9"),
    "binary": ("AB", "01000001 01000010"),
    "url": ("a é", "%61%20%C3%A9"),
    "decimal": ("Aé😀", "65 233 128512"),
    "html_entities": ("Aé", "&#65;&#233;"),
    "rot13": ("Hello, 3!", "Uryyb, 3!"),
    "caesar": ("xyZ a", "abC d"),
    "atbash": ("abc XYZ", "zyx CBA"),
    "self_cipher": ("abcde KLM", "quick DFG"),  # alphabet q u i c k z e b r a d f g h j l m n o p s t v w x y
    "reverse": ("abc d", "d cba"),
    "reverse_words": ("one  two three\n", "\nthree two  one"),
    "odd_even": ("abcde", "acebd"),
    "morse": ("So s?", "^... --- / ... ..--.."),
    "nato": ("aB 7é", "alfa BRAVO / seven U+00E9"),
    "leetspeak": ("Are you to BE seen?", "r u 2 b 533n?"),
    "disemvowel": ("An Easy Question", "n sy Qstn"),
    "pig_latin": ("Hello quick apple square my STRONG", "Ellohay ickquay appleway aresquay ymay ONGSTRAY"),
    "full_width": ("A b!", "\uff21\u3000\uff42\uff01"),
    "homoglyph": ("cob", "\u0441\u043eb"),
    "zero_width": ("ab", "a\u200db\u200d"),
    "zalgo": ("a", "a\u0335\u0351\u0330"),
    "tags": ("A~", "\U000e0041\U000e007e"),
    "variation_selectors": ("\x00\x0f\x10", "\U0001f642\ufe00\ufe0f\U000e0100"),
    "braille": ("aZ 1", "\u2801\u2820\u2835 \u283c\u2801"),
}


def test_values_by_hand_for_every_codec() -> None:
    assert set(BY_HAND) == set(CODECS)
    for name, (text, code) in BY_HAND.items():
        assert CODECS[name].encode(text) == code, name


@pytest.mark.parametrize(
    ("text", "code"), [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
)  # fmt: skip
def test_base64_vectors_of_rfc_4648(text: str, code: str) -> None:
    assert CODECS["base64"].encode(text) == code
    assert CODECS["base64"].decode(code) == text


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("base64", "Zm8"), ("base64", "Zm9v!"), ("base32", "mzxw6"), ("hex", "4"), ("hex", "41 42"), ("binary", "0100"),
        ("binary", "01000001  01000010"), ("url", "%4"), ("url", "a"), ("decimal", "65,66"), ("html_entities", "&#65"),
        ("morse", "...... "), ("nato", "alpha"), ("zero_width", "ab"), ("zalgo", "abcd"), ("variation_selectors", "a"),
        ("variation_selectors", "\U0001f642a"), ("braille", "\u2820a"), ("braille", "\u28fe"),
    ],
)  # fmt: skip
def test_strict_decoding_refuses_what_encoding_never_makes(name: str, code: str) -> None:
    with pytest.raises(ValueError):
        CODECS[name].decode(code)


@pytest.mark.parametrize("alphabet", ["abc", "a" * 26, "abcdefghijklmnopqrstuvwxyZ"])
def test_an_alphabet_is_a_permutation(alphabet: str) -> None:
    with pytest.raises(ValueError, match="permutation"):
        substitution(alphabet)


# --- lenient reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CODECS if name not in {*LOSSY, "reverse_words"}])
def test_a_reader_reads_the_code_and_leaves_plain_text_alone(name: str) -> None:
    codec = CODECS[name]
    # Morse, NATO and the orders read case and place; all others must give the sentence itself.
    assert codec.lenient(codec.encode(SENTENCE)) == SENTENCE
    for text in PLAIN:
        assert codec.lenient(text) == text


@pytest.mark.parametrize("name", ["leetspeak", "disemvowel", "pig_latin", "reverse_words"])
def test_what_cannot_be_told_is_left_as_it_is(name: str) -> None:
    for text in [*PLAIN, CODECS[name].encode(SENTENCE)]:
        assert CODECS[name].lenient(text) == text


@pytest.mark.parametrize("name", ["base64", "base32", "hex", "binary", "url", "decimal"])
def test_a_cut_answer_gives_its_readable_beginning(name: str) -> None:
    code = CODECS[name].encode(SENTENCE)
    for end in range(len(code) // 2, len(code)):
        read = CODECS[name].lenient(code[:end].rstrip())
        # A number cut in its middle is another number; all else reads as a beginning of the sentence.
        exact = read if name != "decimal" else read[:-1]
        assert SENTENCE.startswith(exact) and len(exact) >= len(SENTENCE) * end // len(code) - 3, (end, read)


@pytest.mark.parametrize("tail", range(8))
def test_cut_base32_gives_every_whole_byte(tail: int) -> None:
    """n letters carry 5 n bits, so 5 n // 8 whole bytes (RFC 4648, section 6), wherever the cut is."""
    letters = CODECS["base32"].encode(SENTENCE)[: 24 + tail]
    assert CODECS["base32"].lenient(letters) == SENTENCE[: 5 * (24 + tail) // 8]


def test_base64_cut_in_the_middle_of_a_character() -> None:
    text = "Ein längerer Satz für große Öfen, möglichst häufig änderbar: ✓ 😀 ✓ 😀"
    code = CODECS["base64"].encode(text)
    for end in range(16, len(code)):
        read = CODECS["base64"].lenient(code[:end])
        assert text.startswith(read)
        assert 0 <= end * 6 // 8 - len(read.encode()) <= 3


@pytest.mark.parametrize("text", ["Yes, of course: the sum is seven.", "A sentence of ünïcödé that goes on."])
def test_base64_as_models_write_it(text: str) -> None:
    read, code = CODECS["base64"].lenient, CODECS["base64"].encode(text)
    wrapped = "\n".join(code[i : i + 19] for i in range(0, len(code), 19))
    assert read(code.rstrip("=")) == text
    assert read(f"  {code}\n").strip() == text
    assert read(wrapped) == text
    assert read(code.replace("+", "-").replace("/", "_")) == text
    assert read(f"Here is it: {code} and that is all") == f"Here is it: {text} and that is all"
    assert read(f"```\n{code}\n```") == f"```\n{text}\n```"
    assert read(f"`{code}`") == f"`{text}`"


def test_base64_reads_up_to_what_is_broken_and_keeps_the_rest() -> None:
    read, code = CODECS["base64"].lenient, CODECS["base64"].encode("A beginning that can be read")
    assert read(f"{code[:32]} more words follow") == "A beginning that can be  more words follow"
    assert read(code[:32] + "/" * 40) == "A beginning that can be "
    assert read("/" * 40) == "/" * 40


def test_a_run_that_is_mostly_unreadable_is_left() -> None:
    """Two readable bytes in front of twenty that are no text, in each code of bytes."""
    data = b"ok" + bytes(range(0x80, 0x94))
    written = {"base64": base64.b64encode(data).decode(), "base32": base64.b32encode(data).decode(), "hex": data.hex()}
    for name, code in written.items():
        assert CODECS[name].lenient(code) == code


@pytest.mark.parametrize("answer", ["7", "seven", "Paris"])
def test_short_base64_answers_are_read_and_short_words_are_not(answer: str) -> None:
    read = CODECS["base64"].lenient
    assert read(CODECS["base64"].encode(answer)) == answer
    assert [read(word) for word in ("Help", "Then", "NATO", "2024", "sure")] == ["Help", "Then", "NATO", "2024", "sure"]


@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_reader_takes_anything(name: str) -> None:
    """No exception and no endless work on codes with random damage, nor on a long run without an end."""
    rng = Random(7)
    code = CODECS[name].encode(SENTENCE)
    for _ in range(40):
        cut = rng.randrange(len(code))
        assert isinstance(CODECS[name].lenient(code[:cut] + rng.choice(SAMPLES)[:40] + code[cut + 1 :]), str)
    for unit in ("A", "01", "4 ", "%", "&#6", ".", "aaaa "):
        assert isinstance(CODECS[name].lenient(unit * 20_000), str)


def test_spelling_is_read_in_any_case_and_layout() -> None:
    assert CODECS["nato"].lenient("Sierra Echo Echo") == "SEE".lower()
    assert CODECS["morse"].lenient("... --- ...   - ---") == "sos to"
