"""Reward models from comparisons: Bradley-Terry likelihood on a decoder or a BERT-like encoder, through TRL.

TRL is given token ids, those of the conversation in the backbone's own prompt format, which are the ids that the model
scores later (align/objectives/scoring.py).
Loss: -log sigmoid(r(x, chosen) - r(x, rejected)) (Bradley and Terry 1952; Ouyang et al. 2022, equation 1).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from align import checks
from align.data.comparisons import Row
from align.errors import UserError
from align.models import (
    ModelConfig,
    build_model,
    count_parameters,
    load_scorer,
    load_tokenizer,
    lora_config,
    save_model,
    set_dropout,
)
from align.models.chat import FormatError
from align.models.formats import formatter, settle
from align.models.stored.adapters import folded
from align.models.stored.precision import trained_dtype
from align.objectives.scoring import readable_padding, score, scored_ids, segments
from align.runs import Ledger, checkpoints, write_json
from align.runs.values import later
from align.training.common import StageConfig, drop_checkpoints, final_loss, finish_trainer
from align.training.robust_pairs import SmoothedLoss, matched_by_length
from align.training.watch import train_watched, watched

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
        TrainerState,
        TrainingArguments,
    )

BEST = "best_epoch"
TEXTS = ("prompt", "chosen", "rejected")
IDS = {"chosen": "chosen_ids", "rejected": "rejected_ids"}  # TRL's columns
Rows = Sequence[Row]
Collator = Callable[[list[Row]], "dict[str, Tensor]"]


@dataclass(frozen=True)
class RewardModelConfig(StageConfig):
    """Backbone and regularisers, beside the optimiser (fields of `StageConfig`).

    `encoder` builds a BERT-shaped model from scratch with the tokenizer of `model`; None starts from `model` itself (a
    causal LM, whose head is replaced, or a classifier). `max_length` in tokens, end token included (None: the model's
    positions): pairs with a longer side are left out and counted. `dropout` is the residual dropout, `center` the
    coefficient of (r_chosen + r_rejected)^2 (Eisenstein et al. 2023; 0: off). `label_smoothing` is the share of labels
    taken to be wrong: an annotator of temperature tau errs on sigmoid(-d / tau) of the pairs that lie d apart.
    `length_matched` leaves pairs out until, for every difference in length, the longer response is chosen as often as
    the shorter one, so that length alone predicts nothing. `choose_epoch` keeps the epoch with the
    best validation accuracy. `lora_r` above 0 trains an adapter and the head, and merges them into the saved model;
    `keep_adapter` also saves the two as they are, in `adapter`, for several reward models on one backbone in memory
    (align/models/shared_backbone.py). With `merge_adapter: false`, and on a base of 4 bits, `model` is that adapter.
    """

    encoder: ModelConfig | None = None
    dropout: float = 0.0
    center: float = 0.0
    max_length: int | None = None
    choose_epoch: bool = False
    label_smoothing: float = later(0.0)
    length_matched: bool = later(False)
    lora_r: int = 0
    lora_alpha: float | None = None
    keep_adapter: bool = False
    merge_adapter: bool = later(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.regularisers(self)
        checks.at_least(0, self, "center")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"label_smoothing is {self.label_smoothing}; give a share of at least 0 and below 0.5")
        if self.keep_adapter and not self.lora_r:
            raise UserError("keep_adapter keeps what lora_r trains, and lora_r is 0; set lora_r to a rank, like 8")


@dataclass(frozen=True)
class Kind:
    """What a model of scores is trained on and measured by; everything else is `train_scorer`, for all kinds alike.

    `checked` gives the columns that are needed and refuses a row without them, `ordered` puts `chosen` where the score
    is to be higher, `measure(model, tokenizer, pairs)` gives the metrics, accuracies among them.
    """

    label: str
    checked: Callable[[Rows], Rows]
    build: Callable[..., Trainer]  # as `build_trainer`
    ordered: Callable[[Rows], Rows]
    measure: Callable[[PreTrainedModel, PreTrainedTokenizerBase, Rows], dict[str, float]]


def train_reward_model(
    config: RewardModelConfig,
    *,
    model: str | Path,
    rows: Rows,
    out: Path,
    ledger: Ledger,
    validation: Rows | None = None,
) -> dict[str, object]:
    """Train on `prompt`, `chosen`, `rejected` rows, save `out/model`, and return metrics; resumes.

    Metrics: `accuracy` and `log_loss` on `validation` (None without; ties count half), `train_accuracy` (first 1,000
    rows), the `loss` last logged, `steps`, `trained_on`, `too_long` and `dropped_by_template` (rows), `epoch` (the one
    chosen, None when the last was taken). With `choose_epoch` the first two are None, as the epoch was chosen on those
    rows: `best_validation_accuracy` is the maximum over epochs. Raises UserError on rows without the three texts, and
    when `choose_epoch` has no validation rows.
    """
    kind = Kind("reward model", checked_pairs, build_trainer, list, preference_accuracy)
    return train_scorer(config, kind, model=model, rows=rows, out=out, ledger=ledger, validation=validation)


def train_scorer(
    config: RewardModelConfig, kind: Kind, *, model: str | Path, rows: Rows, out: Path, ledger: Ledger,
    validation: Rows | None,
) -> dict[str, object]:  # fmt: skip
    """Train a model of scores, save `out/model` (and `out/adapter` with `keep_adapter`), and return its metrics."""
    from transformers import set_seed

    out = Path(out)
    if config.choose_epoch and not validation:
        raise UserError("choose_epoch needs validation comparisons; give some or set choose_epoch to false")
    pairs, tokenizer = kind.checked(rows), load_tokenizer(model)
    settle(tokenizer, prompts=[str(pair["prompt"]) for pair in pairs], place=str(model))
    tokenizer.pad_token = readable_padding(tokenizer)
    set_seed(config.seed)  # the new head is drawn from this
    scorer = scorer_to_train(config, model, tokenizer)
    limit = checks.longest_row(config.max_length, scorer)
    train = encoded(pairs, tokenizer, limit)
    if config.length_matched:
        train = replace(train, rows=matched_by_length(train.rows, seed=config.seed))
    held_out = encoded(kind.checked(validation), tokenizer, None).rows if validation else []
    looks = watched(config, held_out, keep=list)
    trainer = kind.build(config, scorer=scorer, tokenizer=tokenizer, pairs=[*train.rows, *looks], out=out)
    finish_trainer(trainer, label=kind.label, ledger=ledger, parameters=count_parameters(scorer, embeddings=False))
    choice = None
    if config.choose_epoch:
        choice = EpochChoice(out / BEST, tokenizer=tokenizer, rows=kind.ordered(held_out))
        trainer.add_callback(choice)
    seen = train_watched(trainer, config, count=len(train.rows), out=out)
    if choice is not None:
        choice.restore(trainer.model)
    if config.keep_adapter:
        save_model(trainer.model, tokenizer, out / "adapter")
    merges = config.lora_r and config.merge_adapter and not config.load_in_4bit
    trained = folded(trainer.model) if merges else trainer.model
    save_model(trained, tokenizer, out / "model")
    drop_checkpoints(out)
    checkpoints.drop(out / BEST)
    on_rows = kind.measure(trained, tokenizer, train.rows[:1000])
    chosen_by = choice is not None or config.early_stopping  # rows that chose the point are no measure of it
    tested = kind.measure(trained, tokenizer, held_out) if held_out and not chosen_by else {}
    return {
        **{name: tested.get(name) for name in on_rows if name != "n"},
        **({} if choice is None else {"best_validation_accuracy": choice.best["accuracy"]}),
        **{f"train_{name}": value for name, value in on_rows.items() if name.endswith("accuracy")},
        "loss": final_loss(trainer),
        "steps": trainer.state.global_step,
        "trained_on": len(train.rows),
        "too_long": train.too_long,
        **(
            {"matched_away": len(pairs) - len(train.rows) - train.too_long - train.unsaid}
            if config.length_matched
            else {}
        ),
        "dropped_by_template": train.unsaid,
        "epoch": None if choice is None else choice.best["epoch"],
        **seen,
    }


def scorer_to_train(
    config: RewardModelConfig, model: str | Path, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    if config.encoder is not None:
        if config.encoder.architecture != "bert":
            raise UserError(f"encoder.architecture is {config.encoder.architecture!r}; an encoder built here is a bert")
        scorer = build_model(config.encoder, tokenizer, seed=config.seed)
    else:
        scorer = load_scorer(
            model,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            dtype=trained_dtype(model, config.dtype, adapter=config.lora_r > 0),
            attn_implementation=config.attn_implementation,
            load_in_4bit=config.load_in_4bit,
        )
    set_dropout(scorer, config.dropout)
    return scorer


def build_trainer(
    config: RewardModelConfig, *, scorer: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Rows, out: Path,
    trainer_class: type | None = None,
) -> Trainer:  # fmt: skip
    """TRL's RewardTrainer, or the class derived from it, on pairs whose `chosen` is to score higher."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    others = {*TEXTS, *IDS.values()}
    columns = [{**{IDS[s]: p[IDS[s]] for s in IDS}, **{k: p[k] for k in p if k not in others}} for p in pairs]
    if config.label_smoothing:
        smoothed = (SmoothedLoss, trainer_class or RewardTrainer)
        trainer_class = type("SmoothedTrainer", smoothed, {"smoothing": config.label_smoothing})
    trainer = (trainer_class or RewardTrainer)(
        model=scorer,
        args=RewardConfig(
            **config.arguments(out),
            disable_dropout=False,  # on by default, which would undo config.dropout; `scorer_to_train` has set it
            max_length=None,  # TRL would leave long pairs out without a word; `encoded` counts them
            center_rewards_coefficient=config.center or None,
        ),
        train_dataset=Dataset.from_list(columns),
        processing_class=tokenizer,
        peft_config=adapter_of(config, scorer),
    )
    if formatter(tokenizer).format.template == "pair":
        trainer.data_collator = with_segments(trainer.data_collator, tokenizer=tokenizer, scorer=scorer)
    return trainer


def adapter_of(config: RewardModelConfig, scorer: PreTrainedModel) -> LoraConfig | None:
    """The LoRA configuration, head included, for TRL's `peft_config`, or None for full training."""
    if not config.lora_r:
        return None
    return lora_config(
        scorer, config.lora_r, alpha=config.lora_alpha, dropout=config.lora_dropout, task="SEQ_CLS",
        targets=config.lora_targets,
    )  # fmt: skip


def with_segments(collate: Collator, *, tokenizer: PreTrainedTokenizerBase, scorer: PreTrainedModel) -> Collator:
    """A preference collator that also says which segment of an encoder's text each token belongs to."""

    def collate_with_segments(examples: list[Row]) -> dict[str, Tensor]:
        batch = collate(examples)
        return {**batch, **segments(batch["input_ids"], tokenizer=tokenizer, config=scorer.config)}

    return collate_with_segments


def checked_pairs(rows: Rows) -> Rows:
    """The three texts of every comparison; UserError on a row without prompt, chosen or rejected."""
    return [texts_of(row, number=n) for n, row in enumerate(rows, start=1)]


def texts_of(row: Row, *, number: int) -> dict[str, object]:
    """Prompt, chosen and rejected of a comparison; UserError when one is missing or no text."""
    for key in TEXTS:
        if not isinstance(row.get(key), str):
            raise UserError(f"comparison row {number} has no {key}; give prompt, chosen and rejected as text")
    return {key: row[key] for key in TEXTS}


@dataclass(frozen=True)
class Encoded:
    """Comparisons with their ids beside their texts, and how many were left out: too long, and unsayable."""

    rows: Rows
    too_long: int
    unsaid: int


def encoded(pairs: Rows, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> Encoded:
    """The pairs of which both sides have at most `limit` tokens, end included, and whose prompt the template can say.

    UserError when none is left.
    """
    kept, too_long, unsaid = [], 0, 0
    for pair in pairs:
        try:
            ids = {IDS[side]: scored_ids(tokenizer, pair["prompt"], pair[side]) for side in IDS}
        except FormatError:
            unsaid += 1
            continue
        if limit is not None and max(map(len, ids.values())) > limit:
            too_long += 1
            continue
        kept.append({**pair, **ids})
    if not kept:
        why = f"; the chat template cannot say {unsaid} of their prompts" if unsaid else ""
        raise UserError(
            f"none of the {len(pairs)} comparisons fits {limit} tokens{why}; raise max_length or give others"
        )
    return Encoded(kept, too_long, unsaid)


def preference_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    *,
    batch_size: int = 64,
) -> dict[str, float]:
    """`accuracy` (chosen scored above rejected; ties half), `log_loss` (nats) and `n` over comparisons."""
    prompts = [row["prompt"] for row in rows]
    both = score(
        model,
        tokenizer,
        prompts + prompts,
        [row["chosen"] for row in rows] + [row["rejected"] for row in rows],
        batch_size=batch_size,
    )
    margins = [c - r for c, r in zip(both[: len(rows)], both[len(rows) :], strict=True)]
    right = sum((m > 0) + 0.5 * (m == 0) for m in margins)
    # log(1 + exp(-m)) without overflow
    loss = sum(max(-m, 0.0) + math.log1p(math.exp(-abs(m))) for m in margins)
    return {"accuracy": right / len(rows), "log_loss": loss / len(rows), "n": float(len(rows))}


class EpochChoice(TrainerCallback):
    """After each epoch: validation accuracy; the weights of the best epoch (the earlier of equals) wait in `folder`.

    TRL's own `eval_accuracy` is a mean of batch means, and is not among the metrics that `load_best_model_at_end` sees.
    """

    def __init__(self, folder: Path, *, tokenizer: PreTrainedTokenizerBase, rows: Rows) -> None:
        self.folder = checkpoints.claim(folder)
        self.tokenizer = tokenizer
        self.rows = rows
        self.best: dict[str, Any] = {"accuracy": -1.0, "epoch": None}
        note = folder / "best.json"
        if note.is_file():  # an interrupted call got this far
            self.best = json.loads(note.read_text(encoding="utf-8"))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, *_: object, model: PreTrainedModel, **__: object
    ) -> None:
        import torch

        accuracy = preference_accuracy(model, self.tokenizer, self.rows)["accuracy"]
        epoch = round(state.epoch)
        if accuracy <= self.best["accuracy"]:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        weights = {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}
        file = f"epoch-{epoch}.pt"
        torch.save(weights, self.folder / file)
        earlier, self.best = self.best.get("file"), {"accuracy": accuracy, "epoch": epoch, "file": file}
        write_json(self.folder / "best.json", self.best)
        if earlier not in (None, file):
            (self.folder / earlier).unlink(missing_ok=True)

    def restore(self, model: PreTrainedModel) -> None:
        """Put the best epoch's weights into `model`."""
        import torch

        if self.best["epoch"] is None:
            return
        saved = torch.load(self.folder / self.best["file"], weights_only=True)
        own = dict(model.named_parameters())
        with torch.no_grad():
            for name, values in saved.items():
                own[name].copy_(values)
