"""Building shifts: a request in a frame, a request in a code, and the probe that goes through the same encoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Unpack

from evals.items import Missing, Prompt
from evals.shifts.base import Codec, DecodedOptions, Encode, Probe, Shift, same
from evals.shifts.probes import Question, draw

SLOT = "{request}"
UNCHANGED = Missing("unchanged", "the shift leaves this request as it is", lasting=True)
TRIES = 64


def fill(frame: str, text: str) -> str:
    """`frame` with `text` in its one slot. What looks like a slot within `text` stays. ValueError without a slot."""
    before, slot, after = frame.partition(SLOT)
    if not slot or SLOT in after:
        raise ValueError(f"a frame has one {SLOT}")
    return f"{before}{text}{after}"


def framed(
    name: str, frame: str, *, family: str, mode: str, about: str, system: str | None = None,
    **more: Unpack[DecodedOptions],
) -> Shift:  # fmt: skip
    """The request, unchanged, inside fixed words; `system` is the system turn. `more` are fields of `Shift`."""
    fill(frame, "")  # a frame without a slot fails here, not in the middle of a run
    needs = frozenset({"system"}) if system is not None else frozenset()

    def encode(request: str, rng: Random) -> Prompt:
        return Prompt.user(fill(frame, request), system=system)

    return Shift(name, family, mode, encode, about=about, needs=needs, **more)


def disguised(
    name: str, codec: Codec, *, about: str, frame: str = SLOT, family: str = "encoding", mode: str = "mismatched",
    system: str | None = None, **more: Unpack[DecodedOptions],
) -> Shift:  # fmt: skip
    """The request in a code inside fixed words. A request that the code leaves as it is gives Missing."""
    fill(frame, "")
    needs = frozenset({"system"}) if system is not None else frozenset()

    def encode(request: str, rng: Random) -> Prompt | Missing:
        hidden = codec.encode(request)
        return UNCHANGED if hidden == request else Prompt.user(fill(frame, hidden), system=system)

    probe = probe_through(encode, more.get("decode", same), _strict(codec))
    return Shift(name, family, mode, encode, codec=codec, probe=probe, about=about, needs=needs, **more)


def drawn(
    name: str, change: Callable[[str, Random], str], *, family: str, about: str, mode: str = "mismatched",
    **more: Unpack[DecodedOptions],
) -> Shift:  # fmt: skip
    """The request after a change that may draw from the generator. One that changes nothing gives Missing."""

    def encode(request: str, rng: Random) -> Prompt | Missing:
        changed = change(request, rng)
        return UNCHANGED if changed == request else Prompt.user(changed)

    return Shift(name, family, mode, encode, probe=probe_through(encode), about=about, **more)


def probe_through(encode: Encode, *readers: Callable[[str], str]) -> Callable[[Random], Probe]:
    """A probe of `encode`: a harmless question that it changes, and a check of the answer.

    The answer counts as right as it stands or as any of `readers` reads it: the probe asks whether the question was
    read, not whether the order on the answer's form was kept. Questions that an echo of the prompt would answer (digits
    of a code, words run together) are not asked.
    """

    def probe(rng: Random) -> Probe:
        for _ in range(TRIES):
            question = draw(rng)
            prompt = encode(question.text, rng)
            if isinstance(prompt, Prompt) and not any(_right(question, readers, turn.content) for turn in prompt.turns):
                return Probe(prompt, partial(_right, question, readers))
        raise ValueError(f"none of {TRIES} questions can probe the shift; draw from others")

    return probe


def _right(question: Question, readers: Sequence[Callable[[str], str]], answer: str) -> bool:
    return any(question.right(text) for text in {answer, *(read(answer) for read in readers)})


def _strict(codec: Codec) -> Callable[[str], str]:
    """The whole answer as the code; as it stands where it is not of the code. For answers too short to decide."""

    def read(answer: str) -> str:
        try:
            return codec.decode(answer.strip())
        except ValueError:
            return answer

    return read
