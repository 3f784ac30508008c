"""What a shift is: a request in, a prompt out, with its decoder, probe, matched control, and source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol, TypedDict

from evals.items import Missing, Prompt

MODES = ("none", "competing", "mismatched", "both", "control")
FAMILIES = (
    "none", "encoding", "noise", "language", "tense", "wrapper", "style", "persona", "context", "prefill", "payload",
    "combination",
)  # fmt: skip


@dataclass(frozen=True)
class Codec:
    """A text and its disguise: `decode(encode(x)) == x` for every x where `invertible`.

    `decode` is strict about what `encode` made. `lenient` reads a model's attempt: the longest readable prefix of a
    truncated one, and the text itself where nothing of it can be read.
    """

    encode: Callable[[str], str]
    decode: Callable[[str], str]
    lenient: Callable[[str], str]
    invertible: bool = True


@dataclass(frozen=True)
class Probe:
    """Can the policy read the input? A harmless question under the same disguise, and a check of the answer."""

    prompt: Prompt
    check: Callable[[str], bool]


class Asks(Protocol):
    """What a shift that needs a language model is given: one text in, one text or Missing out."""

    def __call__(self, instruction: str) -> str | Missing: ...


Encode = Callable[[str, Random], Prompt | Missing]
OUR_WORDS = "in our own words"  # how most shifts differ from the paper that they are from


def same(text: str) -> str:
    return text


@dataclass(frozen=True)
class Shift:
    """One transform of requests.

    `encode(request, rng)` gives the prompt or Missing (never the untransformed request: that would look like a robust
    policy). `rng` is seeded by item and shift. `decode` turns a response into the text that a judge reads. `codec` is
    the disguise of the request itself, where there is one. `probe(rng)` asks for something harmless under the same
    disguise. `control` names the matched control: the same surface cost without adversarial content; `control_of`
    names, for a control, the shift that it is the control of. `differs` is how the shift differs from the paper that
    it is from. `needs` are things a backend or the caller must have: "system", "prefill", "llm", "translations".
    `version`: its number goes into the key of every cell, and is raised when the text, the decoder or a probe's check
    changes; the letter is the interface's.
    """

    name: str
    family: str
    mode: str
    encode: Encode
    decode: Callable[[str], str] = same
    codec: Codec | None = None
    probe: Callable[[Random], Probe] | None = None
    control: str | None = None
    control_of: str | None = None
    needs: frozenset[str] = field(default_factory=frozenset)
    about: str = ""
    differs: str = ""
    version: str = "1-A"

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.family not in FAMILIES:
            raise ValueError(f"shift {self.name}: mode {self.mode!r} or family {self.family!r} is not a known one")


class ShiftOptions(TypedDict, total=False):
    """What a maker of shifts passes on to `Shift` unchanged."""

    control: str | None
    control_of: str | None
    differs: str
    version: str


class DecodedOptions(ShiftOptions, total=False):
    """The same, for makers that leave the decoder to their caller."""

    decode: Callable[[str], str]


class FramedOptions(DecodedOptions, total=False):
    """The same, for makers that put the request into fixed words."""

    system: str | None
