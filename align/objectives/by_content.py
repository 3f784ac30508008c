"""Scores by content: several objectives from one call, kept by prompt, reply and columns; columns found by prompt.

A `Scorer` gives one reply all of its scores at once (a judge's grades, a function's parts). `objectives_of` makes each
of them an objective; the first that is asked asks the scorer, the others read what was kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from align.errors import UserError
from align.objectives.base import Objective, as_texts

Scores = tuple[float | None, ...]  # one for each part; None: does not apply, or could not be found out
DRAWN = ("completion_ids", "completion_ended")  # what a sampler says beside a reply: no column of the rows
MOST_KEPT = 200_000  # contents in memory, about 50 MB; the oldest are asked again


class Scorer(Protocol):
    """What gives scores: `parts` names them; it reads `columns` of the rows beside prompt and reply, and `optional`
    ones where they are there.

    `batch` contents are asked at once. `identity` is of everything that decides a score, and names the file that scores
    are kept in. An `Outage` may be raised at any batch: what was scored before is kept.
    """

    parts: tuple[str, ...]
    columns: tuple[str, ...]
    optional: tuple[str, ...]
    learned: bool
    batch: int

    @property
    def identity(self) -> str: ...

    def check(self, table: Mapping[str, Mapping[str, object]]) -> None:
        """UserError for a value of its columns (column -> prompt -> value) that it cannot use."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> Sequence[Scores]: ...


class Kept:
    """A scorer that is asked once for each content, in this process, and with `folder` in later ones too.

    The content is the prompt, the reply and the scorer's columns. A file `IDENTITY.jsonl` of the folder gets a line for
    each content with all its scores; one that lacks a score is asked again by the next process.
    """

    def __init__(self, scorer: Scorer, *, name: str, folder: Path | None = None) -> None:
        self.scorer, self.name, self.folder = scorer, name, folder
        self._known: dict[str, Scores] = {}
        self._read = folder is None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_known": {}, "_read": self.folder is None}

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[Scores]:
        """The scores of every completion. UserError for a column that the scorer needs and nobody gives."""
        given = self._columns(columns, count=len(completions))
        keys = [
            _key(prompt, completion, {name: values[i] for name, values in given.items()})
            for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        if not self._read:
            self._known, self._read = self._stored(), True
        found = {key: self._known[key] for key in keys if key in self._known}
        new: dict[str, int] = {}
        for i, key in enumerate(keys):
            if key not in found:
                new.setdefault(key, i)
        fresh = list(new.items())
        for start in range(0, len(fresh), self.scorer.batch):
            part = fresh[start : start + self.scorer.batch]
            chosen = [i for _, i in part]
            asked = {name: [values[i] for i in chosen] for name, values in given.items()}
            scores = self.scorer([prompts[i] for i in chosen], [completions[i] for i in chosen], **asked)
            self._keep(answers := dict(zip((key for key, _ in part), scores, strict=True)))
            found |= answers
        return [found[key] for key in keys]

    def _columns(self, columns: Mapping[str, object], *, count: int) -> dict[str, Sequence[object]]:
        given: dict[str, Sequence[object]] = {}
        for name in (*self.scorer.columns, *self.scorer.optional):
            values = columns.get(name)
            if values is None and name in self.scorer.optional:
                continue
            if not isinstance(values, (list, tuple)) or len(values) != count:
                if name in DRAWN:
                    raise UserError(f"objective {self.name} reads {name}, and these replies have their text alone")
                raise UserError(
                    f"objective {self.name} reads a column {name!r}, which is not given; add it to the rows"
                )
            given[name] = values
        return given

    @property
    def file(self) -> Path | None:
        """Where scores are kept, if they are."""
        return None if self.folder is None else self.folder / f"{self.scorer.identity}.jsonl"

    def _stored(self) -> dict[str, Scores]:
        """What earlier processes kept; a last line that was cut is none."""
        known: dict[str, Scores] = {}
        if self.file is None or not self.file.is_file():
            return known
        with open(self.file, encoding="utf-8") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                    scores = tuple(float(score) for score in entry["scores"])
                except (ValueError, KeyError, TypeError):
                    continue
                if len(scores) == len(self.scorer.parts):
                    known[str(entry["key"])] = scores
        return known

    def _keep(self, answers: Mapping[str, Scores]) -> None:
        self._known |= answers
        while len(self._known) > MOST_KEPT:
            del self._known[next(iter(self._known))]
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a+b") as stream:
            _end_line(stream)
            for key, scores in answers.items():
                if None not in scores:
                    stream.write(json.dumps({"key": key, "scores": scores}).encode() + b"\n")


def _end_line(stream: IO[bytes]) -> None:
    """Behind a line that was cut by a kill, a new one begins."""
    if stream.seek(0, 2):
        stream.seek(-1, 2)
        if stream.read(1) != b"\n":
            stream.write(b"\n")


def _key(prompt: str, completion: str, columns: Mapping[str, object]) -> str:
    content = json.dumps([prompt, completion, columns], sort_keys=True, default=str)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Part:
    """One score of a scorer as an objective; `columns` of the rows are those that it needs, `optional` may be there."""

    def __init__(self, kept: Kept, part: str, *, name: str) -> None:
        self.kept, self.index, self.__name__ = kept, kept.scorer.parts.index(part), name
        self.columns, self.optional = (
            tuple(column for column in columns if column not in DRAWN)
            for columns in (kept.scorer.columns, kept.scorer.optional)
        )
        self.learned = kept.scorer.learned

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float | None]:
        prompts, completions = as_texts(prompts, completions)
        return [scores[self.index] for scores in self.kept(prompts, completions, **columns)]


def objectives_of(scorer: Scorer, *, name: str, folder: Path | None = None) -> list[Objective]:
    """The objectives of a scorer, in the order of its parts: `name` for the only one and for one called "total", else
    `name.part`. `folder`: where scores are kept for later processes.
    """
    kept, alone = Kept(scorer, name=name, folder=folder), len(scorer.parts) == 1
    return [Part(kept, p, name=name if alone or p == "total" else f"{name}.{p}") for p in scorer.parts]


def parts_within(objective: object) -> list[Part]:
    """The parts of scorers that an objective is or holds: negated, normalized, as a member."""
    if isinstance(objective, Part):
        return [objective]
    inner = [*getattr(objective, "members", ()), *([objective.objective] if hasattr(objective, "objective") else [])]
    return [part for one in inner for part in parts_within(one)]


def columns_needed(objective: object) -> tuple[str, ...]:
    """The columns of the rows that an objective cannot do without."""
    return tuple(dict.fromkeys(name for part in parts_within(objective) for name in part.columns))


def columns_read(objective: object) -> tuple[str, ...]:
    """The columns of the rows that an objective reads, also those that need not be there."""
    return tuple(dict.fromkeys(name for one in parts_within(objective) for name in (*one.columns, *one.optional)))


class FromRows:
    """An objective that finds the columns it reads by the prompt, wherever it is asked without them.

    `table` is column -> prompt -> value; an optional column may be left out. A prompt whose row has no value gets None
    there. UserError for a value that the objective cannot use.
    """

    def __init__(self, objective: Objective, table: Mapping[str, Mapping[str, object]]) -> None:
        self.objective, self.__name__ = objective, objective.__name__
        self.table = {n: table[n] for n in columns_read(objective) if n in table or n in columns_needed(objective)}
        for part in parts_within(objective):
            part.kept.scorer.check({name: table[name] for name in part.columns})
        self.learned = getattr(objective, "learned", False)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float | None]:
        texts, _ = as_texts(prompts, completions)
        found = {name: [by_prompt.get(text) for text in texts] for name, by_prompt in self.table.items()}
        return self.objective(prompts, completions, **{**found, **columns})
