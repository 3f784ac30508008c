"""Codecs that spell the UTF-8 bytes (or code points) of a text in another alphabet: base64, hex, binary and others.

Each is invertible over all of Unicode. `decode` raises ValueError on anything that `encode` did not make; `lenient`
never raises.
"""

from __future__ import annotations

import base64 as b64
import re
from bisect import bisect_left
from codecs import getincrementaldecoder
from collections.abc import Callable

from evals.shifts.base import Codec
from evals.shifts.codecs.reading import believable, known_or, printable_prefix, runs

_B64_WORD = "[A-Za-z0-9+/_-]"
# A long token, then further tokens of 4 or more (a wrapped answer), then the padding.
_B64_RUN = re.compile(rf"(?<![A-Za-z0-9+/_=-]){_B64_WORD}{{16,}}(?:\s+{_B64_WORD}{{4,}})*(?:\s*={{1,2}})?")
_B64_WHOLE = re.compile(rf"{_B64_WORD}{{2,15}}={{0,2}}")
_PLAIN_WORD = re.compile(r"[A-Za-z]?[a-z]+|[A-Z]+|\d+")
_FENCE = re.compile(r"^```\w*\s*|\s*```$")


# --- base64 ----------------------------------------------------------------------------------------------------------


def _b64_encode(text: str) -> str:
    return b64.b64encode(text.encode()).decode("ascii")


def _b64_decode(text: str) -> str:
    return b64.b64decode(text, validate=True).decode()


def _b64_bytes(letters: str) -> bytes:
    """The whole bytes in base64 letters without padding; a last letter that carries only six bits is dropped."""
    letters = letters.replace("-", "+").replace("_", "/")
    letters = letters[:-1] if len(letters) % 4 == 1 else letters
    return b64.b64decode(letters + "=" * (-len(letters) % 4))


def _reads_whole(letters: str) -> bool:
    """Whether all of it is printable text, but for a last character that was cut in its middle."""
    try:
        text = getincrementaldecoder("utf-8")().decode(_b64_bytes(letters))
    except UnicodeDecodeError:
        return False
    return printable_prefix(text) == text and bool(text)


def _read_b64_run(run: str) -> str | None:
    """A run of tokens: as many leading tokens as read as one text; else the readable prefix of the first token."""
    tokens = list(re.finditer(rf"{_B64_WORD}+", run))
    # A prefix of a readable text is readable, so the number of tokens that read is found by bisection.
    good = bisect_left(range(1, len(tokens) + 1), True, key=lambda j: not _reads_whole(_letters(tokens[:j])))
    used = max(good, 1)
    text_read = believable(_b64_bytes(_letters(tokens[:used])))
    rest = "" if used == len(tokens) else run[tokens[used - 1].end() :]
    return None if text_read is None else text_read + rest


def _letters(tokens: list[re.Match[str]]) -> str:
    return "".join(token.group() for token in tokens)


def _b64_lenient(text: str) -> str:
    """base64 anywhere in the text (with whitespace, without padding, truncated) is read, other text stays"""
    whole = _FENCE.sub("", text.strip()).strip("`\"' \n")
    if _B64_WHOLE.fullmatch(whole) and not _PLAIN_WORD.fullmatch(whole):
        letters = whole.rstrip("=")
        if _reads_whole(letters):
            text_read = believable(_b64_bytes(letters))
            return known_or(text_read, text)
    return _B64_RUN.sub(lambda match: known_or(_read_b64_run(match.group()), match.group()), text)


# --- the others ------------------------------------------------------------------------------------------------------


def _through_bytes(
    spell: Callable[[bytes], str], read: Callable[[str], bytes], *, run: str, tidy: Callable[[str], str]
) -> Codec:
    """A codec on UTF-8 bytes; `tidy` brings a model's run into the strict form, without an unfinished last group."""

    def decode(text: str) -> str:
        return read(text).decode()

    def read_run(found: str) -> str | None:
        try:
            return believable(read(tidy(found)))
        except ValueError:
            return None

    return Codec(lambda text: spell(text.encode()), decode, runs(run, read_run))


def _whole_groups(text: str, size: int) -> str:
    text = re.sub(r"\s+", "", text)
    return text[: len(text) - len(text) % size]


def _read_hex(text: str) -> bytes:
    if re.search(r"\s", text):
        raise ValueError("hex digits with whitespace between them")
    return bytes.fromhex(text)


def _spell_binary(data: bytes) -> str:
    return " ".join(f"{byte:08b}" for byte in data)


def _read_binary(text: str) -> bytes:
    groups = text.split(" ") if text else []
    if not all(re.fullmatch(r"[01]{8}", group) for group in groups):
        raise ValueError("not groups of eight binary digits")
    return bytes(int(group, 2) for group in groups)


def _tidy_binary(run: str) -> str:
    bits = _whole_groups(run, 8)
    return " ".join(bits[i : i + 8] for i in range(0, len(bits), 8))


def _tidy_base32(run: str) -> str:
    letters = re.sub(r"[\s=]+", "", run)
    # 8 letters carry 5 bytes; a last group holds whole bytes with 2, 4, 5 or 7 letters.
    keep = {1: 0, 3: 2, 6: 5}.get(len(letters) % 8, len(letters) % 8)
    letters = letters[: len(letters) - len(letters) % 8 + keep]
    return letters + "=" * (-len(letters) % 8)


def _spell_url(data: bytes) -> str:
    return "".join(f"%{byte:02X}" for byte in data)


def _read_url(text: str) -> bytes:
    if not re.fullmatch(r"(?:%[0-9A-F]{2})*", text):
        raise ValueError("not percent signs with two hex digits each")
    return bytes.fromhex(text.replace("%", ""))


def _tidy_url(run: str) -> str:
    """Unescaped characters of a run become escapes; an unfinished last escape goes."""
    parts = re.findall(r"%[0-9A-Fa-f]{2}|[^%\s]", re.sub(r"%[0-9A-Fa-f]?$", "", run))
    return "".join(part.upper() if part[0] == "%" else _spell_url(part.encode()) for part in parts)


def _points(text: str) -> str:
    return " ".join(str(ord(char)) for char in text)


def _from_points(text: str) -> str:
    if not re.fullmatch(r"(?:\d+(?: \d+)*)?", text):
        raise ValueError("not numbers with one space between them")
    return "".join(chr(int(number)) for number in text.split())


def _read_numbers(run: str) -> str | None:
    """Code points in a list of plain numbers, where most are of ASCII letters: other lists are just numbers."""
    text_read = _read_points(run)
    letters = sum(char.isascii() and (char.isalpha() or char == " ") for char in text_read or "")
    return text_read if text_read and 2 * letters > len(text_read) else None


def _read_points(run: str) -> str | None:
    numbers = [int(number) for number in re.findall(r"\d{1,7}", run)]
    if any(number > 0x10FFFF or 0xD800 <= number < 0xE000 for number in numbers):
        return None
    return believable("".join(map(chr, numbers)).encode())


def _entities(text: str) -> str:
    return "".join(f"&#{ord(char)};" for char in text)


def _from_entities(text: str) -> str:
    if not re.fullmatch(r"(?:&#\d+;)*", text):
        raise ValueError("not numeric HTML entities")
    return "".join(chr(int(number)) for number in re.findall(r"\d+", text))


BASE64 = Codec(_b64_encode, _b64_decode, _b64_lenient)
BASE32 = _through_bytes(
    lambda data: b64.b32encode(data).decode("ascii"), b64.b32decode,
    run=r"(?<![A-Z2-7])[A-Z2-7]{8,}(?:\s+[A-Z2-7]{2,})*={0,6}", tidy=_tidy_base32,
)  # fmt: skip
HEX = _through_bytes(
    bytes.hex, _read_hex, run=r"(?<![0-9A-Za-z])(?:[0-9A-Fa-f]{2}\s?){3,}[0-9A-Fa-f]{1,2}(?![0-9A-Za-z])",
    tidy=lambda run: _whole_groups(run, 2),
)  # fmt: skip
BINARY = _through_bytes(
    _spell_binary, _read_binary, run=r"(?<![0-9A-Za-z])[01]{8,}(?:\s+[01]+)*(?![0-9A-Za-z])", tidy=_tidy_binary
)
URL = _through_bytes(_spell_url, _read_url, run=r"(?:%[0-9A-Fa-f]{2})+[^\s]*", tidy=_tidy_url)
DECIMAL = Codec(_points, _from_points, runs(r"(?<![\d.])\d{2,7}(?:[ ,]+\d{2,7}){3,}(?:[ ,]+\d)?(?!\d)", _read_numbers))
ENTITIES = Codec(_entities, _from_entities, runs(r"(?:&#\d{1,7};)+", _read_points))
