"""Training on labelled pairs through TRL's DPOTrainer: the config, the labels, the trainer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import checks
from align.data.comparisons import LABELS, JudgedRows, Pair, Row, required_rows, row_scores
from align.data.label_noise import label_report, tell
from align.engines.problem import P, Problem
from align.engines.settings import (
    TrainingConfig,
    adapter_config,
    check_training,
    model_to_train,
    train_and_save,
    trainer_arguments,
)
from align.errors import UserError
from align.models import load_tokenizer
from align.objectives.metered import objective_scores
from align.preferences import Weights
from align.runs import Ledger, Workspace
from align.training.rows import Encoder, counted, require_any, start_logprobs
from align.training.token_mean import with_token_mean

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase
    from trl import DPOTrainer


@dataclass(frozen=True, kw_only=True)
class PairTrainingConfig(TrainingConfig):
    """How to train; `labels` says who judged the pairs.

    given: the row's chosen and rejected, one objective per preference. scalarised: an annotator who sees the row's
    `scores_a`, `scores_b` through w. objectives: the same annotator, seeing scores asked from the objectives.
    """

    labels: str = "given"
    tau: float = 1.0  # the annotator's temperature, in reward units; DPO's own beta becomes beta / tau
    mle_weight: float = 0.0  # weight of the chosen responses' negative log-likelihood per token (training/token_mean)
    epochs: float = 1.0
    max_length: int | None = None  # tokens kept of prompt + response; a prompt that fills it drops its row


def check_pair_config(config: PairTrainingConfig) -> None:
    """UserError on a value that is no DPO configuration."""
    check_training(config, can_look=True)
    checks.one_of(config, labels=LABELS)
    if not config.tau > 0 or config.mle_weight < 0 or not config.epochs > 0:
        raise UserError("tau and epochs must be above 0 and mle_weight not below 0")


def judged_rows(
    config: PairTrainingConfig, problem: Problem[P], ledger: Ledger, *, method: str, at: Sequence[Weights] | None = None
) -> JudgedRows:
    """The problem's comparisons, checked, with what their annotator sees; scores asked from the objectives are charged.

    Says on stderr how much its labels tell at the weights `at` (None: those of the problem). UserError when there are
    no comparisons, or they do not carry what `labels` needs.
    """
    rows = required_rows(problem.comparisons, method=method)
    scores: Mapping[str, Sequence[Sequence[float]]] | None = None  # with given labels
    if config.labels == "scalarised":
        scores = row_scores(rows)
    elif config.labels == "objectives":
        scores = objective_scores(rows, objectives=problem.objectives, ledger=ledger)
    judged = JudgedRows(rows=rows, names=problem.names, scores=scores, tau=config.tau, seed=config.seed)
    report = label_report(judged, at=at or [w for w in problem.preferences if isinstance(w, Weights)])
    if report is not None:
        tell(report, method=method)
    return judged


def train_on_pairs(
    pairs: Sequence[Pair],
    *,
    config: PairTrainingConfig,
    reference: str,
    beta: float,
    run: Workspace,
    shift_reference: Callable[[Dataset], Dataset] | None = None,
) -> dict[str, object]:
    """Train one model on labelled pairs with TRL's DPOTrainer at its coefficient `beta`; save `run.folder/model`.

    `shift_reference` maps the prepared dataset (columns id, ref_chosen_logps, ref_rejected_logps) to the trained one.
    Reference log-probabilities are computed once, from the checkpoint on disk, before the first step. An annotator's
    look at each pair is charged to `run`. Returns metrics.
    """
    if config.labels != "given":
        run.ledger.add(scores_read=len(pairs))
    trainer = dpo_trainer(pairs, config=config, reference=reference, beta=beta, folder=run.folder)
    if shift_reference is not None:
        trainer.train_dataset = shift_reference(trainer.train_dataset)
    done = train_and_save(trainer, label=f"dpo {run.folder.stem}", run=run, config=config)
    # One pass of the reference over the pairs (2 N tokens), on top of the training the callback counted.
    # The pairs' samples are charged where they were drawn, once for all points that train on them.
    run.ledger.add(flops=2 * done.work / config.epochs)
    return {"loss": done.loss, **done.more, "pairs": len(pairs), **trainer.lost}


def pair_rows(
    pairs: Sequence[Pair], *, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
    """(Ids of the pairs by column, with the pair's id; counts of what was left out or cut.)

    A pair of which the length leaves the same tokens on both sides tells nothing and is left out. UserError when no
    pair is left.
    """
    encoder, rows = Encoder(tokenizer, max_length=max_length), []
    encoder.lost["dropped_as_equal"] = 0
    for pair in pairs:
        row = encoder(pair.prompt, (pair.chosen, pair.chosen_ids), (pair.rejected, pair.rejected_ids))
        if row is not None:
            chosen, rejected = row.replies
            if row.cut and chosen == rejected:
                encoder.lost["dropped_as_equal"] += 1
                continue
            rows.append({"id": pair.id, "prompt_ids": row.prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    require_any(rows, encoder, what="pair")
    return rows, counted(encoder.lost, what="pairs")


def dpo_trainer(
    pairs: Sequence[Pair], *, config: PairTrainingConfig, reference: str, beta: float, folder: Path
) -> DPOTrainer:
    """A DPOTrainer on these pairs, whose `lost` counts those that are left out or cut (metrics `pairs_...`).

    Its data set has the columns id, prompt_ids, chosen_ids, rejected_ids, ref_chosen_logps and ref_rejected_logps.
    """
    from datasets import Dataset

    trainer = bare_trainer(config, reference=reference, beta=beta, folder=folder)
    rows, lost = pair_rows(pairs, tokenizer=trainer.processing_class, max_length=config.max_length)
    if config.max_length is None:
        longest = max(len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in rows)
        checks.fits(longest, trainer.model, what="the longest comparison", fix="set max_length, or leave such rows out")
    asked = [(row["prompt_ids"], row[side]) for side in ("chosen_ids", "rejected_ids") for row in rows]
    logps = start_logprobs(trainer, asked, batch_size=4 * config.batch_size)
    trainer.train_dataset = Dataset.from_list(
        [
            {**row, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
            for row, chosen, rejected in zip(rows, logps[: len(rows)], logps[len(rows) :], strict=True)
        ]
    )
    trainer.lost = lost
    return trainer


def bare_trainer(
    config: PairTrainingConfig, *, reference: str, beta: float, folder: Path, new_tokens: Sequence[int] = ()
) -> DPOTrainer:
    """A DPOTrainer with every default that matters set on purpose, still without its rows of ids.

    TRL prepares one stand-in row as text; what is set as `train_dataset` afterwards is trained as it is.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = model_to_train(reference, config), load_tokenizer(reference)
    if config.max_length is not None:
        checks.longest_row(config.max_length, model)
    with_mle = config.mle_weight > 0
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # a log file is no place for a bar; TRL has no other switch for this one
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            **trainer_arguments(config, folder, epochs=config.epochs),
            beta=beta,
            loss_type=["sigmoid", "sft"] if with_mle else ["sigmoid"],
            loss_weights=[1.0, config.mle_weight] if with_mle else None,
            max_length=None,  # rows of ids are cut where they are counted
            precompute_ref_log_probs=True,  # read from the data set, where they are those of the model at this moment
            disable_dropout=not config.lora_dropout,  # the model itself has none
        ),
        train_dataset=Dataset.from_list([{"prompt": tokenizer.eos_token, "chosen": "", "rejected": ""}]),
        processing_class=tokenizer,
        peft_config=adapter_config(config, model, new_tokens=new_tokens),
    )
    return with_token_mean(trainer, mle_weight=config.mle_weight) if with_mle else trainer


def carry(trainer: DPOTrainer, *names: str, times: int = 1) -> None:
    """Let batches of B pairs carry these columns of the data set as tensors (times x B, ...).

    TRL's batch has all chosen responses before all rejected ones: `times=2` gives each sequence its pair's entry.
    """
    import torch

    trainer._set_signature_columns_if_needed()
    trainer._signature_columns += names  # or they would be dropped before the collator
    collate = trainer.data_collator

    def collated(examples: list[Row]) -> dict[str, Tensor]:
        columns = {name: torch.tensor([example[name] for example in examples] * times) for name in names}
        return collate(examples) | columns

    trainer.data_collator = collated
