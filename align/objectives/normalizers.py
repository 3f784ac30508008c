"""Normalizers of an objective's scores: none, z-score, quantile; fitted on reference samples and saved beside the run.

The weights of a preference are exchange rates only relative to a normalizer, so it is part of an experiment and is
written to its config, never refitted on the fly.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.errors import UserError
from align.objectives.base import Objective
from align.runs import write_json


def _reference(scores: Sequence[float | None], least: int) -> np.ndarray:
    """The scores that apply, as float64; UserError when fewer than `least` or not finite."""
    values = np.array([s for s in scores if s is not None], dtype=np.float64)
    if len(values) < least:
        raise UserError(f"a normalizer needs at least {least} reference scores, not {len(values)}; give more samples")
    if not np.isfinite(values).all():
        raise UserError("a reference score is not finite; a normalizer cannot be fitted on it")
    return values


@dataclass(frozen=True)
class NoNormalizer:
    """Scores as they are: weights are exchange rates in the objectives' own units."""

    def __call__(self, scores: Sequence[float | None]) -> list[float | None]:
        return list(scores)


@dataclass(frozen=True)
class ZScore:
    """(score - mean) / std, both of the reference samples (population formula); `n` is how many there were."""

    mean: float
    std: float
    n: int

    @classmethod
    def fit(cls, scores: Sequence[float | None]) -> ZScore:
        """From an objective's scores on samples of the reference model; UserError when they are all equal."""
        values = _reference(scores, 2)
        std = float(values.std())
        if std <= 1e-12 * max(1.0, float(np.abs(values).max())):
            raise UserError(f"all {len(values)} reference scores equal {values[0]:g}; a z-score needs a spread")
        return cls(mean=float(values.mean()), std=std, n=len(values))

    def __call__(self, scores: Sequence[float | None]) -> list[float | None]:
        return [None if s is None else (s - self.mean) / self.std for s in scores]


@dataclass(frozen=True)
class Quantile:
    """The score's quantile among the reference samples, in [0, 1]: linear between knots, clipped outside them.

    `levels[i]` is the share of the reference at `knots[i]`; equal knots were joined at the mean of their levels.
    """

    knots: tuple[float, ...]
    levels: tuple[float, ...]
    n: int

    @classmethod
    def fit(cls, scores: Sequence[float | None], *, knots: int = 101) -> Quantile:
        """From an objective's scores on samples of the reference model; UserError when they are all equal."""
        values = _reference(scores, 2)
        levels = np.linspace(0.0, 1.0, min(knots, len(values)))
        points, group = np.unique(np.quantile(values, levels), return_inverse=True)
        if len(points) < 2:
            raise UserError(f"all {len(values)} reference scores equal {points[0]:g}; there are no quantiles")
        joined = np.bincount(group, weights=levels) / np.bincount(group)
        return cls(knots=tuple(points.tolist()), levels=tuple(joined.tolist()), n=len(values))

    def __call__(self, scores: Sequence[float | None]) -> list[float | None]:
        return [None if s is None else float(np.interp(s, self.knots, self.levels)) for s in scores]


Normalizer = NoNormalizer | ZScore | Quantile
NORMALIZERS: dict[str, type[NoNormalizer] | type[ZScore] | type[Quantile]] = {
    "none": NoNormalizer,
    "zscore": ZScore,
    "quantile": Quantile,
}


def fit_normalizer(kind: str, scores: Sequence[float | None]) -> Normalizer:
    """A normalizer of this kind; UserError on an unknown one."""
    if kind not in NORMALIZERS:
        raise UserError(f"normalizer {kind!r} is not one of {', '.join(NORMALIZERS)}")
    cls = NORMALIZERS[kind]
    return NoNormalizer() if cls is NoNormalizer else cls.fit(scores)  # type: ignore[union-attr]


def save_normalizer(normalizer: Normalizer, path: str | Path) -> None:
    """Write the normalizer as JSON, its kind included."""
    kind = next(name for name, cls in NORMALIZERS.items() if isinstance(normalizer, cls))
    write_json(Path(path), {"kind": kind, **dataclasses.asdict(normalizer)})


def load_normalizer(path: str | Path) -> Normalizer:
    """Read what `save_normalizer` wrote; UserError when the file is missing or is something else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a normalizer ({error}); fit and save it again") from error
    content = content if isinstance(content, dict) else {}
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items() if k != "kind"}
    try:
        return NORMALIZERS[content["kind"]](**fields)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a saved normalizer ({error}); fit and save it again") from error


class Normalized:
    """An objective with its normalizer applied to every score; picklable when the objective is."""

    def __init__(self, objective: Objective, normalizer: Normalizer, *, name: str | None = None) -> None:
        self.objective = objective
        self.normalizer = normalizer
        self.__name__ = name or objective.__name__

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float | None]:
        return self.normalizer(self.objective(prompts, completions, **columns))
