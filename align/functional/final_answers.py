"""Final answers in replies: where one stands, the number it is, and whether two are equal; exact arithmetic, no eval.

A final answer stands in the last `\\boxed{...}`, behind the last `####` (GSM8K), or behind the last "answer is" or
"answer:", else in the last line that is not empty.
"""

from __future__ import annotations

import re
from fractions import Fraction

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_SAID = re.compile(r"(?i)\banswer\s*(?:is|:)\s*:?")
_NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?\s?[$€£]?\s?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:\s?/\s?(\d+))?")
_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|[-+*/^()]")
_LATEX = (
    (re.compile(r"\\[dtc]?frac\s*(\d)\s*(\d)"), r"((\1)/(\2))"), (re.compile(r"\\(?:cdot|times)"), "*"),
    (re.compile(r"\\div"), "/"), (re.compile(r"\\(?:left|right|displaystyle|,|!|;|:| )"), ""),
    (re.compile(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}"), ""), (re.compile(r"\\?[$%]|[€£]|\^\s*\\?circ"), ""),
    (re.compile(r"\u2212"), "-"), (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
)  # fmt: skip
_FRACTION = re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_DEEPEST, _LARGEST_POWER, _LONGEST = 50, 64, 400  # of brackets, exponents and characters of an expression


def final_answer(text: str) -> str:
    """The final answer's own words, stripped of blanks, dollars and a closing full stop; "" of an empty text."""
    boxed = list(_BOXED.finditer(text))
    if boxed and (inner := _to_closing_brace(text[boxed[-1].end() :])) is not None:
        return _bare(inner)
    for behind in (text.rpartition("####"), _behind(text)):
        if behind[1] and behind[2].strip():
            return _bare(behind[2].strip().splitlines()[0])
    lines = [line for line in text.splitlines() if line.strip()]
    return _bare(lines[-1]) if lines else ""


def last_number(text: str) -> Fraction | None:
    """The number at the end: the last of the final answer, else the last of the text; None where there is none.

    Thousands may have commas; currency signs, percent signs and units are passed over, `3/4` is a fraction.
    """
    for part in (final_answer(text), text):
        found = [value for match in _NUMBER.finditer(part) if (value := _value(match)) is not None]
        if found:
            return found[-1]
    return None


def same_text(reply: str, reference: str) -> bool:
    """Whether two texts are the same but for white space around and between words."""
    return reply.split() == reference.split()


def same_value(reply: str, reference: str) -> bool:
    """Whether the final answers of two texts are one value: numbers with + - * / ^, brackets and LaTeX fractions.

    Of an equation the right side counts. What is no such expression is compared as text without blanks and case.
    """
    left, right = (_plain(final_answer(text)) for text in (reply, reference))
    values = evaluated(left), evaluated(right)
    if None not in values:
        return values[0] == values[1]
    return bool(left) and left.lower() == right.lower()


def evaluated(expression: str) -> Fraction | None:
    """The value of an expression of numbers, + - * / ^ and brackets; None for anything else, also a division by 0."""
    text = expression.replace(" ", "")
    tokens = _TOKEN.findall(text)
    if not tokens or "".join(tokens) != text or len(text) > _LONGEST:
        return None
    try:
        value, rest = _sum(tokens, _DEEPEST)
    except (ValueError, ZeroDivisionError):
        return None
    return None if rest else value


def _to_closing_brace(text: str) -> str | None:
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if not depth:
            return text[:i]
    return None


def _behind(text: str) -> tuple[str, str, str]:
    said = list(_SAID.finditer(text))
    return ("", "answer", text[said[-1].end() :]) if said else ("", "", "")


def _bare(text: str) -> str:
    return text.strip().removesuffix(".").strip("$ ").removesuffix(".").strip("*` ")


def _value(match: re.Match[str]) -> Fraction | None:
    if match[2] is not None and int(match[2]) == 0:
        return None
    value = Fraction(match[1].replace(",", "")) / int(match[2] or 1)
    return -value if match[0][0] in "-\u2212" else value


def _plain(text: str) -> str:
    """LaTeX as an expression, the right side of an equation, no blanks."""
    for _ in range(_DEEPEST):
        text, count = _FRACTION.subn(r"((\1)/(\2))", text)
        if not count:
            break
    for pattern, words in _LATEX:
        text = pattern.sub(words, text)
    return "".join(text.rpartition("=")[2].replace("{", "(").replace("}", ")").split())


def _sum(tokens: list[str], depth: int) -> tuple[Fraction, list[str]]:
    value, rest = _product(tokens, depth)
    while rest and rest[0] in "+-":
        other, behind = _product(rest[1:], depth)
        value, rest = (value + other if rest[0] == "+" else value - other), behind
    return value, rest


def _product(tokens: list[str], depth: int) -> tuple[Fraction, list[str]]:
    value, rest = _signed(tokens, depth)
    while rest and rest[0] in "*/":
        other, behind = _signed(rest[1:], depth)
        value, rest = (value * other if rest[0] == "*" else value / other), behind
    return value, rest


def _signed(tokens: list[str], depth: int) -> tuple[Fraction, list[str]]:
    """A sign binds less than a power: -2^2 is -4."""
    if tokens and tokens[0] in "+-":
        value, rest = _signed(tokens[1:], depth - 1)
        return (-value if tokens[0] == "-" else value), rest
    base, rest = _one(tokens, depth)
    if rest and rest[0] == "^":
        power, rest = _signed(rest[1:], depth - 1)
        if power.denominator != 1 or abs(power) > _LARGEST_POWER or abs(base.numerator) > 10**9:
            raise ValueError("a power that is not computed")
        base = base ** int(power)
    return base, rest


def _one(tokens: list[str], depth: int) -> tuple[Fraction, list[str]]:
    if not tokens or depth < 0:
        raise ValueError("no number")
    if tokens[0] == "(":
        value, rest = _sum(tokens[1:], depth - 1)
        if not rest or rest[0] != ")":
            raise ValueError("an open bracket")
        return value, rest[1:]
    return Fraction(tokens[0]), tokens[1:]  # a sign or bracket is no number: ValueError
