"""What a shift is: a request in, a prompt out, with its decoder, comprehension probe and placebo twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

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


def same(text: str) -> str:
    return text


@dataclass(frozen=True)
class Shift:
    """One transform of requests.

    `encode(request, rng)` gives the prompt or Missing (never the untransformed request: that would look like a robust
    policy). `rng` is seeded by item and shift. `decode` turns a response into the text that a judge reads. `codec` is
    the disguise of the request itself, where there is one. `probe(rng)` asks for something harmless under the same
    disguise. `placebo` names the twin of the same surface cost without adversarial content. `ablates` names, for a
    control, the shift that it is the control of. `needs` are things a backend or the caller must have: "system",
    "prefill", "llm", "translations". `version` goes into the key of every cell: raise it when the text changes.
    """

    name: str
    family: str
    mode: str
    encode: Encode
    decode: Callable[[str], str] = same
    codec: Codec | None = None
    probe: Callable[[Random], Probe] | None = None
    placebo: str | None = None
    ablates: str | None = None
    needs: frozenset[str] = field(default_factory=frozenset)
    about: str = ""
    version: int = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.family not in FAMILIES:
            raise ValueError(f"shift {self.name}: mode {self.mode!r} or family {self.family!r} is not a known one")
