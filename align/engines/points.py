"""Parts of a method's training as runs of their own: a point per preference, reused when finished, charged once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from align.data.comparisons import Row
from align.engines.problem import P, Problem
from align.errors import UserError
from align.policies.base import PointFamily
from align.preferences import Weights
from align.runs import RUN_FILE, Ledger, Run, Workspace, fingerprint, open_run, run_stage
from align.runs.contents import model_contents


def check_preferences(problem: Problem[P], *, kinds: tuple[type, ...] = (Weights,)) -> list[str]:
    """The objectives' names; UserError when there is no preference, one is of another kind than the method supports, or
    one has another number of entries than there are objectives.
    """
    names = problem.names
    if not problem.preferences:
        raise UserError("no preference was given; pass at least one, like 0.5,0.5")
    for preference in problem.preferences:
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
    config: object,
    problem: Problem[P],
    run: Workspace,
    *,
    rows: Sequence[Row],
    body: Callable[[P, Workspace], Mapping[str, object]],
    optimises: Callable[[P], str],
) -> PointFamily:
    """Run `body` once per preference below `points/` and return the family of the models it saved in `folder/model`.

    Points that an interrupted call finished are reused, and charged to the ledger all the same. A point is known by its
    config, preference, reference (its contents), `rows` and the names of the objectives; UserError where the folder
    holds a point of others. The code of the objectives is not part of that: other objectives, another folder.
    """
    points, claims = {}, {}
    inputs = inputs_of(problem, rows=rows)
    for preference in problem.preferences:

        def train(point: Workspace, preference: P = preference) -> Mapping[str, object]:
            return body(preference, point)

        place = replace(run, folder=run.folder / "points" / preference.label)
        settings = {"method": method, "config": config, "weights": preference}
        charged_stage(place, stage=f"{method} point", config=settings, inputs=inputs, body=train)
        points[preference.label] = str(place.folder / "model")
        claims[preference.label] = optimises(preference)
    return PointFamily(method, points, claims)


def part(
    method: str,
    name: str,
    run: Workspace,
    *,
    config: object,
    inputs: Mapping[str, str],
    body: Callable[[Workspace], Mapping[str, object]],
) -> Run:
    """One part of a method's training in the folder `name`; an interrupted call resumes after it. Charged once."""
    place = replace(run, folder=run.folder / name)
    return charged_stage(place, stage=f"{method} {name}", config=config, inputs=inputs, body=body)


def charged_stage(
    place: Workspace,
    *,
    stage: str,
    config: object,
    inputs: Mapping[str, str],
    body: Callable[[Workspace], Mapping[str, object]],
) -> Run:
    """The finished run in `place.folder`, made by `body` unless it is there already; `place.ledger` pays for it."""
    reused = place.folder.is_dir()

    def train(folder: Path, cost: Ledger) -> Mapping[str, object]:
        return body(Workspace(folder, cost))

    run = run_stage(place.folder, stage=stage, config=config, body=train, inputs=inputs)
    charge(place.ledger, run.ledger, seconds=reused)
    return run


def charge(ledger: Ledger, cost: Mapping[str, float], *, seconds: bool) -> None:
    """Add a part's cost; its seconds only when the enclosing clock did not see them pass."""
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


def inputs_of(problem: Problem[P], *, rows: Sequence[Row]) -> dict[str, str]:
    """What a part depends on besides its config, as fingerprints; objectives by their names only."""
    return {
        "reference": known_as(problem.reference),
        "objectives": ", ".join(problem.objectives),
        "rows": fingerprint([dict(row) for row in rows]),
    }


def known_as(model: str) -> str:
    """A model in a fingerprint: that of the run that it belongs to, else its files' contents, else its hub id."""
    for folder in (Path(model), Path(model).parent):
        if (folder / RUN_FILE).is_file():
            return open_run(folder).fingerprint
    return model_contents(Path(model)) or str(model)
