"""Held-out rows looked at while a model trains: their loss or reward, KL and bits per byte; the best point kept.

Every `eval_steps` optimisation steps, before the first and after the last, the trainer's own evaluation runs on rows
that it does not train on. With `early_stopping` = n training stops after n looks without a better one, and the weights
of the best look are the ones that are saved. Better is a lower held-out loss; for on-policy training a higher held-out
J = E[w.r] - beta KL, estimated from one sample per prompt. The start counts as a look. A warning is printed, once, when
the language model is being destroyed: the held-out prompts' own text costs `WORSE_BITS` times the bits that it cost at
the start, or the sequence's KL is above `MUCH_KL` nats per response. Looks are not charged to the ledger, but for the
scores that they ask.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.checks import Looks
from align.data.comparisons import Row
from align.errors import UserError
from align.runs import checkpoints
from align.training.bits import text_bits
from align.training.common import Remembering, StageConfig, resume_point

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, Trainer, TrainerControl, TrainerState, TrainingArguments

BEST = "best_point"
MOST = 256  # rows of a look at most
WORSE_BITS = 1.5
MUCH_KL = 100.0
KEPT = (  # of a look, in the run's metrics; all of it is in the log
    "eval_loss",
    "eval_accuracy",
    "eval_rewards/accuracies",
    "eval_J",
    "eval_kl_of_responses",
    "eval_bits_per_byte",
)


def refuse_looks(config: Looks) -> None:
    """UserError for a method that has no rows to hold out."""
    if config.eval_steps:
        raise UserError("this method does not look at held-out rows while it trains; leave eval_steps out")


def held_out_prompts(prompts: Sequence[object], *, share: float, seed: int) -> list[bool]:
    """Which rows are held out: whole prompts, the same ones for one seed, until a share of the rows (at most 256)."""
    names = sorted({str(p) for p in prompts}, key=lambda p: hashlib.sha256(f"looks {seed} {p}".encode()).digest())
    if len(names) < 2:
        raise UserError("validation needs at least 2 different prompts, one of them to train on; leave eval_steps out")
    wanted, taken, chosen = min(share * len(prompts), MOST), 0, set[str]()
    counts = {name: 0 for name in names}
    for prompt in prompts:
        counts[str(prompt)] += 1
    for name in names[:-1]:
        if chosen and taken + counts[name] > wanted:
            break
        chosen.add(name)
        taken += counts[name]
    return [str(prompt) in chosen for prompt in prompts]


def hold_out(trainer: Trainer, *, share: float, seed: int) -> None:
    """Move whole prompts of a prepared training set to the trainer's held-out set (rows, where they name no prompt)."""
    data: Dataset = trainer.train_dataset
    known = "prompt_ids" in data.column_names
    held = held_out_prompts(data["prompt_ids"] if known else range(len(data)), share=share, seed=seed)
    trainer.train_dataset = data.select([i for i, out in enumerate(held) if not out])
    trainer.eval_dataset = data.select([i for i, out in enumerate(held) if out])


def split_at(trainer: Trainer, count: int) -> None:
    """The first `count` prepared rows are trained on, the others (at most 256 of them) are held out."""
    data: Dataset = trainer.train_dataset
    trainer.train_dataset = data.select(range(count))
    trainer.eval_dataset = data.select(range(count, min(len(data), count + MOST)))


def watched(config: Looks, rows: Sequence[Row] | None, *, keep: Callable[[Sequence[Row]], Sequence[Row]]) -> list[Row]:
    """The validation rows of a stage that are looked at (at most 256, kept as those to train on are); none without
    `eval_steps`. UserError where looks are asked for and there are no rows.
    """
    if not config.eval_steps:
        return []
    if not rows:
        raise UserError("eval_steps needs validation rows to look at; hold some out, or leave eval_steps out")
    return list(keep(rows[:MOST]))


def train_watched(
    trainer: Trainer, config: StageConfig, *, count: int, out: Path, texts: Sequence[str] = ()
) -> dict[str, object]:
    """Train on the first `count` prepared rows, resuming where a checkpoint lies, and look at the others; the metrics
    (`held_out`; none without looks).
    """
    looks, at = None, resume_point(out)
    if config.eval_steps:
        split_at(trainer, count)
        looks = watch(trainer, config, folder=out, texts=texts, resumed=at is not None)
    trainer.train(resume_from_checkpoint=at)
    return {} if looks is None else {"held_out": looks.finish(trainer.model)}


def texts_of(trainer: Trainer) -> list[str]:
    """The held-out prompts as text, each once; none where the rows hold no prompt of their own."""
    data = trainer.eval_dataset
    if "preferences" in data.column_names:
        return []  # such a model reads a preference beside the ids
    if "prompt_ids" in data.column_names:
        ids = dict.fromkeys(tuple(row) for row in data["prompt_ids"])
        return [trainer.processing_class.decode(row) for row in ids]
    return list(dict.fromkeys(p for p in data["prompt"] if isinstance(p, str))) if "prompt" in data.column_names else []


def watch(trainer: Trainer, config: Looks, *, folder: Path, texts: Sequence[str] = (), resumed: bool = False) -> Watch:
    """Let the trainer look at its `eval_dataset`; `texts` are for the bits per byte of a language model."""
    from transformers.trainer_utils import IntervalStrategy

    trainer.args.eval_strategy, trainer.args.eval_steps = IntervalStrategy.STEPS, config.eval_steps
    trainer.args.eval_on_start = not resumed  # again, it would draw from the generator that a checkpoint restored
    made = Watch(trainer, patience=config.early_stopping, folder=folder / BEST, texts=[t for t in texts if t])
    trainer.callback_handler.callbacks.insert(0, made)  # before the log's, which then has its numbers
    return made


class Watch(Remembering):
    """The callback; its memory is saved in the trainer's own state, the best weights in `folder` until `finish`."""

    def __init__(self, trainer: Trainer, *, patience: int, folder: Path, texts: Sequence[str]) -> None:
        self.trainer, self.patience, self.folder, self.texts = trainer, patience, folder, list(texts)
        self.memory: dict[str, Any] = {"looks": [], "best": None, "warned": False}

    def on_log(self, args: TrainingArguments, state: TrainerState, *_: object, logs: dict[str, Any], **__: Any) -> None:
        if "eval_loss" in logs:
            logs.update(self.measured(logs))
            state.log_history[-1].update(logs)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: PreTrainedModel, **_: Any
    ) -> None:
        entry = next(one for one in reversed(state.log_history) if "eval_loss" in one)
        look = {"step": state.global_step, **{name: entry[name] for name in KEPT if entry.get(name) is not None}}
        value = -look["eval_J"] if "eval_J" in look else look["eval_loss"]
        best, looks = self.memory["best"], [*self.memory["looks"], look]
        better = best is None or value < best["value"]
        best = {"value": value, "step": state.global_step, "look": len(looks)} if better else best
        self.memory = {**self.memory, "looks": looks, "best": best}
        if self.patience and better:
            self._keep(model)
        if self.patience and len(looks) - best["look"] >= self.patience:
            control.should_training_stop = True
        self._warn(looks)

    def measured(self, logs: dict[str, Any]) -> dict[str, float]:
        """What is added to an evaluation's own numbers."""
        trainer, found = self.trainer, dict[str, float]()
        if logs.get("eval_reward") is not None:
            kl = logs.get("eval_rewards/sequence_kl/mean")
            j = logs["eval_reward"]  # with the sequence's KL as a reward function, this is J itself
            if kl is None and logs.get("eval_kl") is not None:  # TRL's is per token, and not in its reward
                kl = logs["eval_kl"] * logs["eval_completions/mean_length"]
                j -= trainer.beta * kl
            found |= {"eval_J": j} | ({} if kl is None else {"eval_kl_of_responses": kl})
        if self.texts:
            model = trainer.accelerator.unwrap_model(trainer.model)
            found["eval_bits_per_byte"] = text_bits(model, trainer.processing_class, self.texts).per_byte
        return found

    def finish(self, model: PreTrainedModel) -> dict[str, object]:
        """Put the best look's weights into the model where early stopping kept them; the run's metrics."""
        import torch

        best, looks = self.memory["best"], self.memory["looks"]
        if self.patience and best is not None:
            saved = torch.load(self.folder / f"{best['step']}.pt", weights_only=True)
            own = dict(model.named_parameters())
            with torch.no_grad():
                for name, values in saved.items():
                    own[name].copy_(values)
        checkpoints.drop(self.folder)
        return {"looks": looks, "best_step": None if best is None else best["step"], "kept_best": bool(self.patience)}

    def _keep(self, model: PreTrainedModel) -> None:
        import torch

        checkpoints.claim(self.folder)
        weights = {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}
        torch.save(weights, self.folder / f"{self.memory['best']['step']}.pt")
        # A call that was killed resumes from a checkpoint before its last looks: theirs are needed until the end.
        for file in sorted(self.folder.glob("*.pt"), key=lambda path: int(path.stem))[:-3]:
            file.unlink()

    def _warn(self, looks: Sequence[dict[str, float]]) -> None:
        first, last = looks[0], looks[-1]
        bits, before = last.get("eval_bits_per_byte"), first.get("eval_bits_per_byte")
        said = []
        if bits is not None and before and not bits < WORSE_BITS * before:
            said.append(f"held-out prompts cost {bits:.3g} bits per byte, {before:.3g} at the start")
        if last.get("eval_kl_of_responses", 0.0) > MUCH_KL:
            said.append(f"the KL is {last['eval_kl_of_responses']:.0f} nats per response, above {MUCH_KL:g}")
        if said and not self.memory["warned"]:
            self.memory = {**self.memory, "warned": True}
            print(
                f"align: warning: step {last['step']}: the language model is being destroyed ({'; '.join(said)}); "
                "lower learning_rate, raise beta, or stop earlier (early_stopping)",
                file=sys.stderr,
            )
