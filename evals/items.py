"""What goes into an evaluation and what may come back without a value: items, prompts, and Missing with its reason."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from align.turns import Turn

NO_SHIFT = "none"  # the plain prompts: what every change is measured from
Fields = Mapping[str, Any]  # named values of JSON types, read only
Json = dict[str, Any]  # a JSON object while it is built: a row of an export, an entry of summary.json


@dataclass(frozen=True)
class Missing:
    """No value, and why: an outage, a prompt that does not fit, a shift that does not apply. Never a verdict, never 0.

    `reason` is a short slug that tables count ("context", "http_429", "empty_completion"); `detail` is one line for a
    reader, free of secrets. `lasting`: asking again cannot help (the cell is kept); otherwise a later run asks
    again.
    """

    reason: str
    detail: str = ""
    lasting: bool = False


@dataclass(frozen=True)
class Prompt:
    """What a policy is asked: turns in order. A last turn by the assistant is a prefill that the answer begins with."""

    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError("a prompt has at least one turn")

    @classmethod
    def user(cls, text: str, *, system: str | None = None, prefill: str | None = None) -> Prompt:
        """A single question, with a system message and a prefill where they are given."""
        before = () if system is None else (Turn("system", system),)
        after = () if prefill is None else (Turn("assistant", prefill),)
        return cls((*before, Turn("user", text), *after))

    @property
    def prefill(self) -> str:
        """The text that the answer is forced to begin with; empty for none."""
        return self.turns[-1].content if self.turns[-1].role == "assistant" else ""

    @property
    def needs(self) -> frozenset[str]:
        """What a backend must be able to do: "system" and "prefill" where such turns are there."""
        system = {"system"} if any(turn.role == "system" for turn in self.turns) else set()
        return frozenset(system | ({"prefill"} if self.prefill else set()))

    def led_by(self, text: str) -> Prompt | Missing:
        """The same turns, the user's last one beginning with `text`; Missing where the user has none."""
        place = max((i for i, turn in enumerate(self.turns) if turn.role == "user"), default=None)
        if place is None:
            return Missing("no_user_turn", "tags stand in the user's turn, and there is none", lasting=True)
        led = Turn("user", text + self.turns[place].content)
        return Prompt((*self.turns[:place], led, *self.turns[place + 1 :]))

    def jsonable(self) -> list[list[str]]:
        return [[turn.role, turn.content] for turn in self.turns]


@dataclass(frozen=True)
class Item:
    """One item of a suite, whatever shift it goes through.

    `request` is the plain text that shifts work on; `before` are earlier turns, which no shift touches. `label` is what
    the suite states about it ("harmful", "benign", a class); `group` its type, for worst-group tables; `twin` the id of
    its contrast. `choices` and `target` are for closed questions; `columns` holds the rest of the row.
    """

    id: str
    request: str
    label: str = ""
    group: str = ""
    before: tuple[Turn, ...] = ()
    choices: tuple[str, ...] = ()
    target: str | int | None = None
    twin: str | None = None
    columns: Fields = field(default_factory=dict)

    @property
    def harmful(self) -> bool:
        """Whether answering is the failure (else refusing is)."""
        return self.label == "harmful"

    @property
    def neutral(self) -> bool:
        """Whether neither answering nor refusing is a failure."""
        return self.label == "borderline"

    @property
    def cluster(self) -> str:
        """The base item over which intervals run: the suite's own (`columns["cluster"]`), else the item itself."""
        return str(self.columns.get("cluster", self.id))

    def jsonable(self) -> Json:
        """What a judge or a rule may read of it: everything but its place in the suite."""
        before = [[turn.role, turn.content] for turn in self.before]
        about = {"label": self.label, "target": self.target, "choices": list(self.choices), "columns": self.columns}
        return {"request": self.request, "before": before, **about}


def digest(*parts: object) -> str:
    """First 24 hex digits of the SHA-256 of the parts as canonical JSON: keys of cells, seeds of draws.

    What is no JSON type (a date in a column of parquet) counts as its text.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def number_of(version: str) -> str:
    """The number of a version such as 2-A: results of one number are comparable. The letter is the interface's."""
    return re.sub(r"-[A-Z]", "", version)


def seed_of(*parts: object) -> int:
    """A 63-bit seed from what it is for, so that one more shift or item never changes another one's draws."""
    return int(digest(*parts)[:16], 16) >> 1
