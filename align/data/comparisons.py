"""Comparisons as rows: their two responses, who labelled them, and the pairs that come of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.errors import UserError
from align.preferences import Weights

Row = Mapping[str, Any]
Ids = tuple[int, ...] | None
SIDES = (("a", "b"), ("chosen", "rejected"))
LABELS = ("given", "scalarised", "objectives")


@dataclass(frozen=True)
class Pair:
    """A labelled comparison; `swapped` says that the second response of the row won.

    A response that was drawn has its ids, the ending one among them if it came; a text has None.
    """

    id: str
    prompt: str
    chosen: str
    rejected: str
    swapped: bool
    chosen_ids: Ids = None
    rejected_ids: Ids = None

    @classmethod
    def of(cls, row: Row, *, swapped: bool = False) -> Pair:
        """A row's two responses, the first one chosen unless `swapped`."""
        sides = list(zip(responses_of(row), ids_of(row), strict=True))
        (chosen, chosen_ids), (rejected, rejected_ids) = reversed(sides) if swapped else sides
        return cls(str(row["id"]), row["prompt"], chosen, rejected, swapped, chosen_ids, rejected_ids)


def required_rows(rows: Sequence[Row] | None, *, method: str) -> Sequence[Row]:
    """The rows; UserError when there are none, and where one has no id or an earlier row's: scores are joined by id."""
    if not rows:
        raise UserError(f"{method} needs comparisons; pass rows with id, prompt and two responses")
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        if "id" not in row or str(row["id"]) in seen:
            raise UserError(f"comparison {number} has {'no id' if 'id' not in row else 'the id of an earlier row'}")
        seen.add(str(row["id"]))
    return rows


def responses_of(row: Row) -> tuple[str, str]:
    """The row's two responses in stored order: `a`, `b` or `chosen`, `rejected`; UserError when it has neither."""
    first, second = _sides(row)
    for name in (first, second):
        if not isinstance(row[name], str):
            raise UserError(f"comparison {row.get('id', '?')}: {name} is {row[name]!r}; make it text")
    return row[first], row[second]


def ids_of(row: Row) -> tuple[Ids, Ids]:
    """The token ids of both responses as they were drawn, in the order of `responses_of`: `a_ids`, `b_ids` or
    `chosen_ids`, `rejected_ids`; None for a response that is a text alone. UserError on a value that is no ids.
    """
    first, second = (row.get(f"{side}_ids") for side in _sides(row))
    for ids in (first, second):
        if ids is not None and not (ids and isinstance(ids, (list, tuple)) and all(type(i) is int for i in ids)):
            raise UserError(f"comparison {row.get('id', '?')}: ids of a response are {ids!r:.40}; give a list of ids")
    return None if first is None else tuple(first), None if second is None else tuple(second)


def _sides(row: Row) -> tuple[str, str]:
    for first, second in SIDES:
        if first in row and second in row:
            return first, second
    raise UserError(f"comparison {row.get('id', '?')} has neither a and b nor chosen and rejected")


def given_pairs(rows: Sequence[Row], *, weights: Weights, names: Sequence[str]) -> list[Pair]:
    """Pairs with the labels that the rows came with: those of the one objective that `weights` picks.

    Rows without an `objective` belong to the only objective. UserError for weights inside the simplex, since given
    labels say nothing about a mixture, and when no row is left.
    """
    if not weights.is_vertex:
        raise UserError(
            f"weights {weights.label} mix objectives, but given labels follow one; use labels: scalarised or objectives"
        )
    name = names[weights.values.index(1.0)]
    if len(names) > 1 and any("objective" not in row for row in rows):
        raise UserError(f"rows without an objective column cannot be split over {len(names)} objectives")
    kept = [row for row in rows if row.get("objective", name) == name]
    if not kept:
        raise UserError(f"no comparison is labelled for objective {name!r}")
    for row in kept:
        if "chosen" not in row or "rejected" not in row:
            raise UserError(f"comparison {row.get('id', '?')} has no chosen and rejected; use labels: scalarised")
    return [Pair.of({name: row[name] for name in row if name not in SIDES[0]}) for row in kept]


def annotated_pairs(
    rows: Sequence[Row], *, scores: Mapping[str, Sequence[Sequence[float]]], weights: Weights, tau: float, seed: int
) -> list[Pair]:
    """Pairs labelled by an annotator of temperature `tau` who values responses by `w . r`.

    The first response wins iff `u < sigmoid(w . (r_first - r_second) / tau)`, `u` being the row's own uniform draw
    (field `u`, or entry k of the list `u_k` at a vertex; a hash of id and seed where the row has none), so that every
    method that asks the same annotator gets the same answer. `scores[id]` holds the K scores of both responses.
    """
    if not tau > 0:
        raise UserError(f"the annotator's temperature tau must be above 0, not {tau}")
    pairs = []
    for row in rows:
        first_K, second_K = scores[str(row["id"])]
        if len(first_K) != len(weights) or len(second_K) != len(weights):
            raise UserError(f"comparison {row['id']} has {len(first_K)} scores for {len(weights)} objectives")
        difference = sum(w * (x - y) for w, x, y in zip(weights, first_K, second_K, strict=True))
        wins = _draw(row, weights=weights, seed=seed) < _sigmoid(difference / tau)
        pairs.append(Pair.of(row, swapped=not wins))
    return pairs


@dataclass(frozen=True, kw_only=True)
class JudgedRows:
    """Comparisons of the objectives `names` and what their annotator sees: each row's K scores of both responses, by
    id, or None where the rows keep the labels that they came with.
    """

    rows: Sequence[Row]
    names: Sequence[str]
    scores: Mapping[str, Sequence[Sequence[float]]] | None
    tau: float
    seed: int

    def labelled_at(self, weights: Weights) -> list[Pair]:
        """(N,) pairs as labelled at `weights`; errors as of `given_pairs` and `annotated_pairs`."""
        if self.scores is None:
            return given_pairs(self.rows, weights=weights, names=self.names)
        return annotated_pairs(self.rows, scores=self.scores, weights=weights, tau=self.tau, seed=self.seed)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _draw(row: Row, *, weights: Weights, seed: int) -> float:
    try:
        if weights.is_vertex and "u_k" in row:
            return float(row["u_k"][weights.values.index(1.0)])
        if "u" in row:
            return float(row["u"])
    except (TypeError, ValueError, LookupError) as error:
        raise UserError(f"comparison {row['id']}: u or u_k is no draw ({error}); give numbers in [0, 1]") from error
    digest = hashlib.sha256(f"{seed}\x1f{row['id']}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def row_scores(rows: Sequence[Row]) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """The scores that rows carry in `scores_a` and `scores_b`, by id; UserError naming the row that has none."""
    for row in rows:
        if "scores_a" not in row or "scores_b" not in row:
            raise UserError(f"comparison {row.get('id', '?')} has no scores_a and scores_b; use labels: objectives")
        for name in ("scores_a", "scores_b"):
            if not _finite_numbers(row[name]):
                raise UserError(f"comparison {row['id']}: {name} is {row[name]!r}; give one finite number an objective")
    return {str(row["id"]): (row["scores_a"], row["scores_b"]) for row in rows}


def _finite_numbers(values: object) -> bool:
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        return False
    return all(isinstance(v, (int, float)) and math.isfinite(v) for v in values)
