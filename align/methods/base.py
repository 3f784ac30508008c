"""What the methods share: fields of every config, labelled pairs, metered objectives, finished points."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from align import checks
from align.errors import UserError
from align.policies import PointFamily, PolicyFamily
from align.preferences import Preference, Weights
from align.runs import RUN_FILE, Ledger, fingerprint, model_dir, open_run, run_stage

Objective = Callable[..., Sequence[float | None]]
Row = Mapping[str, Any]
P = TypeVar("P", bound=Preference)
LABELS = ("given", "scalarised", "objectives")


class Method(Protocol):
    """A module of this package: a frozen dataclass `Config` and `fit`."""

    Config: type

    def fit(
        self,
        config: Any,
        *,
        reference: str,
        objectives: Mapping[str, Objective],
        preferences: Sequence[Any],
        out: Path,
        ledger: Ledger,
        comparisons: Sequence[Row] | None = None,
        prompts: Sequence[Row] | None = None,
    ) -> PolicyFamily: ...


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Fields of every method that trains by gradient steps; `batch_size` counts examples per step and device."""

    beta: float = 0.1  # coefficient of KL(pi || reference) in J, in reward units per nat
    learning_rate: float = 1e-5
    batch_size: int = 64
    gradient_accumulation: int = 1
    warmup: float = 0.0  # a share of the steps below 1, a number of steps from 1 on
    scheduler: str = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lora_r: int = 0  # 0 trains all weights
    lora_alpha: float = 0.0  # 0 means 2 r
    save_steps: int | None = None  # None writes no checkpoint while training
    logging_steps: int = 50
    seed: int = 0


def check_training(config: TrainingConfig) -> None:
    """UserError on a value that no trainer can mean."""
    checks.above_zero(config, "beta", "learning_rate")
    checks.optimiser(config)
    checks.at_least(0, config, "lora_alpha")
    if config.lora_r < 0:
        raise UserError(f"lora_r must be 0 (train all weights) or a rank, not {config.lora_r}")


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


# ---------------------------------------------------------------------------------------------- points of a family


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


def model_to_train(reference: str) -> Any:
    """The reference checkpoint in memory, to be trained; UserError for an adapter directory.

    TRL reads the reference again from the directory that the loaded model names, which for an adapter is its base.
    """
    from align.models import load_model

    source = model_dir(reference)
    if (Path(source) / "adapter_config.json").is_file():
        raise UserError(f"the reference {source} is an adapter; merge it into its base and give the merged model")
    return load_model(source)


def adapter_config(config: TrainingConfig, model: Any) -> Any:
    """The LoRA configuration for TRL's `peft_config`, or None for full training."""
    from align.models import lora_config

    return lora_config(model, config.lora_r, alpha=config.lora_alpha or None) if config.lora_r else None


def trainer_arguments(config: TrainingConfig, folder: Path, **others: Any) -> dict[str, Any]:
    """The fields of `config` as `base_arguments` takes them; `others` adds to them or replaces them."""
    from align.training.common import base_arguments

    names = ("seed", "learning_rate", "batch_size", "gradient_accumulation", "warmup", "scheduler", "weight_decay")
    fields = {name: getattr(config, name) for name in (*names, "max_grad_norm", "save_steps", "logging_steps")}
    return base_arguments(folder, **{**fields, **others})


# ------------------------------------------------------------------------------------------------------- objectives


class Metered:
    """An objective under its name in the run, which charges every score it reads to the ledger.

    The name makes TRL's metric keys distinct (two functions of one name are averaged together in its log). `last` holds
    the scores of the latest call, for callbacks that move the weights.
    """

    def __init__(self, name: str, objective: Objective, ledger: Ledger) -> None:
        self.__name__ = name
        self.objective, self.ledger = objective, ledger
        self.last: list[float | None] = []

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        """One score or None per completion; ValueError on another number of scores or one that is not finite."""
        scores = [None if s is None else float(s) for s in self.objective(prompts, completions, **columns)]
        if len(scores) != len(completions):
            raise ValueError(f"objective {self.__name__} gave {len(scores)} scores for {len(completions)} completions")
        if not all(s is None or math.isfinite(s) for s in scores):
            raise ValueError(f"objective {self.__name__} gave a score that is not finite; None says 'does not apply'")
        self.ledger.add(scores_read=sum(s is not None for s in scores))
        self.last = scores
        return scores


# ------------------------------------------------------------------------------------------------------ labelled pairs


@dataclass(frozen=True)
class Pair:
    """A labelled comparison; `swapped` says that the second response of the row won."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    swapped: bool


def responses_of(row: Row) -> tuple[str, str]:
    """The row's two responses in stored order: `a`, `b` or `chosen`, `rejected`; UserError when it has neither."""
    for first, second in (("a", "b"), ("chosen", "rejected")):
        if first in row and second in row:
            for name in (first, second):
                if not isinstance(row[name], str):
                    raise UserError(f"comparison {row.get('id', '?')}: {name} is {row[name]!r}; make it text")
            return row[first], row[second]
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
    return [Pair(str(row["id"]), row["prompt"], row["chosen"], row["rejected"], False) for row in kept]


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
        first, second = responses_of(row)
        first_K, second_K = scores[str(row["id"])]
        if len(first_K) != len(weights) or len(second_K) != len(weights):
            raise UserError(f"comparison {row['id']} has {len(first_K)} scores for {len(weights)} objectives")
        difference = sum(w * (x - y) for w, x, y in zip(weights, first_K, second_K, strict=True))
        wins = _draw(row, weights=weights, seed=seed) < _sigmoid(difference / tau)
        chosen, rejected = (first, second) if wins else (second, first)
        pairs.append(Pair(str(row["id"]), row["prompt"], chosen, rejected, not wins))
    return pairs


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


def _finite_numbers(values: Any) -> bool:
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        return False
    return all(isinstance(v, (int, float)) and math.isfinite(v) for v in values)


def objective_scores(
    rows: Sequence[Row], *, objectives: Mapping[str, Objective], ledger: Ledger
) -> dict[str, tuple[list[float], list[float]]]:
    """The scores of both responses of every row, asked from the objectives; UserError where one does not apply."""
    prompts = [row["prompt"] for row in rows]
    columns_K = []
    for name, objective in objectives.items():
        metered = Metered(name, objective, ledger)
        sides = []
        for side in (0, 1):
            scores = metered(prompts, [responses_of(row)[side] for row in rows])
            for row, score in zip(rows, scores, strict=True):
                if score is None:
                    raise UserError(f"objective {name} does not apply to comparison {row.get('id')}; drop that row")
            sides.append([s for s in scores if s is not None])
        columns_K.append(sides)
    return {
        str(row["id"]): ([sides[0][i] for sides in columns_K], [sides[1][i] for sides in columns_K])
        for i, row in enumerate(rows)
    }


def unique_ids(rows: Sequence[Row]) -> None:
    """UserError when a comparison has no id or shares one: scores and margins are joined by id, never by position."""
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        if "id" not in row or str(row["id"]) in seen:
            raise UserError(f"comparison {number} has {'no id' if 'id' not in row else 'the id of an earlier row'}")
        seen.add(str(row["id"]))
