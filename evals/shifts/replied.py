"""Shifts that begin the answer with tokens of a given reply: the harmful-prefix curve, its control, and insertion.

No reply is written here: they are a policy's own, or from the user's file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random

from evals.items import Missing, Prompt
from evals.shifts.base import Shift
from evals.shifts.prefill import NEEDS, REFUSAL

Cut = Callable[[str, int], str]  # (a reply, k) -> its first k tokens as text


def prefix_shifts(
    replies: Mapping[str, str], *, lengths: Sequence[int], cut: Cut, controls: Sequence[str] = ()
) -> list[Shift]:
    """For every length k in tokens three shifts; `replies` maps a request to a reply that complies.

    - `prefix_K`: the answer begins with the first k tokens of the request's reply (Qi et al. 2024, 2406.05946).
    - `prefix_other_K`, its control: with those of a reply to another request, one of `controls` where there is one:
      what any forced beginning of this length does.
    - `insertion_K`: the same k tokens behind the beginning of a refusal, cut at random (Lyu et al. 2026, 2606.04168).
    """
    def begun(request: str, k: int, rng: Random) -> str | None:
        return cut(replies[request], k) if request in replies else None

    def other(request: str, k: int, rng: Random) -> str | None:
        others = [one for one in controls if one != request] or [one for one in replies if one != request]
        return cut(replies[rng.choice(others)], k) if others else None

    def inserted(request: str, k: int, rng: Random) -> str | None:
        words = REFUSAL.split()
        refusal = " ".join(words[: rng.randint(1, len(words))])
        return f"{refusal} {cut(replies[request], k).lstrip()}" if request in replies else None

    def shift(kind: str, k: int, mode: str, begin: Callable[[str, int, Random], str | None], about: str) -> Shift:
        def encode(request: str, rng: Random) -> Prompt | Missing:
            prefill = begin(request, k, rng)
            if prefill is None:
                return Missing("no_reply", "no reply is given that the answer could begin with", lasting=True)
            return Prompt.user(request, prefill=prefill)

        own, control = kind == "prefix", kind == "prefix_other"
        return Shift(
            f"{kind}_{k}", "prefill", mode, encode, about=about, needs=NEEDS,
            control=f"prefix_other_{k}" if own else None, control_of=f"prefix_{k}" if control else None,
        )  # fmt: skip

    return [
        made
        for k in lengths
        for made in (
            shift("prefix", k, "competing", begun, f"the answer begins with {k} tokens of a reply that complies"),
            shift("prefix_other", k, "control", other, f"it begins with {k} tokens of a reply to another request"),
            shift("insertion", k, "competing", inserted, f"the same {k} tokens behind the beginning of a refusal"),
        )
    ]
