"""KTO (Ethayarajh et al. 2024): every response by itself is desirable or not, by its `w . r` against a threshold.

The loss (equation 7) is `lambda_D (1 - s)` for a desirable response and `lambda_U s` for another, with
`s = sigmoid(beta (log pi/ref - z))` and z the batch's estimate of the KL, at least 0 and without gradient. It optimises
no `E[w . r] - beta KL(pi || ref)`: a label says on which side of the threshold a response is and not how far. With
labels without noise, responses drawn from the reference and beta <= 1, the loss over all policies is least at **the
reference conditioned on the desirable responses**, for any beta, z and lambdas: it is linear in s, which is concave in
pi/ref, so that undesirable responses lose all their mass and desirable ones share it in the reference's proportions.

*Deviations from the official code*: z comes from completions moved on by one within a batch (TRL), which also pairs
some prompts with responses of their own; all passes over the examples are laid out and shuffled beforehand and end with
a whole batch, since TRL reads them in order, in every epoch alike, and would pair a last batch of one with itself.
Data: pairs. Fixed point: the reference conditioned on the desirable responses.
"""

from __future__ import annotations

import math
import os
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import checks
from align.data.comparisons import required_rows
from align.engines.points import check_preferences, train_points
from align.engines.problem import Problem
from align.engines.settings import adapter_config, model_to_train, train_and_save, trainer_arguments
from align.engines.unpaired import (
    Example,
    UnpairedConfig,
    check_labels,
    describe_labels,
    given_examples,
    known_scores,
    thresholded_examples,
)
from align.errors import UserError
from align.models import load_tokenizer
from align.policies.base import PointFamily
from align.preferences import Weights
from align.runs import Workspace
from align.training.rows import Encoded, Encoder, counted, require_any, start_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from trl import KTOTrainer

ASKED_BY = (Weights,)
FAMILY = PointFamily


@dataclass(frozen=True, kw_only=True)
class Config(UnpairedConfig):
    """How to train; how responses are labelled is `UnpairedConfig`'s."""

    beta: float = 0.1  # KTO's own, per nat of log pi/ref: labels carry no reward unit, so that it is not J's
    desirable_weight: float | None = None  # None balances: half of the total weight for each side, 1 on average
    undesirable_weight: float | None = None
    epochs: float = 1.0
    max_length: int | None = None  # tokens kept of prompt + response; a prompt that fills it drops its examples


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> PointFamily:
    """One model per preference, from both responses of every comparison. Prompts are not used, nor are objectives but
    for their names, unless `labels` is objectives.

    UserError when comparisons are missing, carry no scores, or fall all on one side of the threshold.
    """
    names = check_preferences(problem)
    check_config(config)
    rows = required_rows(problem.comparisons, method="kto")
    scores = known_scores(config, problem, run.ledger)
    if scores is None:
        for weights in problem.preferences:  # a mixture is refused before the first point is trained
            given_examples(rows, weights=weights, names=names)

    def body(weights: Weights, point: Workspace) -> Mapping[str, object]:
        if scores is None:
            examples, seen = given_examples(rows, weights=weights, names=names), 0
        else:
            examples, seen = thresholded_examples(rows, scores=scores, weights=weights, config=config), 2 * len(rows)
            point.ledger.add(scores_read=seen)
        metrics = train_on(examples, config=config, reference=problem.reference, run=point)
        return {**metrics, "examples_without_contrast": max(seen - len(examples), 0)}

    return train_points(
        "kto", config, problem, run, rows=rows, body=body, optimises=lambda w: describe(config, weights=w)
    )


def check_config(config: Config) -> None:
    """UserError on a value that is no KTO configuration."""
    check_labels(config)
    checks.above_zero(config, "epochs", "desirable_weight", "undesirable_weight", "max_length")
    if config.batch_size < 2:
        raise UserError("KTO estimates its KL from the other responses of a batch; make batch_size at least 2")


def describe(config: Config, *, weights: Weights) -> str:
    """One line: what the training moves to, which is no optimum of J."""
    if config.tau == 0 and config.labels != "given":
        end = "its fixed point is the reference conditioned on them, whatever beta"
    else:
        end = "these gain mass by how surely they are that, whatever beta"
    noise = "" if config.labels == "given" else f" (annotator temperature {config.tau:g})"
    wanted = describe_labels(config)
    return f"no J at w = {weights.label}: KTO (its own beta {config.beta:g}) for {wanted}{noise}; {end}"


def passes(examples: Sequence[Example], *, config: Config) -> list[Example]:
    """The examples of every batch, in order: shuffled passes, and of one more pass what fills the last step."""
    step = config.batch_size * config.gradient_accumulation
    wanted = math.ceil(round(len(examples) * config.epochs / step, 6)) * step
    rng = random.Random(f"kto {config.seed}")
    order: list[Example] = []
    while len(order) < wanted:
        order += rng.sample(list(examples), len(examples))
    return order[:wanted]


def side_weights(examples: Sequence[Example], *, config: Config) -> tuple[float, float]:
    """(lambda_D, lambda_U): as configured, else `n / (2 n_D)` and `n / (2 n_U)`.

    Then `lambda_D n_D = lambda_U n_U`, the lower end of the range that the paper asks for (equation 8), and the mean
    weight is 1.
    """
    count, desirable = len(examples), sum(example.label for example in examples)
    return (
        config.desirable_weight or count / (2 * desirable),
        config.undesirable_weight or count / (2 * (count - desirable)),
    )


def train_on(examples: Sequence[Example], *, config: Config, reference: str, run: Workspace) -> dict[str, float | None]:
    """Train one model with TRL's KTOTrainer, save it in `run.folder/model`, and return metrics."""
    trainer = build_trainer(examples, config=config, reference=reference, folder=run.folder)
    done = train_and_save(trainer, label=f"kto {run.folder.stem}", run=run)
    # Besides training: the policy on the moved completions, the reference on both, 2 N a token each.
    run.ledger.add(flops=6 * done.work)
    return {"loss": done.loss, **trainer.lost}


def build_trainer(examples: Sequence[Example], *, config: Config, reference: str, folder: Path) -> KTOTrainer:
    """A KTOTrainer on these examples, with every default that matters set on purpose.

    Its `lost` has the number of examples it trains on and of those that are left out or cut, as metrics.
    """
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    model, tokenizer = model_to_train(reference, config), load_tokenizer(reference)
    limit = checks.longest_row(config.max_length, model)
    rows, lost = encoded(examples, tokenizer=tokenizer, max_length=config.max_length)
    longest = max(row.longest for row in rows.values())
    checks.fits(longest, model, what="the longest example", fix="set max_length, or leave such rows out")
    kept = list(rows)
    desirable, undesirable = side_weights(kept, config=config)
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # a log file is no place for a bar; TRL has no other switch for this one
    trainer = KTOTrainer(
        model=model,
        args=KTOConfig(
            **trainer_arguments(config, folder, epochs=1.0),  # `passes` has laid out all epochs
            beta=config.beta,
            loss_type="kto",
            desirable_weight=desirable,
            undesirable_weight=undesirable,
            max_length=None,  # rows of ids are cut where they are counted
            precompute_ref_log_probs=True,  # read from the data set, where they are those of the model at this moment
            train_sampling_strategy="sequential",  # the completions of a batch are paired before training
            disable_dropout=not config.lora_dropout,  # the model itself has none
        ),
        # TRL prepares stand-ins as text; what is set as its data set afterwards is trained as it is.
        train_dataset=Dataset.from_list(
            [{"prompt": tokenizer.eos_token, "completion": "", "label": label} for label in (True, False)]
        ),
        processing_class=tokenizer,
        peft_config=adapter_config(config, model),
    )
    columns = columns_of(passes(kept, config=config), rows=rows, batch_size=config.batch_size, limit=limit)
    for name, ids in (("ref_logps", "completion_ids"), ("ref_KL_logps", "KL_completion_ids")):
        asked = list(zip(columns["prompt_ids"], columns[ids], strict=True))
        columns[name] = start_logprobs(trainer, asked, batch_size=4 * config.batch_size)
    trainer.train_dataset = Dataset.from_dict(columns)
    trainer.lost = {"examples": len(kept), "desirable": sum(example.label for example in kept), **lost}
    return trainer


def encoded(
    examples: Sequence[Example], *, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[dict[Example, Encoded], dict[str, float | None]]:
    """The ids of the examples that are kept, and counts of those that are left out or cut.

    Responses of a prompt that the length makes equal, with both labels among them, tell nothing and are left out.
    UserError when examples of one label alone are left.
    """
    encoder = Encoder(tokenizer, max_length=max_length)
    found = {e: row for e in examples if (row := encoder(e.prompt, (e.completion, e.ids))) is not None}
    groups: dict[tuple[int, ...], list[Example]] = {}
    for example, row in found.items():
        groups.setdefault((*row.prompt, -1, *row.replies[0]), []).append(example)
    equal = {
        example
        for group in groups.values()
        if any(found[e].cut for e in group) and len({e.label for e in group}) == 2
        for example in group
    }
    encoder.lost["dropped_as_equal"] = len(equal)
    kept = {example: row for example, row in found.items() if example not in equal}
    require_any(list(kept), encoder, what="example")
    if len(kept) < len(examples) and len({example.label for example in kept}) < 2:
        raise UserError(f"max_length = {max_length} leaves no prompts with both labels; raise max_length")
    return kept, counted(encoder.lost, what="examples")


def columns_of(
    examples: Sequence[Example], *, rows: Mapping[Example, Encoded], batch_size: int, limit: int | None
) -> dict[str, list[Any]]:
    """The examples as columns of KTOTrainer's data set; in each batch completions are moved on by one for its KL."""
    heads, tails = [rows[e].prompt for e in examples], [rows[e].replies[0] for e in examples]
    moved: list[list[int]] = []
    for start in range(0, len(tails), batch_size):
        part = tails[start : start + batch_size]
        moved += [part[-1], *part[:-1]]
    if limit is not None:  # a moved completion may stand behind a longer prompt than its own
        moved = [tail[: limit - len(head)] for head, tail in zip(heads, moved, strict=True)]
    return {
        "prompt_ids": heads,
        "completion_ids": tails,
        "KL_completion_ids": moved,
        "label": [example.label for example in examples],
    }
