"""Multi-objective DPO (Zhou et al. 2024): pairs of one main objective, the other objectives as margins in reward units.

MODPO at weights w is DPO at `beta / (w_0 tau)` against a reference shifted by `(w_rest . r_rest) / beta`
(`align.functional.losses.modpo_reference_shift`), so that stock DPOTrainer trains it: two columns of its dataset are
replaced.
With labels of `sigmoid(dr_0 / tau)` and exact margins its minimiser is the optimum of `E[w . r] - beta KL(pi || ref)`.
Data: pairs. Fixed point: the optimum of J on the support of the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from align import checks
from align.data.comparisons import Pair
from align.engines.pairs import PairTrainingConfig, check_pair_config, judged_rows, train_on_pairs
from align.engines.points import check_preferences, train_points
from align.engines.problem import Problem
from align.errors import UserError
from align.functional.losses import check_main_weight, modpo_reference_shift
from align.methods import dpo
from align.objectives import ImplicitReward
from align.objectives.metered import objective_scores
from align.policies.base import PointFamily
from align.preferences import Weights
from align.runs import Ledger, Workspace

if TYPE_CHECKING:
    from datasets import Dataset

MARGINS = ("explicit", "implicit")
ASKED_BY = (Weights,)
FAMILY = PointFamily


@dataclass(frozen=True, kw_only=True)
class Config(PairTrainingConfig):
    """DPO's fields, whose labels are now the main objective's, and the margins.

    explicit: the other objectives score both responses. implicit: `margin_beta (log pi_j - log ref)` of a DPO model per
    other objective, which is that objective's reward up to a constant of the prompt (Rafailov et al. 2023, equation 5).
    """

    main: str | int = "auto"  # auto: the largest weight, the first of equal ones; or an objective's name or index
    margins: str = "explicit"
    margin_models: tuple[str, ...] = ()  # a directory per objective, "" for the main one; empty: trained here by dpo
    margin_beta: float = 0.0  # the beta in reward units that margin_models were trained at; 0 means beta


Table = Mapping[str, tuple[float, float]]  # a row's id to the margins of its two responses, in stored order


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> PointFamily:
    """One model per preference; margins are read once and serve all of them. Prompts are not used.

    UserError when the main objective of a preference has weight 0, or rows and models for the margins are missing.
    """
    names = check_preferences(problem)
    check_config(config, names=names)
    mains = {weights.label: main_objective(config, weights=weights, names=names) for weights in problem.preferences}
    judged = judged_rows(config, problem, run.ledger, method="modpo", at=Weights.vertices(len(names)))
    needed = [j for j in range(len(names)) if any(w[j] > 0 and mains[w.label] != j for w in problem.preferences)]
    known = judged.scores if config.labels == "objectives" else None
    tables = margin_tables(config, problem, run, needed=needed, known=known)

    def body(weights: Weights, point: Workspace) -> Mapping[str, object]:
        main = mains[weights.label]
        pairs = judged.labelled_at(Weights.vertex(main, len(names)))
        rest = [j for j in needed if j != main and weights[j] > 0]
        return train_on_pairs(
            pairs,
            config=config,
            reference=problem.reference,
            beta=config.beta / (weights[main] * config.tau),
            run=point,
            shift_reference=reference_shift(
                pairs, tables=[tables[j] for j in rest], rest_weights=[weights[j] for j in rest], beta=config.beta
            ),
        )

    return train_points(
        "modpo",
        config,
        problem,
        run,
        rows=judged.rows,
        body=body,
        optimises=lambda weights: describe(config, weights=weights, main=names[mains[weights.label]]),
    )


def check_config(config: Config, *, names: Sequence[str]) -> None:
    """UserError on a value that is no MODPO configuration for these objectives."""
    check_pair_config(config)
    checks.one_of(config, margins=MARGINS)
    if config.margin_models and len(config.margin_models) != len(names):
        raise UserError(
            f"margin_models has {len(config.margin_models)} entries for {len(names)} objectives; "
            "give one per objective, an empty one for the main objective"
        )
    if config.margin_beta < 0:
        raise UserError(f"margin_beta must be above 0, or 0 for beta; not {config.margin_beta}")


def main_objective(config: Config, *, weights: Weights, names: Sequence[str]) -> int:
    """Index of the objective whose labels are trained on; UserError when it is unknown or has weight 0."""
    if config.main == "auto":
        return max(range(len(names)), key=lambda k: weights[k])  # max keeps the first of equal weights
    if config.main in names:
        main = list(names).index(str(config.main))
    elif str(config.main).isdigit() and int(config.main) < len(names):
        main = int(config.main)
    else:
        raise UserError(f"main must be auto, one of {', '.join(names)}, or an index; not {config.main!r}")
    check_main_weight(weights[main])
    return main


def describe(config: Config, *, weights: Weights, main: str) -> str:
    """One line: the J that a point optimises, and from what data."""
    return (
        f"E[w.r] - {config.beta:g} KL(pi||ref) at w = {weights.label}, from offline pairs labelled for {main} "
        f"(labels: {config.labels}, annotator temperature {config.tau:g}), {config.margins} margins for the rest"
    )


def margin_tables(
    config: Config,
    problem: Problem[Weights],
    run: Workspace,
    *,
    needed: Sequence[int],
    known: Mapping[str, Sequence[Sequence[float]]] | None,
) -> dict[int, Table]:
    """Margins of both responses of every row, per objective index in `needed`; `known` scores are not asked again."""
    names, rows = problem.names, problem.comparisons or ()
    if config.margins == "implicit":
        if known is not None:  # the margin models' labels come from the scores that were asked already
            rows = [{**row, "scores_a": known[str(row["id"])][0], "scores_b": known[str(row["id"])][1]} for row in rows]
            config = replace(config, labels="scalarised")
        models = margin_models(config, replace(problem, comparisons=rows), run, needed=needed)
        beta = config.margin_beta or config.beta
        implicit = {names[j]: ImplicitReward(models[j], problem.reference, beta=beta, name=names[j]) for j in needed}
        known = objective_scores(rows, objectives=implicit, ledger=Ledger())  # our own models: no score was read
        columns = {j: i for i, j in enumerate(needed)}
    elif known is None:
        asked = {names[j]: problem.objectives[names[j]] for j in needed}
        known = objective_scores(rows, objectives=asked, ledger=run.ledger)
        columns = {j: i for i, j in enumerate(needed)}
    else:
        columns = {j: j for j in needed}
    return {j: {i: (a[c], b[c]) for i, (a, b) in known.items()} for j, c in columns.items()}


def margin_models(
    config: Config, problem: Problem[Weights], run: Workspace, *, needed: Sequence[int]
) -> dict[int, str]:
    """The DPO model of each needed objective: the configured directory, or one trained below `margins/`."""
    given = {j: config.margin_models[j] for j in needed if config.margin_models and config.margin_models[j]}
    missing = [Weights.vertex(j, len(problem.objectives)) for j in needed if j not in given]
    if config.margin_models and missing:
        raise UserError(f"margin_models has no model for {missing[0].label}, which some preference needs as a margin")
    if missing:
        plain = dpo.Config(**{f.name: getattr(config, f.name) for f in fields(dpo.Config)})
        place = replace(run, folder=run.folder / "margins")
        family = dpo.fit(plain, replace(problem, preferences=missing), place)
        given = {w.values.index(1.0): family.points[w.label] for w in missing}
    return given


def reference_shift(
    pairs: Sequence[Pair], *, tables: Sequence[Table], rest_weights: Sequence[float], beta: float
) -> Callable[[Dataset], Dataset]:
    """A map from DPOTrainer's dataset to the same with shifted reference columns, joined by the pair's id."""
    swapped = {pair.id: pair.swapped for pair in pairs}

    def shift(dataset: Dataset) -> Dataset:
        import torch

        for column, winner in (("ref_chosen_logps", True), ("ref_rejected_logps", False)):
            # Response 0 was chosen unless the pair is swapped.
            margins = [[table[i][swapped[i] == winner] for table in tables] for i in dataset["id"]]
            margin_BR = torch.tensor(margins, dtype=torch.float64).reshape(len(margins), len(tables))
            added_B = modpo_reference_shift(margin_BR, rest_weights_R=rest_weights, beta=beta)
            shifted_B = torch.tensor(dataset[column], dtype=torch.float64) + added_B
            dataset = dataset.remove_columns(column).add_column(column, shifted_B.float().numpy())
        return dataset

    return shift
