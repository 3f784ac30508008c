"""Preferences as types: weights, directions, thresholds and targets; grids over the simplex.

Legend: B responses, K objectives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from align.errors import UserError

_TOLERANCE = 1e-6


def _numbers(values: Sequence[float], what: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(v) for v in values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} must be numbers, not {values!r}") from error
    if not numbers or not all(math.isfinite(v) for v in numbers):
        raise UserError(f"{what} must be finite numbers, at least one; got {values!r}")
    return numbers


def _to_six_digits(values: Sequence[float]) -> tuple[float, ...]:
    """Numbers as labels write them: preferences of one label are one preference, in keys, folders and cells."""
    return tuple(float(f"{v:.6g}") for v in values)


@dataclass(frozen=True)
class Weights:
    """A point of the simplex, one weight per objective; UserError when negative or not summing to 1 (1e-6).

    Weights are what their label says: values are kept to its six digits (and scaled to sum to 1, as thirds need). What
    lies within 1e-6 below 0 is 0.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = tuple(0.0 if -_TOLERANCE <= v <= 0 else v for v in _numbers(self.values, "weights"))
        if min(numbers) < 0:
            raise UserError(f"weights {self.label_of(numbers)} contain a negative number; give values in [0, 1]")
        if abs(sum(numbers) - 1) > _TOLERANCE * len(numbers):  # labels are rounded
            raise UserError(f"weights {self.label_of(numbers)} sum to {sum(numbers):g}; make them sum to 1")
        rounded = _to_six_digits(numbers)
        scaled = tuple(v / math.fsum(rounded) for v in rounded)
        if abs(math.fsum(rounded) - 1) > 1e-12 and self.label_of(scaled) == self.label_of(rounded):
            rounded = scaled  # thirds, say
        object.__setattr__(self, "values", rounded)

    @staticmethod
    def label_of(values: Sequence[float]) -> str:
        return ",".join(f"{v:.6g}" for v in values)

    @property
    def label(self) -> str:
        """Text form, the inverse of `parse`: "0.25,0.75"."""
        return self.label_of(self.values)

    @classmethod
    def parse(cls, text: str) -> Weights:
        """Weights from "0.25,0.75"; UserError on anything else."""
        try:
            numbers = tuple(float(part) for part in text.split(","))
        except ValueError as error:
            raise UserError(f"weights {text!r} are not numbers separated by commas, like 0.25,0.75") from error
        return cls(numbers)

    @classmethod
    def vertex(cls, index: int, count: int) -> Weights:
        """All weight on one of `count` objectives."""
        return cls(tuple(1.0 if k == index else 0.0 for k in range(count)))

    @classmethod
    def vertices(cls, count: int) -> list[Weights]:
        """Each of `count` objectives alone, in order."""
        return [cls.vertex(k, count) for k in range(count)]

    @property
    def is_vertex(self) -> bool:
        return max(self.values) == 1.0

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[float]:
        return iter(self.values)

    def __getitem__(self, index: int) -> float:
        return self.values[index]


@dataclass(frozen=True)
class Direction:
    """A unit vector in objective space; negative entries are legal (less of that objective)."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = _numbers(self.values, "a direction")
        if abs(math.hypot(*numbers) - 1) > 1e-4:
            raise UserError(f"direction {numbers} has length {math.hypot(*numbers):g}; scale it to 1")
        object.__setattr__(self, "values", _to_six_digits(numbers))

    @property
    def label(self) -> str:
        """Text form: "direction=0.6,-0.8"."""
        return "direction=" + Weights.label_of(self.values)

    @classmethod
    def of(cls, weights: Weights) -> Direction:
        """The direction in which weights point: `w / |w|`."""
        return cls(tuple(w / math.hypot(*weights.values) for w in weights))


@dataclass(frozen=True)
class Thresholds:
    """Lower bounds on expected rewards, one per constrained objective; `None` leaves an objective free."""

    values: tuple[float | None, ...]

    def __post_init__(self) -> None:
        known = iter(_to_six_digits(_numbers([v for v in self.values if v is not None], "thresholds")))
        object.__setattr__(self, "values", tuple(None if v is None else next(known) for v in self.values))

    def asked(self, names: Sequence[str], *, maximise: str = "auto") -> dict[str, float | None]:
        """The objectives of a constrained problem, in order, with their thresholds: None for the one to maximise.

        That is `maximise`, or with auto the only one without a threshold; others without one are left out. UserError
        where there is no such objective, or nothing is bounded.
        """
        table = dict(zip(names, self.values, strict=True))
        free = [name for name, value in table.items() if value is None]
        if maximise not in ("auto", *free):
            raise UserError(f"maximise must be auto or an objective without a threshold, not {maximise!r}")
        if maximise == "auto" and len(free) != 1:
            raise UserError(
                f"{self.label} leave {len(free)} objectives without a threshold; write none for exactly one, which "
                "is maximised, or name it in maximise"
            )
        if len(free) == len(names):
            raise UserError(f"{self.label} bound no objective; give a number for at least one, or use morlhf")
        main = free[0] if maximise == "auto" else maximise
        return {name: value for name, value in table.items() if value is not None or name == main}

    @property
    def label(self) -> str:
        """Text form: "thresholds=none,0.55"."""
        return "thresholds=" + ",".join("none" if v is None else f"{v:.6g}" for v in self.values)


@dataclass(frozen=True)
class Targets:
    """Desired scores, one per objective, in the units of the normalizer that the run names."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _to_six_digits(_numbers(self.values, "targets")))

    @property
    def label(self) -> str:
        """Text form: "targets=0.8,0.5"."""
        return "targets=" + Weights.label_of(self.values)


Preference = Weights | Direction | Thresholds | Targets


def parse_preference(text: str) -> Preference:
    """The preference whose `label` is `text`; plain numbers are weights. UserError on anything else."""
    kind, marked, rest = text.partition("=")
    if not marked:
        return Weights.parse(text)
    kinds: dict[str, type] = {"direction": Direction, "thresholds": Thresholds, "targets": Targets}
    if kind not in kinds:
        raise UserError(f"preference {text!r} is neither weights like 0.25,0.75 nor one of {', '.join(kinds)}=...")
    try:
        values = tuple(None if part == "none" and kind == "thresholds" else float(part) for part in rest.split(","))
    except ValueError as error:
        raise UserError(f"{kind} {rest!r} are not numbers separated by commas") from error
    return kinds[kind](values)


def simplex_grid(objectives: int, steps: int) -> list[Weights]:
    """All weights whose entries are multiples of 1/steps, first objective rising: comb(steps + K - 1, K - 1) points."""
    if objectives < 1 or steps < 1:
        raise ValueError(f"need at least one objective and one step, got {objectives} and {steps}")
    grid = []
    for bars in combinations(range(steps + objectives - 1), objectives - 1):
        edges = (-1, *bars, steps + objectives - 1)
        grid.append(Weights(tuple((b - a - 1) / steps for a, b in zip(edges, edges[1:], strict=False))))
    return sorted(grid, key=lambda w: w.values)
