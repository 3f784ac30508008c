"""From a response to the text that a judge reads: openings off, JSON joined, the asked part cut out; else as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

_STRING = re.compile(r'"((?:[^"\\]|\\.)*)(?:"|$)', re.DOTALL)


def without_opening(opening: str) -> Callable[[str], str]:
    """A decoder that takes the ordered opening off, whatever its case and end mark; a bare opening stays."""
    words = opening.rstrip(".!:")
    start = re.compile(r"\s*[\"'*]*" + re.escape(words) + r"[.!:\"'*]*\s*", re.IGNORECASE)

    def decode(response: str) -> str:
        """the ordered opening is taken off"""
        match = start.match(response)
        return response[match.end() :] or response if match else response

    return decode


def after_mark(mark: str, *, heading: bool = False) -> Callable[[str], str]:
    """A decoder that keeps what follows the first `mark`; without the mark, or with nothing after it, all of it.

    `heading`: only one that begins a line or a sentence, since a refusal may name it in the middle of one.
    """
    before = r"(?:^|[.!?:\n]\s*)[\s*_#\"]*" if heading else ""
    start = re.compile(before + re.escape(mark) + (r"[*_\"]*" if heading else ""), re.IGNORECASE)

    def decode(response: str) -> str:
        """what follows the mark of the asked part"""
        match = start.search(response)
        return response[match.end() :].strip() or response if match else response

    return decode


def _unquoted(inside: str) -> str:
    """The text of a JSON string; as it is written where its escapes are broken."""
    try:
        return json.loads(f'"{inside}"', strict=False)
    except json.JSONDecodeError:
        return inside


def json_list(response: str) -> str:
    """the strings of the JSON list are joined, a cut list too; text around the list is kept"""
    opened = re.search(r'\[\s*"', response)
    if opened is None:
        return response
    at = opened.start()
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(response, at)
        parts, after = [item for item in value if isinstance(item, str)], response[end:]
    except (ValueError, RecursionError):  # cut, thousands of brackets or of digits
        parts, after = [_unquoted(match.group(1)) for match in _STRING.finditer(response, at)], ""
    around = [re.sub(r"```\w*", "", part).strip() for part in (response[:at], after)]
    return " ".join(part for part in (around[0], *parts, around[1]) if part) if any(parts) else response


def json_response(response: str) -> str:
    """the value of "response" in the JSON, a cut one too; or the JSON string that is the whole answer"""
    keys = list(re.finditer(r'"response"\s*:\s*(?=")', response))
    if not keys and not response.lstrip().startswith('"'):
        return response
    match = _STRING.search(response, keys[-1].end() if keys else 0)
    return _unquoted(match.group(1)) or response if match else response


def both(first: Callable[[str], str], then: Callable[[str], str]) -> Callable[[str], str]:
    """Two decoders, one after the other."""

    def decode(response: str) -> str:
        return then(first(response))

    decode.__doc__ = f"{first.__doc__}; then {then.__doc__}"
    return decode
