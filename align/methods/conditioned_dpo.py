"""Preference-conditioned DPO: pairs labelled by one annotator at many weights, which the policy reads in its prompt.

For each comparison and each drawn w, the annotator of temperature tau who values `w . r` picks a response; one model is
trained on all of them by `-log sigmoid((beta / tau) [dlog(pi(. | x, w) / ref(. | x))])`. The reference is the original
model at the prompt without tags, so that for every w the minimiser over all policies is `ref exp(w . r / beta)`, the
optimum of `J = E[w . r] - beta KL(pi || ref)`, on the support of the pairs.

Ours: the offline twin of MO-ODPO (Gupta et al. 2025). COS-DPO (Ren et al. 2025) conditions one model, too, but sums
`w_k DPO_k` over each objective's labels, whose minimiser has the log-odds of `sum_k w_k sigmoid(dr_k / tau)` and is the
optimum of w . r at the vertices only.
Data: pairs. Fixed point: the optimum of J on the support of the pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from align import checks
from align.data.comparisons import Pair, Row, annotated_pairs
from align.engines import tagged
from align.engines.on_policy.prompts import counted
from align.engines.pairs import PairTrainingConfig, check_pair_config, judged_rows
from align.engines.points import check_preferences, inputs_of, part
from align.engines.problem import Problem
from align.engines.tagged_pairs import TaggedPair, build_pair_trainer, encoded, finish, frozen
from align.errors import UserError
from align.functional.draws import draw_weights
from align.models import load_tokenizer
from align.policies.tagged import TaggedFamily, Tags
from align.preferences import Weights
from align.runs import Workspace
from align.training.watch import refuse_looks

ASKED_BY = (Weights,)
FAMILY = TaggedFamily


@dataclass(frozen=True, kw_only=True)
class Config(tagged.TagFields, PairTrainingConfig):
    """DPO's fields (labels: scalarised or objectives), and the weights that each comparison is judged at."""

    labels: str = "scalarised"
    draws: int = 2  # weights per comparison
    alpha: float = 1.0  # of the Dirichlet law of the weights; 1 is uniform on the simplex
    vertices: float = 0.1  # share of the draws that are vertices


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> TaggedFamily:
    """One model for all weights. Prompts are not used, nor are the objectives unless `labels` is objectives.

    UserError when comparisons are missing or do not carry what `labels` needs.
    """
    names = check_preferences(problem)
    check_config(config)
    tags = tagged.make_tags(config, problem)
    problem, left_out = tagged.askable(problem)
    asked = judged_rows(config, problem, run.ledger, method="conditioned_dpo")
    rows, scores = asked.rows, asked.scores
    inputs = inputs_of(problem, rows=rows)
    family = tagged.untrained_family("conditioned_dpo", problem, tags=tags, claim=describe(config))
    assert scores is not None  # given labels were refused

    def body(place: Workspace) -> Mapping[str, object]:
        pairs = judged(rows, scores=scores, config=config, reference=problem.reference, objectives=len(names))
        place.ledger.add(scores_read=len(pairs))
        with tagged.start_model(problem.reference, tags=tags, folder=place.folder, seed=config.seed) as start:
            made = train(pairs, config=config, reference=problem.reference, start=start, tags=tags, run=place)
        told = tagged.told_apart(family, problem, place, seed=config.seed)
        return {**made, **counted(left_out), **told}

    trained = part("conditioned_dpo", "conditioned", run, config=config, inputs=inputs, body=body)
    return tagged.trained_family(family, trained)


def check_config(config: Config) -> None:
    """UserError on a value that no run can mean."""
    check_pair_config(config)
    refuse_looks(config)
    if config.labels == "given":
        raise UserError("given labels follow one objective each; use labels: scalarised or objectives")
    check_weight_law(config)
    checks.at_least(1, config, "draws")


class WeightLaw(Protocol):
    """A config with a distribution of weights: Dirichlet(alpha), a share of `vertices` among the draws."""

    @property
    def alpha(self) -> float: ...

    @property
    def vertices(self) -> float: ...


def check_weight_law(config: WeightLaw) -> None:
    """UserError on an `alpha` or a share of `vertices` that no law of weights has."""
    checks.above_zero(config, "alpha")
    if not 0 <= config.vertices <= 1:
        raise UserError(f"vertices must be a share in [0, 1], not {config.vertices:g}")


def describe(config: Config) -> str:
    """One line: the J that is optimised at every weight, and from what data."""
    text = (
        f"E[w.r] - {config.beta:g} KL(pi||ref) at every w at once, from offline pairs (labels: {config.labels}, "
        f"annotator temperature {config.tau:g}, DPO beta {config.beta / config.tau:g}), "
        f"w of Dirichlet({config.alpha:g})"
    )
    return text + (f", plus {config.mle_weight:g} x token NLL of the chosen response" if config.mle_weight else "")


def judged(
    rows: Sequence[Row], *, scores: Mapping[str, Sequence[Sequence[float]]], config: Config, reference: str,
    objectives: int,
) -> list[TaggedPair]:  # fmt: skip
    """Every comparison at `draws` weights, each pass over the comparisons spread evenly; the same draw of the
    annotator's noise serves a row at all weights, as if it were asked each time.
    """
    rng = np.random.default_rng(config.seed)
    made: list[tuple[Pair, Weights]] = []
    for _ in range(config.draws):
        weights = draw_weights(len(rows), objectives=objectives, rng=rng, alpha=config.alpha, vertices=config.vertices)
        made += [
            (annotated_pairs([row], scores=scores, weights=w, tau=config.tau, seed=config.seed)[0], w)
            for row, w in zip(rows, weights, strict=True)
        ]
    tokenizer, prompts = load_tokenizer(reference), [p.prompt for p, _ in made]
    chosen = tagged.response_ids(tokenizer, prompts, [p.chosen for p, _ in made], [p.chosen_ids for p, _ in made])
    rejected = tagged.response_ids(tokenizer, prompts, [p.rejected for p, _ in made], [p.rejected_ids for p, _ in made])
    return [TaggedPair(p.prompt, w.values, c, r) for (p, w), c, r in zip(made, chosen, rejected, strict=True)]


def train(
    pairs: Sequence[TaggedPair], *, config: Config, reference: str, start: str, tags: Tags, run: Workspace
) -> dict[str, float | None]:
    """DPO at `beta / tau` against the original reference; metrics."""
    from datasets import Dataset

    rows = encoded(
        pairs, tokenizer=load_tokenizer(start), tags=tags, reference=frozen(reference), ledger=run.ledger, config=config
    )
    trainer = build_pair_trainer(
        config,
        start=start,
        tags=tags,
        beta=config.beta / config.tau,
        folder=run.folder,
        dataset=Dataset.from_list(rows),
    )
    loss = finish(trainer, label="conditioned dpo", run=run)
    return {"loss": loss, "pairs": len(rows), "pairs_dropped_by_length": len(pairs) - len(rows)}
