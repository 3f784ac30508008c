"""All codecs by name: pure text disguises with a strict decoder and a lenient reader of a model's attempt."""

from __future__ import annotations

from evals.shifts.base import Codec
from evals.shifts.codecs import bytes as byte_codecs
from evals.shifts.codecs import glyphs as glyph_codecs
from evals.shifts.codecs import letters as letter_codecs

CODECS: dict[str, Codec] = {
    "base64": byte_codecs.BASE64,
    "base32": byte_codecs.BASE32,
    "hex": byte_codecs.HEX,
    "binary": byte_codecs.BINARY,
    "url": byte_codecs.URL,
    "decimal": byte_codecs.DECIMAL,
    "html_entities": byte_codecs.ENTITIES,
    "rot13": letter_codecs.ROT13,
    "caesar": letter_codecs.CAESAR,
    "atbash": letter_codecs.ATBASH,
    "self_cipher": letter_codecs.SELF_CIPHER,
    "reverse": letter_codecs.REVERSE,
    "reverse_words": letter_codecs.REVERSE_WORDS,
    "odd_even": letter_codecs.ODD_EVEN,
    "morse": letter_codecs.MORSE,
    "nato": letter_codecs.NATO,
    "leetspeak": letter_codecs.LEETSPEAK,
    "disemvowel": letter_codecs.DISEMVOWEL,
    "pig_latin": letter_codecs.PIG_LATIN,
    "full_width": glyph_codecs.FULL_WIDTH,
    "homoglyph": glyph_codecs.HOMOGLYPH,
    "zero_width": glyph_codecs.ZERO_WIDTH,
    "zalgo": glyph_codecs.ZALGO,
    "tags": glyph_codecs.TAGS,
    "variation_selectors": glyph_codecs.VARIATION_SELECTORS,
    "braille": glyph_codecs.BRAILLE,
}
