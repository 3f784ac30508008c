"""GenARM (Xu et al. 2025): one autoregressive reward model per objective, which guide the reference token by token.

An autoregressive reward model (ARM) is a language model whose log-probability is a reward. It is trained on its
objective's labels with `-log sigmoid(beta_r [log arm(y_w) - log arm(y_l)])` (equation 7), without a reference. That is
DPO with reference log-probabilities of 0, so TRL's DPOTrainer trains it: two columns of its dataset are replaced by 0.

The coefficient. With labels of `sigmoid(dr / tau)` the loss is least at `beta_r log arm(y|x) = r(x, y) / tau + c(x)`.
The ARM is normalised, per token and hence over responses, which only fixes c(x) = -log sum_y exp(r / (tau beta_r)):
pairs of one prompt do not see c, so any reward has its ARM, and `tau beta_r log arm_k` is r_k up to a constant of the
prompt. The optimum `ref exp(w.r / beta)` of `E[w.r] - beta KL(pi || ref)` is therefore

    log pi = log ref + sum_k a_k log arm_k + const(x),   a_k = w_k tau beta_r,k / beta,

and with the default beta_r = beta / tau simply a = w. This holds for whole responses. Decoding adds the next-token
log-probabilities and normalises each token, which is the same only where a response is one token. What an ARM has not
learned it says as the model that it started from: untrained, the guided policy is the reference sharpened by itself,
not the reference (that is what a uniform ARM gives).

Deviations from the official code: responses are sampled at temperature 1 from the mixture as written; and beta_r is
tied to the J that is claimed, where it chose .5 and .01 for two objectives and tuned the coefficients at decoding.
Data: pairs. Fixed point: guidance of the reference by one model per objective.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from align.engines.pairs import PairTrainingConfig, check_pair_config, judged_rows, train_on_pairs
from align.engines.points import check_preferences, train_points
from align.engines.problem import Problem
from align.errors import UserError
from align.models.backbones import ModelPool
from align.policies.mixed import MixedFamily
from align.preferences import Weights
from align.runs import Workspace, model_dir

if TYPE_CHECKING:
    from datasets import Dataset

ASKED_BY = (Weights,)
FAMILY = MixedFamily


@dataclass(frozen=True, kw_only=True)
class Config(PairTrainingConfig):
    """DPO's fields, for the ARMs; `beta` is that of the J which the guided reference is to optimise."""

    arm_betas: tuple[float, ...] = ()  # beta_r of each objective's ARM; empty: beta / tau, so that coefficients are w
    start: str = ""  # the model that ARMs start from (smaller ones guide larger references); empty: the reference


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> MixedFamily:
    """The reference guided by one ARM per objective, trained below `arms/`; it answers any weights. Prompts are not
    used, nor are the objectives, but for their names, unless `labels` is objectives.

    UserError when comparisons are missing or do not carry what `labels` needs, and on a start of another vocabulary.
    """
    names = check_preferences(problem)
    check_pair_config(config)
    betas = arm_betas(config, names=names)
    start = config.start or problem.reference
    pool = ModelPool()
    pool.tokenizer(
        [model_dir(problem.reference), model_dir(start)]
    )  # whether they share one, before anything is trained
    vertices = Weights.vertices(len(names))
    judged = judged_rows(config, problem, run.ledger, method="genarm", at=vertices)
    pairs = {vertex.label: judged.labelled_at(vertex) for vertex in vertices}

    def body(vertex: Weights, point: Workspace) -> Mapping[str, object]:
        return train_on_pairs(
            pairs[vertex.label],
            config=config,
            reference=start,
            beta=betas[vertex.values.index(1.0)],
            run=point,
            shift_reference=without_reference,
        )

    arms = train_points(
        "genarm",
        config,
        replace(problem, reference=start, preferences=vertices),
        replace(run, folder=run.folder / "arms"),
        rows=judged.rows,
        body=body,
        optimises=lambda vertex: f"likelihood of {names[vertex.values.index(1.0)]} labels",
    )
    gains = tuple(config.tau * beta / config.beta for beta in betas)
    return MixedFamily(
        method="genarm",
        base=model_dir(problem.reference),
        parts=tuple(arms.points[vertex.label] for vertex in vertices),
        gains=gains,
        base_share="whole",
        preferences=tuple(problem.preferences),
        optimises={weights.label: describe(config, weights=weights, gains=gains) for weights in problem.preferences},
        pool=pool,
    )


def arm_betas(config: Config, *, names: Sequence[str]) -> tuple[float, ...]:
    """beta_r of each ARM; UserError unless there is one above 0 for each objective, or none."""
    betas = config.arm_betas or (config.beta / config.tau,) * len(names)
    if len(betas) != len(names) or not min(betas) > 0:
        raise UserError(f"arm_betas must be {len(names)} numbers above 0, one per objective; got {list(betas)}")
    return betas


def without_reference(dataset: Dataset) -> Dataset:
    """DPOTrainer's dataset with reference log-probabilities of 0: its loss is then the ARM's own."""
    for column in ("ref_chosen_logps", "ref_rejected_logps"):
        dataset = dataset.remove_columns(column).add_column(column, [0.0] * len(dataset))
    return dataset


def describe(config: Config, *, weights: Weights, gains: Sequence[float]) -> str:
    """One line: what the guided policy is, and of which J it would be the optimum."""
    coefficients = Weights.label_of([gain * w for gain, w in zip(gains, weights, strict=True)])
    return (
        f"no J: ref's next-token distribution times the ARMs' to the powers {coefficients}; on one-token responses the "
        f"optimum of E[w.r] - {config.beta:g} KL(pi||ref) at w = {weights.label} on the pairs' support, if each ARM "
        f"fits its labels ({config.labels}, annotator temperature {config.tau:g})"
    )
