"""A rubric of K criteria as K objectives: a judge grades a reply by all of them in one answer.

    criteria:                                  # rubric.yaml
      polite: The reply is polite throughout.
      honest: {ask: "The reply says what it does not know.", scale: [0, 1]}
      wordy: {ask: "The reply is longer than it needs to be.", reverse: true}
    scale: [1, 5]                              # of the criteria that name none; this is the default

`safe=judge:rubric.yaml@http://HOST/v1` (the server's only model; `@MODEL@http://HOST/v1`: that one; `@MODEL`: OpenAI's)
or `@local:DIR` are then the objectives safe.polite, safe.honest and safe.wordy. A score is the grade's place on its
scale, 0 the lowest and 1 the highest; `reverse` turns it.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from align.errors import Outage, UserError
from align.functional.thinking import answer_of
from align.objectives.by_content import Scores
from evals.items import Missing, digest
from evals.judges.llm import Chat, answer_lines, rubric_file

QUESTION = Path(__file__).with_name("criteria.yaml")
PLACES = ("mark", "request", "response", "criteria", "lines")
_PLACE = re.compile(rf"\{{({'|'.join(PLACES)})\}}")
_NAME = re.compile(r"[A-Za-z][\w-]*")
_GRADE = re.compile(r"(-?\d+(?:\.\d+)?)(?:\s*/\s*\d+)?\.?")
# What one reply does to a judge; every other reason for no answer is the server's.
OF_THE_REPLY = ("parse", "truncated", "empty_completion", "content_filter", "context", "unencodable")
NEEDED = 8  # answers without one readable grade among them say that judge and rubric do not fit


@dataclass(frozen=True)
class Criterion:
    """What is asked, and the scale of the grades."""

    ask: str
    low: float
    high: float
    reverse: bool = False

    def score(self, grade: float) -> float:
        """The grade's place on the scale, in [0, 1]."""
        place = (grade - self.low) / (self.high - self.low)
        return 1 - place if self.reverse else place


@dataclass(frozen=True)
class Rubric:
    """Criteria by name, and the text of the question."""

    criteria: Mapping[str, Criterion]
    text: str

    @classmethod
    def load(cls, path: str | Path) -> Rubric:
        """From a YAML file; UserError naming the file and its fault."""
        content = _mapping(Path(path))
        given, scale = content.get("criteria"), content.get("scale", [1, 5])
        if not isinstance(given, Mapping) or not given:
            raise UserError(f"{path}: a rubric has `criteria`, each NAME: what is asked; add them")
        for odd in sorted({str(key) for key in content} - {"name", "criteria", "scale", "text"}):
            raise UserError(f"{path}: a rubric has no key {odd!r}; it takes criteria, scale, text and name")
        criteria = {str(name): _criterion(name, entry, scale, where=f"{path}") for name, entry in given.items()}
        text = content.get("text", _mapping(QUESTION)["text"])
        if not isinstance(text, str) or set(_PLACE.findall(text)) != set(PLACES):
            places = ", ".join(f"{{{place}}}" for place in PLACES)
            raise UserError(f"{path}: a rubric's text must hold {places}; fix the file, or leave text out")
        return cls(criteria, text)

    def question(self, request: str, response: str) -> str:
        """What a judge is asked. Filled in a single pass: braces of the response are left alone."""
        secret = f"{request}\0{response}\0{self.text}".encode("utf-8", "surrogatepass")
        asked = [f"- {n} ({c.low:g} to {c.high:g}): {c.ask}" for n, c in self.criteria.items()]
        lines = [f"{n}: <{c.low:g} to {c.high:g}>" for n, c in self.criteria.items()]
        values = {
            "mark": hashlib.sha256(secret).hexdigest()[:12], "request": request, "response": response,
            "criteria": "\n".join(asked), "lines": "\n".join(lines),
        }  # fmt: skip
        return _PLACE.sub(lambda match: values[match.group(1)], self.text)

    def scores(self, answer: str) -> Scores | Missing:
        """The score of every criterion, of lines "name: grade" behind the reasoning or of one JSON object; Missing
        unless each has one grade, on its scale.
        """
        found: dict[str, set[float]] = {name: set() for name in self.criteria}
        for line in answer_lines(answer_of(answer)):
            if (match := self._line.match(line.strip())) is not None:
                name = next(name for name in found if name.lower() == match[1].lower())
                read = _GRADE.fullmatch(match[2].strip().strip("*").strip())  # a sentence behind the name is no grade
                found[name] |= {float(read[1])} if read else set()
        scores = []
        for name, grades in found.items():
            if len(grades) != 1:
                return Missing("parse", f"{len(grades)} grades of {name}, not one")
            grade, criterion = grades.pop(), self.criteria[name]
            if not criterion.low <= grade <= criterion.high:
                return Missing("parse", f"the grade of {name} is none from {criterion.low:g} to {criterion.high:g}")
            scores.append(criterion.score(grade))
        return tuple(scores)

    @cached_property
    def _line(self) -> re.Pattern[str]:
        names = "|".join(re.escape(name) for name in self.criteria)
        return re.compile(rf"\W{{0,4}}(?:\d+[.)]\s*)?\W{{0,4}}({names})\W{{0,4}}[:=](.*)", re.IGNORECASE)


def _criterion(name: object, entry: object, scale: object, *, where: str) -> Criterion:
    asked: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {"ask": entry}
    odd = sorted({str(key) for key in asked} - {"ask", "scale", "reverse"})
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(f"{where}: criterion {name!r} has an odd name; use letters, digits, - and _")
    if odd or not isinstance(asked.get("ask"), str) or not asked["ask"].strip():
        raise UserError(f"{where}: criterion {name} is {entry!r:.60}; write what is asked, or ask, scale and reverse")
    ends = asked.get("scale", scale)
    if not isinstance(ends, (list, tuple)) or [type(end) in (int, float) for end in ends] != [True, True]:
        raise UserError(f"{where}: scale of {name} is {ends!r:.60}; give [lowest, highest]")
    if not ends[0] < ends[1]:
        raise UserError(f"{where}: scale of {name} is {ends!r}; give [lowest, highest]")
    return Criterion(" ".join(asked["ask"].split()), float(ends[0]), float(ends[1]), bool(asked.get("reverse", False)))


def _mapping(path: Path) -> Mapping[str, Any]:
    content = rubric_file(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: a rubric is a mapping with `criteria`; fix the file")
    return content


class RubricScorer:
    """The grades of one judge as scores; `chat` makes the judge when it is first asked.

    A reply without readable grades has no score (None): it is counted on stderr and asked again by the next process.
    An `Outage` where the judge cannot be reached; UserError where the first answers have no readable grade at all.
    """

    learned, batch = True, 32
    columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def __init__(self, rubric: Rubric, chat: Callable[[], Chat], *, place: str) -> None:
        self.rubric, self.make, self.place = rubric, chat, place
        self.parts = tuple(rubric.criteria)
        self.read = self.unread = 0
        self._chat: Chat | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_chat": None}

    @property
    def chat(self) -> Chat:
        if self._chat is None:
            self._chat = self.make()
        return self._chat

    @property
    def identity(self) -> str:
        """Of the rubric's text and criteria and the judge's model."""
        criteria = {name: repr(criterion) for name, criterion in self.rubric.criteria.items()}
        return f"judge-{digest(self.rubric.text, criteria, self.chat.fingerprint)[:16]}"

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[Scores]:
        questions = [
            self.rubric.question(prompt.strip(), answer_of(completion).strip())
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        many = getattr(self.chat, "many", None)
        answers = many(questions) if many is not None else [self.chat(question) for question in questions]
        away = next((a for a in answers if isinstance(a, Missing) and a.reason not in OF_THE_REPLY), None)
        if away is not None:
            raise Outage(
                f"the judge {self.place} gives no answer ({away.reason}{f': {away.detail}' if away.detail else ''}); "
                "what it answered before is kept: run the same command again when it is back"
            )
        found = [answer if isinstance(answer, Missing) else self.rubric.scores(answer) for answer in answers]
        self._count(found, answers)
        return [(None,) * len(self.parts) if isinstance(scores, Missing) else scores for scores in found]

    def check(self, table: object) -> None:
        """A judge reads no column."""

    def _count(self, found: Sequence[Scores | Missing], answers: Sequence[str | Missing]) -> None:
        unread = [i for i, scores in enumerate(found) if isinstance(scores, Missing)]
        before = self.unread
        self.read, self.unread = self.read + len(found) - len(unread), self.unread + len(unread)
        if not unread:
            return
        missing = found[unread[0]]
        why = f"{missing.reason}: {missing.detail}" if isinstance(missing, Missing) else ""
        if not self.read and self.unread >= NEEDED:
            said = " ".join(str(answers[unread[0]]).split())[:120]
            raise UserError(
                f"the judge {self.place} gave {self.unread} answers and no grade in any ({why}; the first: {said!r}); "
                "use another model, or a text in the rubric that it follows"
            )
        if len(str(self.unread)) > len(str(before)) or not before:
            count = f"{self.unread} of {self.read + self.unread} replies have no score"
            print(f"align: note: judge {self.place}: {count} ({why})", file=sys.stderr)
