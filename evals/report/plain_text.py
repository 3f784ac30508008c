"""Text from models and files made safe to look at: what cannot be seen or turns the line around is shown as a mark."""

from __future__ import annotations

import re
import unicodedata

LONGEST = 2000  # characters of one text that are shown; how many are left out is shown
# invisible or steering: control, format (bidi, zero width, tags), lone surrogates, private use, unassigned, separators
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_STACKED = 4  # combining characters that stay on one letter; real scripts need fewer


def shown(text: object, most: int = LONGEST) -> str:
    """The first `most` characters, with a mark in the place of hidden ones: ⟨U+202E⟩, or ⟨12 hidden characters⟩.

    Line breaks and tabs stay. A pile of combining characters is cut, since it would cover the lines around it.
    """
    whole = str(text)
    left = len(whole) - most
    parts: list[str] = []
    run: list[str] = []
    stacked = 0
    for character in whole[:most]:
        if _hidden(character):
            run.append(character)
            continue
        parts.append(_mark(run))
        run.clear()
        stacked = stacked + 1 if unicodedata.combining(character) else 0
        if stacked <= _STACKED:
            parts.append(character)
    parts.append(_mark(run))
    return "".join(parts) + (f"\u2026 ({left} more characters)" if left > 0 else "")


def _hidden(character: str) -> bool:
    if character in "\n\t":
        return False
    return unicodedata.category(character) in HIDDEN or SELECTORS.match(character) is not None


def _mark(run: list[str]) -> str:
    if len(run) > 3:
        return f"\u27e8{len(run)} hidden characters\u27e9"
    return "".join(f"\u27e8U+{ord(character):04X}\u27e9" for character in run)
