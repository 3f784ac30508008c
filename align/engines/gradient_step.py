"""A training step on K gradients, one per objective: averaged over micro-batches and processes, then combined once.

`CombinedGradients` goes before a trainer class (DPO, RLOO, GRPO) and adds a few lines around `super()` of two methods:

- `_compute_loss` asks the trainer for its own loss once per objective, on one shared forward pass, and hands back a
  stand-in of the same value that no weight depends on, so that the trainer's backward pass does nothing but leave in
  the stand-in's gradient the factor by which losses are scaled here (1/n under accumulation, or 1 where they are so
  already);
- `training_step` then back-propagates the K losses by that factor. On the last micro-batch the K sums are averaged over
  processes, combined *once*, and written to `p.grad`: clipping and the optimiser follow as for any gradient.

Combining needs the gradients of the whole step: combining per micro-batch or per process and then averaging is another
method (a noisier conflict), and combining without averaging lets the processes' weights drift apart. The published RACO
code combines per micro-batch and averages over no processes. Costs K - 1 backward passes more, and K + 1 flat copies of
the trained weights, K of them in fp32.
Legend: K objectives, D trained weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from align.errors import UserError
from align.functional.combine import Combination, cosines_of
from align.training.common import Remembering

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor
    from transformers import PreTrainedModel, Trainer, TrainerState, TrainingArguments

_CHUNK = 1 << 22  # weights that are held in double precision at a time


class CombinedGradients(ABC):
    """Put before a trainer class, with an `objective_inputs`; `combine` then sets it to work."""

    combining: ObjectiveGradients
    accelerator: Accelerator
    state: TrainerState
    model: PreTrainedModel

    @abstractmethod
    def objective_inputs(self, inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """The inputs of the trainer's own loss, one objective after the other, in the order of the weights."""

    def training_step(
        self, model: PreTrainedModel, inputs: dict[str, Tensor], num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        with self.accelerator.no_sync(model):  # nothing is averaged over processes before all of it is known
            loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        self.combining.backward(model)
        if self.accelerator.sync_gradients:
            self.combining.write(model, accelerator=self.accelerator, step=self.state.global_step)
        return loss

    def _compute_loss(self, model: PreTrainedModel, inputs: dict[str, Tensor], *others: object) -> Tensor:
        forward, losses = SharedForward(model), []
        for part in self.objective_inputs(inputs):
            losses.append(super()._compute_loss(forward, part, *others))  # type: ignore[misc]
        return self.combining.stand_in(losses)


def combine(trainer: Trainer, combination: Combination) -> ConflictRecord:
    """Set a `CombinedGradients` trainer to work; what its steps showed of the conflict gathers in the record returned.

    UserError for processes that share out the weights or gradients of one model: there is no whole gradient to combine.
    """
    kind = str(trainer.accelerator.distributed_type).rpartition(".")[2]
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise UserError(f"gradients cannot be combined under {kind}, which splits them; use plain data parallelism")
    record = ConflictRecord(combination.names)
    trainer.combining = ObjectiveGradients(combination, record)
    trainer.add_callback(record)
    return record


class SharedForward:
    """A model whose forward pass runs at the first call and is remembered: all later calls get the first's output."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.output: Any = None

    def __call__(self, *args: object, **inputs: object) -> object:
        if self.output is None:
            self.output = self.model(*args, **inputs)
        return self.output


class ObjectiveGradients:
    """The K gradients of the step in progress."""

    def __init__(self, combination: Combination, record: ConflictRecord) -> None:
        self.combination, self.record = combination, record
        self._losses: list[Tensor] = []
        self._stand_in: Any = None
        self._sums_KD: Any = None
        self._used: list[bool] = []

    def stand_in(self, losses: Sequence[Tensor]) -> Tensor:
        """A scalar worth `sum_k w_k L_k` on which no weight depends; keeps the losses for `backward`."""
        self._losses = list(losses)
        total = sum(w * loss.detach() for w, loss in zip(self.combination.weights, losses, strict=True))
        self._stand_in = total.requires_grad_()  # type: ignore[union-attr]
        return self._stand_in

    def backward(self, model: PreTrainedModel) -> None:
        """Add each objective's gradients, scaled as the trainer scaled the stand-in, to the sums of this step."""
        import torch

        trained = _trained(model)
        if self._sums_KD is None:
            size = sum(p.numel() for p in trained)
            self._sums_KD = torch.zeros(len(self._losses), size, dtype=torch.float32, device=trained[0].device)
            self._used = [False] * len(trained)
        for row_D, loss in zip(self._sums_KD, self._losses, strict=True):
            last = loss is self._losses[-1]
            found = torch.autograd.grad(
                loss, trained, grad_outputs=self._stand_in.grad, retain_graph=not last, allow_unused=True
            )
            for i, (part, gradient) in enumerate(zip(_parts(row_D, trained), found, strict=True)):
                if gradient is not None:
                    part += gradient
                    self._used[i] = True
        self._losses, self._stand_in = [], None

    def write(self, model: PreTrainedModel, *, accelerator: Accelerator, step: int) -> None:
        """Average over processes, combine, write `p.grad` of every weight that a loss depends on, and clear the sums.

        UserError when a gradient is not finite.
        """
        import torch
        from accelerate.utils import broadcast

        for row_D in self._sums_KD:
            row_D.copy_(accelerator.reduce(row_D, reduction="mean"))
        gram_KK = gram_of(self._sums_KD)
        if not np.isfinite(gram_KK).all():
            raise UserError("training diverged (a gradient is not finite); lower learning_rate, or check the model")
        coefficients_K = self.combination.coefficients(gram_KK, step=step)
        # One and the same step on every process, down to the last bit.
        coefficients_K = broadcast(torch.tensor(coefficients_K, device=self._sums_KD.device)).cpu().numpy()
        combined_D = self._sums_KD[0] * coefficients_K[0]
        for row_D, coefficient in zip(self._sums_KD[1:], coefficients_K[1:], strict=True):
            combined_D += row_D * coefficient
        trained = _trained(model)
        for p, part, used in zip(trained, _parts(combined_D, trained), self._used, strict=True):
            p.grad = part.to(p.dtype) if used else None
        self._sums_KD.zero_()
        self.record.add(gram_KK, coefficients_K)


def _trained(model: PreTrainedModel) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def _parts(flat_D: Tensor, trained: Sequence[Tensor]) -> Iterator[Tensor]:
    """Views of a flat vector in the shapes of the trained weights."""
    start = 0
    for p in trained:
        yield flat_D[start : start + p.numel()].view_as(p)
        start += p.numel()


def gram_of(gradients_KD: Tensor) -> np.ndarray:
    """(K, K) inner products of the rows of a tensor, summed in double precision."""
    import torch

    gram_KK = torch.zeros(len(gradients_KD), len(gradients_KD), dtype=torch.float64, device=gradients_KD.device)
    for part in gradients_KD.split(_CHUNK, dim=1):
        wide = part.double()
        gram_KK += wide @ wide.T
    return gram_KK.cpu().numpy()


class ConflictRecord(Remembering):
    """How far the objectives' gradients disagreed, step by step, and the coefficients they got.

    Kept in the trainer's own state, so that a resumed run goes on counting.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        table = np.zeros((len(names), len(names))).tolist()
        nothing = {"steps": 0, "conflicting": 0, "cosines": table, "defined": table, "shares": [0.0] * len(names)}
        self.memory: dict[str, Any] = {"sums": nothing, "logged": nothing, "trace": []}

    def add(self, gram_KK: np.ndarray, coefficients_K: np.ndarray) -> None:
        """Count one step."""
        cosines_KK = cosines_of(gram_KK)
        defined_KK = np.isfinite(cosines_KK)
        step = {
            "steps": 1,
            "conflicting": int((cosines_KK < 0).any()),  # nan is no conflict
            "cosines": np.where(defined_KK, cosines_KK, 0.0),
            "defined": defined_KK.astype(float),
            "shares": coefficients_K / max(coefficients_K.sum(), np.finfo(float).tiny),
        }
        sums = self.memory["sums"]
        self.memory = {**self.memory, "sums": {name: (np.add(sums[name], step[name])).tolist() for name in step}}

    def report(self) -> dict[str, object]:
        """Metrics: the mean cosine of each pair of gradients (None where one was 0 at every step), the share of steps
        at which some pair conflicts, each objective's mean share of the coefficients, and the `trace`: the same of the
        steps between logs. Where the steps have come to vanish, the shares there are weights whose weighted sum is
        stationary.
        """
        return {**self._means(self.memory["sums"]), "trace": self.memory["trace"]}

    def _means(self, sums: dict[str, Any]) -> dict[str, object]:
        steps = max(sums["steps"], 1)
        with np.errstate(invalid="ignore"):
            cosines_KK = np.array(sums["cosines"]) / np.array(sums["defined"])
        return {
            "gradient_cosines": self._named(cosines_KK),
            "conflicting_steps": sums["conflicting"] / steps,
            "coefficient_shares": self._named(np.array(sums["shares"]) / steps),
        }

    def _named(self, values: np.ndarray) -> dict[str, object]:
        if values.ndim == 2:
            return {name: self._named(row) for name, row in zip(self.names, values, strict=True)}
        return {name: float(v) if np.isfinite(v) else None for name, v in zip(self.names, values, strict=True)}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        if state.global_step % args.logging_steps == 0:
            sums, logged = self.memory["sums"], self.memory["logged"]
            between = {name: np.subtract(sums[name], logged[name]).tolist() for name in sums}
            entry = {"step": state.global_step, **self._means(between)}
            self.memory = {"sums": sums, "logged": sums, "trace": [*self.memory["trace"], entry]}
