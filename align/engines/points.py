"""Points of a family: one training run per preference, reused when finished, charged once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from align.data.comparisons import Row
from align.errors import UserError
from align.policies.base import PointFamily
from align.preferences import Preference, Weights
from align.runs import RUN_FILE, Ledger, fingerprint, open_run, run_stage

P = TypeVar("P", bound=Preference)


def check_preferences(
    preferences: Sequence[Preference], *, objectives: Mapping[str, Any], kinds: tuple[type, ...] = (Weights,)
) -> list[str]:
    """The objectives' names; UserError when there is no preference, one is of another kind than the method supports, or
    one has another number of entries than there are objectives.
    """
    names = list(objectives)
    if not preferences:
        raise UserError("no preference was given; pass at least one, like 0.5,0.5")
    for preference in preferences:
        if not isinstance(preference, kinds):
            wanted = " or ".join(kind.__name__.lower() for kind in kinds)
            raise UserError(f"this method is asked by {wanted}, not by {preference.label}")
        if len(preference.values) != len(names):
            raise UserError(
                f"{type(preference).__name__.lower()} {preference.label} have {len(preference.values)} numbers, but "
                f"there are {len(names)} objectives: " + ", ".join(names)
            )
    return names


def train_points(
    method: str,
    *,
    config: Any,
    preferences: Sequence[P],
    inputs: Mapping[str, str],
    out: Path,
    ledger: Ledger,
    body: Callable[[Path, Ledger, P], Mapping[str, Any]],
    optimises: Callable[[P], str],
) -> PointFamily:
    """Run `body` once per preference below `out/points` and return the family of the models it saved in `folder/model`.

    Points that an interrupted call finished are reused, and charged to the ledger all the same. A point is known by its
    config, preference and `inputs`; the code of the objectives is not part of that: other objectives, another `out`.
    """
    points, claims = {}, {}
    for preference in preferences:
        folder = Path(out) / "points" / preference.label
        reused = folder.is_dir()

        def run_body(partial: Path, cost: Ledger, preference: P = preference) -> Mapping[str, Any]:
            return body(partial, cost, preference)

        run = run_stage(
            folder,
            stage=f"{method} point",
            config={"method": method, "config": config, "weights": preference},
            body=run_body,
            inputs=inputs,
        )
        charge(ledger, run.ledger, seconds=reused)
        points[preference.label] = str(folder / "model")
        claims[preference.label] = optimises(preference)
    return PointFamily(method, points, claims)


def charge(ledger: Ledger, cost: Mapping[str, float], *, seconds: bool) -> None:
    """Add a point's cost; its seconds only when the enclosing clock did not see them pass."""
    ledger.add(
        tokens=int(cost["tokens"]),
        flops=cost["flops"],
        samples_drawn=int(cost["samples_drawn"]),
        scores_read=int(cost["scores_read"]),
    )
    if seconds:
        ledger.seconds += cost["seconds"]
        ledger.cpu_seconds += cost["cpu_seconds"]
    ledger.peak_memory_mb = max(ledger.peak_memory_mb, cost["peak_memory_mb"])


def inputs_of(*, reference: str, objectives: Mapping[str, Any], rows: Sequence[Row] | None) -> dict[str, str]:
    """What a point depends on besides its config, as fingerprints; objectives by their names only."""
    return {
        "reference": known_as(reference),
        "objectives": ", ".join(objectives),
        "rows": fingerprint([dict(row) for row in rows or ()]),
    }


def known_as(model: str) -> str:
    """A model in a fingerprint: the fingerprint of the run that it belongs to, else its path or hub id."""
    for folder in (Path(model), Path(model).parent):
        if (folder / RUN_FILE).is_file():
            return open_run(folder).fingerprint
    return str(model)
