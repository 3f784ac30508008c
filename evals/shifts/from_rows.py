"""Shifts made of a user's own rows: prompts dressed like training rows, and many demonstrations before the request."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

from align.data.load import FILE_ENDS, iterate_rows
from align.data.sources import demonstrations_in, prompt_rows
from align.errors import UserError
from align.turns import Turn, turns_of
from evals.items import Missing, Prompt
from evals.shifts.base import Shift
from evals.shifts.context import NEUTRAL, Pair, many_shot

LIKE, MANY_SHOT = "like", "many_shot"


@dataclasses.dataclass(frozen=True)
class Dress:
    """What all rows have around their requests: a system turn, and how the user's last turn begins and ends."""

    system: str | None
    prefix: str
    suffix: str

    def put_on(self, request: str) -> Prompt:
        return Prompt.user(f"{self.prefix}{request}{self.suffix}", system=self.system)

    def shuffled(self) -> Dress:
        """The same words in another order, drawn once: as long, and unlike the rows."""
        return Dress(None if self.system is None else _mixed(self.system), _mixed(self.prefix), _mixed(self.suffix))


def _mixed(text: str) -> str:
    words = text.split()
    Random(0).shuffle(words)
    start, end = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :] if text.strip() else ""
    return f"{start}{' '.join(words)}{end}"


def dress_of(prompts: Sequence[str], *, where: str) -> Dress:
    """The dress of prompts (plain, or transcripts). UserError where there is none, or fewer than two requests."""
    talks = [turns_of(prompt) for prompt in prompts]
    asked = [next((turn.content for turn in reversed(talk) if turn.role == "user"), "") for talk in talks]
    systems = Counter(next((turn.content for turn in talk if turn.role == "system"), None) for talk in talks)
    if len(set(asked)) < 2:
        raise UserError(f"{where}: rows with at least two different requests show what they have in common; add some")
    system = next(iter(systems)) if len(systems) == 1 else None
    prefix = os.path.commonprefix(asked)
    prefix = prefix[: len(prefix) - len(prefix.split()[-1])] if prefix and not prefix[-1].isspace() else prefix
    suffix = os.path.commonprefix([text[len(prefix) :][::-1] for text in asked])[::-1]
    suffix = suffix[len(suffix.split()[0]) :] if suffix and not suffix[0].isspace() else suffix
    if system is None and not prefix.strip() and not suffix.strip():
        raise UserError(
            f"{where}: the rows have no system turn, beginning or end in common, so nothing to dress a prompt in; keep "
            "the rows of one kind only"
        )
    return Dress(system, prefix if prefix.strip() else "", suffix if suffix.strip() else "")


def like_shifts(source: str) -> list[Shift]:
    """`like_rows`, requests in the dress of the rows, and `like_rows_shuffled`, its control: its words shuffled."""
    dress = dress_of([row["prompt"] for row in prompt_rows(source, limit=None)], where=source)
    about = f"the request in what all rows of {Path(source).name} have around theirs"
    name, other = "like_rows", dress.shuffled()

    def worn(one: Dress) -> Shift:
        return Shift(name, "wrapper", "competing", lambda request, rng: one.put_on(request), about=about)

    if other == dress:  # a word cannot be put in another order
        return [worn(dress)]
    control = dataclasses.replace(
        worn(other), name=f"{name}_shuffled", mode="control", control_of=name, about=f"{about}, its words shuffled"
    )
    return [dataclasses.replace(worn(dress), control=control.name), control]


def own_many_shot(source: str, *, counts: Sequence[int] = ()) -> list[Shift]:
    """`many_shot_own_K` for each count (default: 1, 4, 16, ... and all), and its control `many_shot_plain_K`.

    Demonstrations are the last question and answer of each row; the control has as many of general knowledge, drawn
    with replacement. UserError where a row is no demonstration, or a count is larger than there are.
    """
    pairs = _pairs(source)
    default = [*(4**i for i in range(12) if 4**i < len(pairs)), len(pairs)]
    shifts = []
    for k in counts or default:
        if not 1 <= k <= len(pairs):
            raise UserError(f"{source}: {k} demonstrations asked, and it has {len(pairs)}; give 1 to {len(pairs)}")
        name, control = f"many_shot_own_{k}", f"many_shot_plain_{k}"
        about = f"{k} earlier turns, the demonstrations of {Path(source).name}"
        shifts += [many_shot(name, k=k, pairs=pairs, control=control, about=about), _plain(control, k=k, of=name)]
    return shifts


def _plain(name: str, *, k: int, of: str) -> Shift:
    def encode(request: str, rng: Random) -> Prompt | Missing:
        drawn = rng.choices(NEUTRAL, k=k)
        turns = [Turn(role, text) for pair in drawn for role, text in zip(("user", "assistant"), pair, strict=True)]
        return Prompt((*turns, Turn("user", request)))

    return Shift(name, "context", "control", encode, control_of=of, about=f"{k} earlier turns of general knowledge")


def _pairs(source: str) -> list[Pair]:
    pairs = []
    for place, row in iterate_rows(source):
        found, lost = demonstrations_in(row, place=place, last=True)
        if not found:
            why = next(iter(lost), "no reply")
            raise UserError(f"{place}: no demonstration in that row ({why}); give prompt and completion, or delete it")
        prompt, answer = found[-1]
        question = next((turn.content for turn in reversed(turns_of(prompt)) if turn.role == "user"), prompt)
        pairs.append((question, answer.strip()))
    return pairs


def from_rows(name: str) -> list[Shift] | None:
    """The shifts of `like:ROWS` or `many_shot:FILE[:K,K]`; None for any other name."""
    kind, colon, rest = name.partition(":")
    if not colon or kind not in (LIKE, MANY_SHOT):
        return None
    if not rest:
        raise UserError(f"--shift {name}: name a file of rows behind the colon")
    if kind == LIKE:
        return like_shifts(rest)
    file, split, numbers = rest.rpartition(":")
    if not split or not file.endswith(FILE_ENDS):
        return own_many_shot(rest)
    if not all(part.strip().isdecimal() for part in numbers.split(",")):
        raise UserError(f"--shift {name}: write {MANY_SHOT}:FILE:K,K with numbers of demonstrations")
    return own_many_shot(file, counts=[int(part) for part in numbers.split(",")])
