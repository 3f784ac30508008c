"""SFT on the best responses: draw n reference samples per prompt, keep the best by `w . r`, train on their likelihood.

Rejection-sampling fine-tuning, one round of RAFT (Dong et al. 2023, algorithm 1). Samples and scores are drawn once and
serve all preferences. The fixed point is no optimum of `J = E[w . r] - beta KL(pi || ref)`: the likelihood is largest
at the law of the kept responses, which for `keep = 1` is best-of-n (`align.testbed.tabular.HardBestOfN`).

*Deviations from RAFT*: the reference draws, where later rounds of RAFT draw from the policy of the round before; the
best are taken within each prompt, uniformly among equals. Training is on the sampled token ids: a response that was cut
at `max_completion_length` has no end token, and none is put there. TRL divides each batch's likelihood by its number of
tokens, which for batches of many responses is a constant.
Data: prompts. Fixed point: imitation of the best of n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from align import checks
from align.engines.on_policy.trainer import required_prompts
from align.engines.points import check_preferences, train_points
from align.engines.problem import Problem
from align.engines.reference_samples import Drawing, Sample, best_samples, shared_samples
from align.engines.settings import TrainingConfig, check_training, train_and_save
from align.engines.tagged_pairs import imitation_trainer
from align.errors import UserError
from align.models import load_tokenizer
from align.models.formats import formatter
from align.policies.base import PointFamily
from align.policies.best_of_n import kl_bound
from align.preferences import Weights
from align.runs import Workspace

if TYPE_CHECKING:
    from trl import SFTTrainer

ASKED_BY = (Weights,)
FAMILY = PointFamily


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """How many responses are drawn and kept per prompt, and the optimiser.

    `beta` has no part in it: n, and how long the training goes on, say how far the policy leaves the reference.
    """

    n: int = 8  # samples of the reference per prompt
    keep: int = 1  # how many of them are trained on, the best first; n keeps all, which imitates the reference
    max_completion_length: int = 64  # tokens, the end token included; longer responses are cut and scored as they are
    sample_batch_size: int = 256  # responses drawn at a time
    epochs: float = 1.0  # passes over the kept responses


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> PointFamily:
    """One model per preference, from `n` samples for each of the prompts. Comparisons are not used.

    Samples and scores are charged once; objectives without weight at every preference are not asked. UserError on an
    impossible configuration, when there are no prompts, and where an objective scores some responses of a prompt only.
    """
    names = check_preferences(problem)
    drawing = check_config(config)
    rows = required_prompts(problem, method="best_sft")
    samples = shared_samples(
        drawing,
        problem,
        replace(run, folder=run.folder / "samples"),
        objectives={
            name: problem.objectives[name] for k, name in enumerate(names) if any(w[k] for w in problem.preferences)
        },
    )

    def body(weights: Weights, point: Workspace) -> Mapping[str, object]:
        by_name = dict(zip(names, weights, strict=True))
        kept = best_samples(samples, weights=by_name, keep=config.keep, seed=config.seed)
        return train_on(kept, config=config, reference=problem.reference, run=point)

    return train_points(
        "best_sft", config, problem, run, rows=rows, body=body, optimises=lambda w: describe(config, weights=w)
    )


def check_config(config: Config) -> Drawing:
    """What to draw; UserError on a value that no run can mean."""
    check_training(config)
    checks.above_zero(config, "epochs")
    checks.at_least(1, config, "n", "keep", "max_completion_length", "sample_batch_size")
    if config.keep > config.n:
        raise UserError(f"keep is {config.keep} of n = {config.n} samples; keep at most n")
    return Drawing.of(config)


def describe(config: Config, *, weights: Weights) -> str:
    """One line: the fixed point of the training, which is no optimum of J."""
    of = "the best" if config.keep == 1 else f"the best {config.keep}"
    return (
        f"no J: likelihood of {of} of {config.n} reference samples by w.r at w = {weights.label}, so that the fixed "
        f"point is their law (best-of-n: KL at most {kl_bound(config.n):.3g} nats), whatever beta"
    )


def train_on(kept: Sequence[Sample], *, config: Config, reference: str, run: Workspace) -> dict[str, float | None]:
    """Train the reference on the likelihood of these responses, save it in `run.folder/model`, and return metrics."""
    trainer = build_trainer(kept, config=config, reference=reference, folder=run.folder)
    done = train_and_save(trainer, label=f"best_sft {run.folder.stem}", run=run)
    return {"loss": done.loss, "trained_on": len(kept), "steps": trainer.state.global_step}


def build_trainer(kept: Sequence[Sample], *, config: Config, reference: str, folder: Path) -> SFTTrainer:
    """An SFTTrainer on the token ids as they were drawn, the loss on the response only."""
    heads = formatter(load_tokenizer(reference)).prompts_ids([sample.prompt for sample in kept])
    responses = [sample.ids for sample in kept]
    return imitation_trainer(heads, responses, config=config, model=reference, folder=folder, epochs=config.epochs)
