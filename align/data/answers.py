"""Answers: one policy at one preference on one prompt, exact or sampled, as a row of a file and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a row of a table does on one prompt when it is asked for one preference.

    `values` are the objectives' scores, K of them like the preference; `kl` is the KL from the reference in nats
    (exact), or the log-ratio of the completion (sampled). `item` is the base item, the cluster of every interval; shift
    "none" is in distribution.
    """

    row: str
    preference: tuple[float, ...]
    shift: str
    item: str
    prompt: str
    values: tuple[float, ...]
    kl: float

    def jsonable(self) -> dict[str, object]:
        """The row of a file; fields that are None are left out."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in given.items() if v is not None}


@dataclass(frozen=True, kw_only=True)
class ExactAnswer(Answer):
    """Exact expectations over all responses, and the optimum's: `regret = J_star - J`, `malformed` a probability.

    Under a shift that keeps the base items also the optimum's J on the matched control, and the regret of the
    transported policy (align/functional/parts.py); None elsewhere.
    """

    J: float
    J_star: float
    regret: float
    values_star: tuple[float, ...]
    kl_star: float
    malformed: float
    J_star_control: float | None = None
    regret_carried: float | None = None


@dataclass(frozen=True, kw_only=True)
class SampledAnswer(Answer):
    """One completion. `values_shifted` are the scores where the judge read the shifted prompt in place of the plain."""

    sample: int
    completion: str
    values_shifted: tuple[float, ...] | None = None


def parse_answer(row: object) -> ExactAnswer | SampledAnswer:
    """The answer that `jsonable` wrote: exact where it has J. ValueError with what is wrong; other keys are ignored."""
    if not isinstance(row, Mapping):
        raise ValueError("is not a JSON object")
    answer = Answer(
        row=_text(row, "row"), preference=_numbers(row, "preference"), shift=_text(row, "shift"),
        item=_text(row, "item"), prompt=_text(row, "prompt"), values=_scores(row, "values"), kl=_number(row, "kl"),
    )  # fmt: skip
    if "J" in row:
        return ExactAnswer(
            **vars(answer), J=_number(row, "J"), J_star=_number(row, "J_star"), regret=_number(row, "regret"),
            values_star=_scores(row, "values_star"), kl_star=_number(row, "kl_star"),
            malformed=_number(row, "malformed"), J_star_control=_optional(row, "J_star_control"),
            regret_carried=_optional(row, "regret_carried"),
        )  # fmt: skip
    return SampledAnswer(
        **vars(answer), sample=int(_number(row, "sample")), completion=_text(row, "completion"),
        values_shifted=_scores(row, "values_shifted") if "values_shifted" in row else None,
    )  # fmt: skip


def _of(row: Mapping[str, object], name: str) -> object:
    if name not in row:
        raise ValueError(f"has no '{name}'")
    return row[name]


def _text(row: Mapping[str, object], name: str) -> str:
    value = _of(row, name)
    if not isinstance(value, str):
        raise ValueError(f"has '{name}' that is not text")
    return value


def _number(row: Mapping[str, object], name: str) -> float:
    number = _finite(_of(row, name))
    if number is None:
        raise ValueError(f"has '{name}' that is not a finite number")
    return number


def _optional(row: Mapping[str, object], name: str) -> float | None:
    return _number(row, name) if name in row else None


def _numbers(row: Mapping[str, object], name: str) -> tuple[float, ...]:
    value = _of(row, name)
    finite = [_finite(entry) for entry in value] if isinstance(value, (list, tuple)) else []
    numbers = tuple(number for number in finite if number is not None)
    if not numbers or len(numbers) != len(finite):
        raise ValueError(f"needs '{name}' to be finite numbers, one per objective of its preference")
    return numbers


def _scores(row: Mapping[str, object], name: str) -> tuple[float, ...]:
    numbers = _numbers(row, name)
    if len(numbers) != len(_numbers(row, "preference")):
        raise ValueError(f"needs '{name}' to be finite numbers, one per objective of its preference")
    return numbers


def _finite(value: object) -> float | None:
    """A finite number as a float, else None."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer that no float holds
        return None
    return number if math.isfinite(number) else None
