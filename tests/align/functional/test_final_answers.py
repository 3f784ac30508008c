"""Final answers and their values: expected by hand, in the forms that GSM8K, MATH and chat models write."""

from __future__ import annotations

from fractions import Fraction

import pytest

from align.functional.final_answers import evaluated, final_answer, last_number, same_text, same_value


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2 + 3 = 5, so there are 5.\n#### 5", 5),
        ("#### 1,234", 1234),
        ("He pays $1,234.50 in all.", Fraction("1234.5")),
        ("The answer is -7.", -7),
        ("the answer is: 3/4 of it", Fraction(3, 4)),
        ("first 12, then 13", 13),
        ("3-4", 4),  # a range has no minus sign
        ("so x = -4", -4),
        ("It is \\boxed{42}, not 43", 42),
        ("The answer is 8, because 2 * 4 is that", 4),  # the line behind "answer is" ends with it
        ("about 50%", 50),
        ("version x5", None),
        ("no number here", None),
        ("1/0", None),
        ("", None),
    ],
)
def test_the_number_at_the_end(text: str, number: Fraction | int | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a\nb.\n\n", "b"), ("x #### 7 \nmore", "7"), ("\\boxed{\\frac{1}{2}} and \\boxed{a{b}c}", "a{b}c"),
        ("Answer: **yes**", "yes"), ("open \\boxed{3", "open \\boxed{3"), ("$4$.", "4"), ("$4.$", "4"),
    ],
)  # fmt: skip
def test_where_a_final_answer_stands(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1+2*3", 7), ("(1+2)*3", 9), ("2^3^2", 512), ("-2^2", -4), ("2^-1", Fraction(1, 2)), ("6/4", Fraction(3, 2)),
        ("8/2/2", 2), ("5-3-1", 1), (".5", Fraction(1, 2)), ("1/0", None), ("2(3)", None), ("(1", None), ("", None),
        ("2^1000", None), ("x", None), ("(" * 200 + "1" + ")" * 199, None), ("1)", None),
    ],
)  # fmt: skip
def test_values_of_expressions(text: str, value: Fraction | int | None) -> None:
    assert evaluated(text) == value


@pytest.mark.parametrize(
    ("reply", "reference", "same"),
    [
        ("so it is \\boxed{\\frac{1}{2}}", "0.5", True),
        ("\\boxed{\\dfrac12}", "1/2", True),
        ("x = 3", "3", True),
        ("\\boxed{1,000}", "1000", True),
        ("The answer is $2^{10}$.", "1024", True),
        ("\\boxed{2\\cdot 3}", "6", True),
        ("\\boxed{45^\\circ}", "45", True),
        ("\\boxed{X + y}", "x+y", True),  # no value: text without blanks and case
        ("\\boxed{1/3}", "0.333", False),
        ("\\boxed{}", "", False),
        ("7", "8", False),
    ],
)
def test_one_value(reply: str, reference: str, same: bool) -> None:
    assert same_value(reply, reference) is same


def test_same_texts() -> None:
    assert same_text(" a  b\n", "a b") and not same_text("a b", "A b") and not same_text("ab", "a b")
