"""Verifiers: 1 where a reply is right by a rule, else 0; most read the right answer from a column of the rows.

    correct=verifier:exact_match        the reply is the column's text, but for white space
    correct=verifier:number             the number at the reply's end is that at the reference's end (GSM8K's way)
    correct=verifier:maths              the two final answers have one value (fractions, powers, LaTeX)
    correct=verifier:regex              the column's regular expression is found in the reply
    form=verifier:regex=PATTERN         this one is
    form=verifier:json                  the reply, or the last fenced block in it, is JSON (@COLUMN: that very value)

The column is `answer`, or the one behind `@`: `verifier:number@gold`. A list there holds answers that are all right. A
row without a reference has no score (None). Reasoning that opens a reply is passed over, as by judges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align.errors import UserError
from align.functional.final_answers import last_number, same_text, same_value
from align.functional.thinking import answer_of
from align.objectives.base import Objective
from align.objectives.by_content import Scores, objectives_of

COLUMN = "answer"
_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)


def same_number(reply: str, reference: str) -> bool:
    """Whether both end with the same number; UserError for a reference without one."""
    wanted = last_number(reference)
    if wanted is None:
        raise UserError(f"the reference answer {reference[:60]!r} has no number in it; fix that row")
    return last_number(reply) == wanted


def matches(reply: str, pattern: str) -> bool:
    """Whether the regular expression is found in the reply; UserError for one that is none."""
    try:
        return re.search(pattern, reply) is not None
    except re.error as error:
        raise UserError(f"{pattern[:60]!r} is no regular expression ({error}); fix it") from error


def json_in(text: str) -> tuple[bool, object]:
    """(Whether the text, or the last fenced block in it, is one JSON value; that value)."""
    fenced = _FENCED.findall(text)
    try:
        return True, json.loads(fenced[-1] if fenced else text)
    except (ValueError, RecursionError):
        return False, None


def is_json(reply: str, reference: str) -> bool:
    """Whether the reply is the JSON value that the reference is."""
    valid, wanted = json_in(reference)
    return json_in(reply) == (True, wanted if valid else reference)


# A new verifier is one function of a reply and a reference, and one line here.
VERIFIERS: dict[str, Callable[[str, str], bool]] = {
    "exact_match": same_text,
    "number": same_number,
    "maths": same_value,
    "regex": matches,
    "json": is_json,
}


class Verifier:
    """One of VERIFIERS as a scorer; `column` holds the reference, or `fixed` is the reference of every row.

    Without both only `json` has something to say: whether the reply is JSON at all.
    """

    learned, batch = False, 1_000_000
    parts: tuple[str, ...] = ("right",)
    optional: tuple[str, ...] = ()

    def __init__(self, kind: str, *, column: str | None = COLUMN, fixed: str | None = None) -> None:
        if kind not in VERIFIERS:
            raise UserError(f"no verifier {kind!r}; choose from {', '.join(VERIFIERS)}")
        if column is None and fixed is None and kind != "json":
            raise UserError(f"verifier {kind} needs a reference; name its column, as {kind}@{COLUMN}")
        if fixed is not None and kind == "regex":
            matches("", fixed)
        self.kind, self.fixed = kind, fixed
        self.columns: tuple[str, ...] = () if column is None or fixed is not None else (column,)
        self.identity = f"verifier-{kind}"

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[Scores]:
        given = columns[self.columns[0]] if self.columns else [self.fixed] * len(completions)
        return [(self._score(*pair),) for pair in zip(completions, given, strict=True)]

    def check(self, table: Mapping[str, Mapping[str, object]]) -> None:
        """UserError for a reference that this verifier cannot read."""
        for references in table.values():
            for prompt, reference in references.items():
                try:
                    self._score("", reference)
                except UserError as error:
                    raise UserError(f"{error} (prompt {prompt[:60]!r})") from None

    def _score(self, completion: str, reference: object) -> float | None:
        reply = answer_of(completion)
        if not self.columns and self.fixed is None:
            return float(json_in(reply)[0])
        if reference is None:
            return None
        wanted = reference if isinstance(reference, (list, tuple)) else [reference]
        return float(any(VERIFIERS[self.kind](reply, _text(one)) for one in wanted))


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def verifier(argument: str, *, name: str) -> list[Objective]:
    """The objective of `KIND`, `KIND@COLUMN` or `KIND=REFERENCE`."""
    head, equals, fixed = argument.partition("=")
    if equals:
        return objectives_of(Verifier(head, fixed=fixed), name=name)
    kind, at, column = argument.partition("@")
    if at and not column:
        raise UserError(f"verifier {argument} names no column; write {kind}@{COLUMN}")
    return objectives_of(Verifier(kind, column=column or (None if kind == "json" else COLUMN)), name=name)
