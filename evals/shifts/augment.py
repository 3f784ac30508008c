"""Training rows augmented by shifts: copies of comparisons or prompts whose request went through a named shift.

Responses, labels and scores of a copy are those of its row: what was the better answer to the plain request is the
better answer to the shifted one. Objectives judge a copy on its plain prompt, or the judge itself would be shifted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from align.data.hh import ASSISTANT, HUMAN
from align.errors import UserError
from evals.items import Fields, Json, Missing, seed_of
from evals.shifts.base import Shift

Row = Fields


def shifted_prompt(prompt: str, *, shift: Shift, seed: int = 0) -> str | Missing:
    """The prompt with its last request shifted, or Missing with the reason; drawn by seed, prompt and shift alone.

    An HH transcript keeps its earlier turns; any other prompt is one request as a whole. Missing also where the text
    has no place for a turn that the shift needs (a system turn).
    """
    before, request = split_request(prompt)
    made = shift.encode(request, Random(seed_of("augment", seed, prompt, shift.name)))
    if isinstance(made, Missing):
        return made
    lacking = sorted(made.needs)
    if lacking:
        return Missing(f"unsupported_{lacking[0]}", "a training prompt has no place for it", lasting=True)
    if before is None:
        return "\n".join(turn.content for turn in made.turns)
    words = [f"{HUMAN if turn.role == 'user' else ASSISTANT} {turn.content.strip()}" for turn in made.turns]
    return before + "".join(words) + ASSISTANT


def split_request(prompt: str) -> tuple[str | None, str]:
    """(earlier turns, last request) of an HH transcript that the assistant is to answer; (None, prompt) otherwise."""
    if prompt.startswith(HUMAN) and prompt.endswith(ASSISTANT):
        before, _, request = prompt.removesuffix(ASSISTANT).rpartition(HUMAN)
        return before, request.strip()
    return None, prompt


def augmented(
    rows: Sequence[Row], *, shifts: Sequence[str], seed: int = 0, drops: Counter[str] | None = None
) -> list[Json]:
    """The rows, and behind them a copy of each under each named shift; families and "jailbroken" name many.

    A copy has the id `<id>~<shift>` and the columns `shift` and `plain_prompt`. What a shift cannot do to a row is left
    out and counted in `drops` by shift and reason. UserError on an unknown shift, on "none", on one that forces the
    beginning of the answer, or on one that gives no copy at all.
    """
    from evals.shifts import parse_shifts

    made: list[Json] = [dict(row) for row in rows]
    lost: Counter[str] = Counter()
    for shift in parse_shifts(list(shifts)):
        if shift.name == "none" or "prefill" in shift.needs or shift.family == "prefill":
            raise UserError(f"augment: shift {shift.name!r} makes no other prompt to train on; leave it out")
        copies = []
        for row in rows:
            text = shifted_prompt(row["prompt"], shift=shift, seed=seed)
            if isinstance(text, Missing):
                lost[f"{shift.name}: {text.reason}"] += 1
                continue
            about = {"id": f"{row['id']}~{shift.name}", "shift": shift.name, "plain_prompt": row["prompt"]}
            copies.append({**row, **about, "prompt": text})
        if rows and not copies:
            reasons = ", ".join(reason for reason in lost if reason.startswith(f"{shift.name}: "))
            raise UserError(f"augment: shift {shift.name!r} applies to no row ({reasons}); leave it out")
        made += copies
    if drops is not None:
        drops.update(lost)
    return made


class OnPlainPrompts:
    """An objective that scores a response to a shifted prompt as one to the plain prompt that it was made of."""

    def __init__(self, objective: Callable[..., list[float | None]], rows: Sequence[Row]) -> None:
        self.objective = objective
        self.__name__ = getattr(objective, "__name__", type(objective).__name__)
        self.plain = {row["prompt"]: row["plain_prompt"] for row in rows if "plain_prompt" in row}

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float | None]:
        return self.objective([self.plain.get(prompt, prompt) for prompt in prompts], completions, **columns)
