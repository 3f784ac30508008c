"""Multi-objective online DPO (MO-ODPO, Gupta et al. 2025): own samples behind drawn weights, labelled by w . r, DPO.

Each round draws w ~ Dirichlet(alpha) for a batch of prompts, two responses of the current policy behind w, and takes
DPO steps on them: the chosen one is that of the larger `w . r` (`tau: 0`, the paper), or the pick of an annotator of
temperature tau, and then DPO runs at beta / tau. With tau above 0, and while samples cover the responses, the optimum
of `J = E[w . r] - beta KL(pi || ref)` is the fixed point for every w; with tau 0 the labels have no scale, and beta no
meaning in reward units. The reference is the original model at the prompt without tags.
*Deviations*: no code was released. Rounds of `pairs` pairs stand for sampling at every step (with `pairs` equal to
`batch_size` they are the same); one optimiser goes through all rounds. Scores are the objectives' own, not normalised.
Pairs that say nothing (equal w . r at tau 0, the same response twice) are drawn again and counted.
Data: prompts. Fixed point: the optimum of J with tau above 0, else none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from align import checks
from align.engines import tagged
from align.engines.on_policy.prompts import counted
from align.engines.points import check_preferences, inputs_of, part
from align.engines.problem import Problem
from align.engines.settings import TrainingConfig, check_training
from align.engines.tagged import Response
from align.engines.tagged_pairs import TaggedPair, build_pair_trainer, encoded, finish, frozen, pair_config
from align.errors import UserError
from align.functional.draws import draw_weights
from align.methods.conditioned_dpo import check_weight_law
from align.models import load_tokenizer
from align.policies.tagged import TaggedFamily, Tags
from align.preferences import Weights
from align.runs import Workspace, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState, TrainingArguments
    from trl import DPOTrainer

ROUND_FILE = "round.json"
ATTEMPTS = 50  # at filling a round with pairs that say something
ASKED_BY = (Weights,)
FAMILY = TaggedFamily


@dataclass(frozen=True, kw_only=True)
class Config(tagged.TagFields, TrainingConfig):
    """Rounds of fresh pairs, who labels them, and the law of the weights; the scheduler runs over all rounds."""

    rounds: int = 50
    pairs: int = 64  # per round; each is trained on once
    tau: float = 0.0  # 0: the larger w . r is chosen; above: by an annotator of this temperature, DPO at beta / tau
    alpha: float = 1.0  # of the Dirichlet law of the weights; 1 is uniform on the simplex
    vertices: float = 0.1  # share of the draws that are vertices
    max_completion_length: int = 64  # tokens, the end token included
    sample_batch_size: int = 256
    scheduler: str = "constant"


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> TaggedFamily:
    """One model for all weights, from samples on the prompts, else on those of the comparisons.

    UserError on an impossible configuration and without prompts.
    """
    check_preferences(problem)
    check_config(config)
    problem, left_out = tagged.askable(problem)
    rows = tagged.prompts_to_ask(problem, method="mo_odpo")
    inputs = inputs_of(problem, rows=rows)
    tags = tagged.make_tags(config, problem)
    family = tagged.untrained_family("mo_odpo", problem, tags=tags, claim=describe(config))

    def body(place: Workspace) -> Mapping[str, object]:
        with tagged.start_model(problem.reference, tags=tags, folder=place.folder, seed=config.seed) as start:
            trainer, source = build_trainer(config, replace(problem, prompts=rows), place, start=start, tags=tags)
            loss = finish(trainer, label="mo_odpo", run=place)
        (place.folder / ROUND_FILE).unlink(missing_ok=True)
        told = tagged.told_apart(family, problem, place, seed=config.seed)
        return {"loss": loss, "rounds": config.rounds, "ties_dropped": source.ties, **counted(left_out), **told}

    trained = part("mo_odpo", "conditioned", run, config=config, inputs=inputs, body=body)
    return tagged.trained_family(family, trained)


def check_config(config: Config) -> None:
    """UserError on a value that no run can mean."""
    check_training(config)
    checks.at_least(1, config, "rounds", "pairs", "max_completion_length", "sample_batch_size")
    checks.at_least(0, config, "tau")
    check_weight_law(config)


def describe(config: Config) -> str:
    """One line: what is optimised at every weight."""
    where = f"at every w at once, on-policy DPO, w of Dirichlet({config.alpha:g})"
    if config.tau:
        target = f"E[w.r] - {config.beta:g} KL(pi||ref) {where}, labels of an annotator of temperature {config.tau:g}"
        return f"{target} (DPO beta {config.beta / config.tau:g})"
    return f"no J in reward units: the larger w.r is chosen, {where}, DPO beta {config.beta:g}"


def label(a: Response, b: Response, *, weights: Weights, tau: float, rng: np.random.Generator) -> bool | None:
    """Whether `a` is chosen: by the larger w . r at tau 0, else with probability sigmoid(w . (r_a - r_b) / tau).

    None where the pair says nothing: the same response twice, or at tau 0 equal w . r.
    """
    difference = sum(w * (x - y) for w, x, y in zip(weights, a.scores, b.scores, strict=True))
    if a.ids == b.ids or (tau == 0 and difference == 0):
        return None
    if tau == 0:
        return difference > 0
    return bool(rng.random() < 0.5 * (1 + math.tanh(difference / tau / 2)))


class FreshPairs:
    """Rows of DPOTrainer's data set that are replaced, in place, by new samples of its model at every round."""

    def __init__(
        self,
        config: Config,
        problem: Problem[Weights],
        run: Workspace,
        *,
        tags: Tags,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.config, self.tags, self.tokenizer = config, tags, tokenizer
        self.objectives, self.prompts = problem.objectives, problem.prompts or ()
        self.reference, self.folder, self.ledger = frozen(problem.reference), run.folder, run.ledger
        self.rows: list[dict[str, object]] = [{}] * config.pairs
        self.ties = 0

    def renew(self, number: int, model: PreTrainedModel) -> None:
        """The rows of round `number`: those on disk where a resumed run had drawn them, else new ones."""
        file = self.folder / ROUND_FILE
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"round": None}
        if kept["round"] != number:
            pairs, ties = self.draw(number, model)
            settings = pair_config(self.config)
            rows = encoded(
                pairs, tokenizer=self.tokenizer, tags=self.tags, reference=self.reference, ledger=self.ledger,
                config=settings,
            )  # fmt: skip
            kept = {"round": number, "ties": self.ties + ties, "rows": rows}
            write_json(file, kept)
        self.rows[:], self.ties = kept["rows"], kept["ties"]

    def draw(self, number: int, model: PreTrainedModel) -> tuple[list[TaggedPair], int]:
        """A round's labelled pairs, and how many were drawn that say nothing; UserError when hardly any says more."""
        config, rng = self.config, np.random.default_rng([self.config.seed, number])
        pairs: list[TaggedPair] = []
        ties = 0
        for _ in range(ATTEMPTS):
            missing = config.pairs - len(pairs)
            if not missing:
                return pairs, ties
            weights = draw_weights(
                missing, objectives=len(self.objectives), rng=rng, alpha=config.alpha, vertices=config.vertices
            )
            order = tagged.passes(len(self.prompts), count=missing, rng=rng)
            asked = [(self.prompts[i], w.values) for i, w in zip(order, weights, strict=True) for _ in range(2)]
            drawn = tagged.sample(
                model, self.tokenizer, asked=asked, tags=self.tags, objectives=self.objectives,
                config=config, seed=int(rng.integers(2**31)), ledger=self.ledger,
            )  # fmt: skip
            for a, b, w in zip(drawn[::2], drawn[1::2], weights, strict=True):
                first = label(a, b, weights=w, tau=config.tau, rng=rng)
                if first is None:
                    ties += 1
                else:
                    chosen, rejected = (a, b) if first else (b, a)
                    pairs.append(TaggedPair(a.prompt, w.values, chosen.ids, rejected.ids))
        raise UserError(f"{ties} pairs of responses were ties and {len(pairs)} not; set tau above 0, or lower pairs")


def build_trainer(
    config: Config, problem: Problem[Weights], run: Workspace, *, start: str, tags: Tags
) -> tuple[DPOTrainer, FreshPairs]:
    """A DPOTrainer whose epochs are rounds: a callback renews its rows before each."""
    from transformers import TrainerCallback

    source = FreshPairs(config, problem, run, tags=tags, tokenizer=load_tokenizer(start))
    trainer = build_pair_trainer(
        pair_config(config, epochs=float(config.rounds)), start=start, tags=tags,
        beta=config.beta / (config.tau or 1.0), folder=run.folder, dataset=source.rows,
    )  # fmt: skip

    class Renew(TrainerCallback):
        def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
            source.renew(int(state.epoch + 1e-6), trainer.accelerator.unwrap_model(trainer.model))

    trainer.add_callback(Renew())
    return trainer, source
