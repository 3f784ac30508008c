"""Reward weights that move while a policy trains: after each step a rule reads the scores and sets the next weights.

A rule (`Rule`) is pure: it maps its own memory, plain JSON, and what the last batch showed to the next memory, and the
memory to one weight per objective. `WeightControl` is the callback around it. It writes the objectives' weights only:
the KL's coefficient (TRL's beta with RLOO, the weight of `SequenceKL` with GRPO) never moves. The memory is saved in
the trainer's own state, so that a resumed run goes on with the weights that it had.
Legend: B completions of one step over all processes, groups of one prompt together; K objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from align.engines.on_policy import trainer as onpolicy
from align.engines.on_policy.trainer import AlgorithmConfig
from align.engines.problem import P, Problem
from align.objectives.metered import Metered
from align.runs import Workspace
from align.training.common import Remembering

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer, TrainerState, TrainingArguments
    from trl import GRPOTrainer, RLOOTrainer

Memory = dict[str, Any]


@dataclass(frozen=True)
class Observed:
    """What the policy's latest samples showed: scores (B, K), nan where an objective does not apply; advantages (B,)
    as the update used them (None unless the rule reads them); `group` completions share a prompt.
    """

    scores_BK: np.ndarray
    group: int
    advantages_B: np.ndarray | None = None

    @property
    def means_K(self) -> list[float | None]:
        """Each objective's mean over the completions it applies to; None where it applies to none."""
        columns = [column[~np.isnan(column)] for column in self.scores_BK.T]
        return [float(column.mean()) if len(column) else None for column in columns]


def smoothed(
    earlier_K: Sequence[float | None] | None, new_K: Sequence[float | None], *, decay: float
) -> list[float | None]:
    """Exponential moving average `decay * earlier + (1 - decay) * new`, which starts at the first value (no pull to 0).

    None is no observation: the earlier value stays.
    """
    if earlier_K is None:
        return list(new_K)
    pairs = zip(earlier_K, new_K, strict=True)
    return [new if old is None else old if new is None else decay * old + (1 - decay) * new for old, new in pairs]


class Rule(Protocol):
    """How weights follow from what was observed; a memory is plain JSON and is never changed in place."""

    @property
    def reads_advantages(self) -> bool:
        """Whether `Observed` must carry advantages."""
        ...

    def start(self) -> Memory:
        """The memory before the first batch."""
        ...

    def step(self, memory: Memory, observed: Observed) -> Memory:
        """The memory after a batch."""
        ...

    def weights(self, memory: Memory) -> Sequence[float]:
        """The coefficient of each objective's expected reward in what the next batch ascends."""
        ...

    def report(self, memory: Memory) -> Mapping[str, object]:
        """Metrics of the finished run."""
        ...


class WeightControl(Remembering):
    """Moves the weights of the trainer's first K reward functions, which are `objectives`, by `rule`.

    The rule's weights are those of `E[r_k | k applies]`. An objective has no part where it does not apply, so its
    share p of the completions is a factor of its gradient, and the trainer gets `weight / p` (p over all samples so
    far; exact where the prompt decides what applies). ValueError when the first reward functions are not `objectives`.
    """

    def __init__(self, trainer: Trainer, *, objectives: Sequence[Metered], rule: Rule) -> None:
        if list(trainer.reward_funcs[: len(objectives)]) != list(objectives):
            raise ValueError("the trainer's first reward functions must be the controlled objectives, in their order")
        self.trainer, self.objectives, self.rule = trainer, list(objectives), rule
        self.memory: Memory = {"rule": rule.start(), "applied": [0] * len(self.objectives), "seen": 0, "trace": []}
        self._apply()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        super().on_train_begin(args, state)
        self._apply()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        observed = self._observe()
        applied_K = (~np.isnan(observed.scores_BK)).sum(0)
        self.memory = {
            "rule": self.rule.step(self.memory["rule"], observed),
            "applied": [before + int(n) for before, n in zip(self.memory["applied"], applied_K, strict=True)],
            "seen": self.memory["seen"] + len(observed.scores_BK),
            "trace": self.memory["trace"],
        }
        if state.global_step % args.logging_steps == 0:
            point = {"step": state.global_step, "weights": self.weights(), "means": observed.means_K}
            self.memory["trace"] = [*self.memory["trace"], point]
        self._apply()

    def weights(self) -> list[float]:
        """The rule's current weights."""
        return [float(w) for w in self.rule.weights(self.memory["rule"])]

    def report(self) -> dict[str, object]:
        """The rule's metrics, the last `weights` by objective, and the `trace`: weights and means at every log."""
        names = [objective.__name__ for objective in self.objectives]
        return {
            **self.rule.report(self.memory["rule"]),
            "weights": dict(zip(names, self.weights(), strict=True)),
            "trace": self.memory["trace"],
        }

    def _apply(self) -> None:
        import torch

        seen = self.memory["seen"]
        shares_K = [n / seen if n else 1.0 for n in self.memory["applied"]]
        moved = self.trainer.reward_weights.clone()
        moved[: len(shares_K)] = torch.tensor([w / s for w, s in zip(self.weights(), shares_K, strict=True)])
        self.trainer.reward_weights = moved

    def _observe(self) -> Observed:
        import torch

        accelerator = self.trainer.accelerator
        columns_KB = [[np.nan if s is None else s for s in objective.last] for objective in self.objectives]
        if self.rule.reads_advantages:
            columns_KB.append(self.trainer.latest_advantages.tolist())
        local_BK = torch.tensor(columns_KB, dtype=torch.float64, device=accelerator.device).T.contiguous()
        table_BK = accelerator.gather(local_BK).cpu().numpy()
        advantages_B = table_BK[:, -1] if self.rule.reads_advantages else None
        return Observed(table_BK[:, : len(self.objectives)], self.trainer.num_generations, advantages_B)


class KeepAdvantages:
    """Put before RLOOTrainer or GRPOTrainer: keeps the advantages of this process's latest samples, in their order."""

    latest_advantages: Tensor | None = None

    def _generate_and_score_completions(self, inputs: list[dict[str, object]]) -> dict[str, Tensor]:
        output = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        self.latest_advantages = output["advantages"].detach()
        return output


def controlled_trainer(
    config: AlgorithmConfig, problem: Problem[P], run: Workspace, *, rule: Rule
) -> tuple[RLOOTrainer | GRPOTrainer, WeightControl]:
    """An on-policy trainer (`config.algorithm`: rloo or grpo, sequence KL, unscaled rewards) and its control."""
    from trl import GRPOTrainer, RLOOTrainer

    base = {"rloo": RLOOTrainer, "grpo": GRPOTrainer}[config.algorithm]
    reward_funcs = onpolicy.metered(problem.objectives, ledger=run.ledger)
    trainer_class = type(base.__name__, (KeepAdvantages, base), {}) if rule.reads_advantages else None
    trainer = onpolicy.build_trainer(
        config,
        problem,
        run,
        rewards=list(zip(reward_funcs, map(float, rule.weights(rule.start())), strict=True)),
        update=onpolicy.Update(algorithm=config.algorithm, trainer_class=trainer_class),
    )
    control = WeightControl(trainer, objectives=reward_funcs, rule=rule)
    trainer.add_callback(control)
    return trainer, control


def train_point(
    config: AlgorithmConfig, problem: Problem[P], run: Workspace, *, rule: Rule, label: str
) -> dict[str, object]:
    """Train one point to its last step under `rule`; last means and the report."""
    trainer, control = controlled_trainer(config, problem, run, rule=rule)
    means = onpolicy.run_trainer(trainer, label=label, folder=run.folder, ledger=run.ledger)
    return {**means, **control.report()}
