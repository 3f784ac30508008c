"""What on-policy training shows of the conflict, step by step: which objectives pull apart, which are trained down.

`attach` adds a callback to an RLOO or GRPO trainer. After each step it reads the scores that the step's reward
functions have given anyway: nothing is asked or charged a second time, and an objective that the point does not ask
(weight 0) is absent. Within each prompt's group of samples it measures Kendall's rank correlation of every two
objectives, and each objective's covariance with the advantage of the weighted sum. To first order a policy-gradient
step raises E[r_k] in proportion to that covariance: below 0, the step trains the objective down.

The advantage is, as far as it can be had without touching the trainer, and `report` says which:

- as the update used it, where the trainer keeps it (`weight_control.KeepAdvantages`; RLOO's is S / (S - 1) times the
  centred reward, its baseline leaving the sample itself out);
- else the row's centred weighted reward with the sequence's KL in it, where that is a reward function (GRPO);
- else the same without the KL penalty (RLOO computes it inside, per-token KL never is a reward): what the rewards pull
  at, without the penalty's pull back to the reference, which at an optimum is as large.

Group or batch scaling and z-scores of objectives are not applied, nor are combinations of gradients other than the sum.
Legend: B completions of one step over all processes, P prompts, S completions of a prompt, K objectives, F functions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from align.functional.conflict import covariance_of_groups, rank_correlation_of_groups
from align.objectives.metered import Metered, objectives_of
from align.training.common import Remembering

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import Trainer, TrainerState, TrainingArguments

POINTS = 50  # of the trace, at most; a longer run is averaged over equal windows of steps
AS_USED = "advantage as the update used it, KL penalty included"
WITH_KL = "centred weighted reward, KL penalty included"
WITHOUT_KL = "centred weighted reward, without the KL penalty"


def attach(trainer: Trainer) -> ConflictLog | None:
    """Add the callback; None, and nothing added, where fewer than two objectives are asked.

    Reward functions that keep no scores of their own are put into a `Kept` in `trainer.reward_funcs`, so that their
    part of the reward (the KL, a sum with the row's own weights) is known.
    """
    objectives = objectives_of(trainer.reward_funcs)
    if len(objectives) < 2:
        return None
    trainer.reward_funcs = [f if isinstance(f, Metered) else Kept(f) for f in trainer.reward_funcs]
    log = ConflictLog(trainer, objectives=objectives)
    trainer.add_callback(log)
    return log


class Kept:
    """A reward function whose latest scores are kept in `last`."""

    def __init__(self, function: Callable[..., list[float | None]]) -> None:
        self.__name__, self.function = function.__name__, function
        self.last: list[float | None] = []

    def __call__(self, *args: object, **columns: object) -> list[float | None]:
        self.last = self.function(*args, **columns)
        return self.last


class ConflictLog(Remembering):
    """The callback; its sums are saved in the trainer's own state, so that a resumed run goes on with them."""

    def __init__(self, trainer: Trainer, *, objectives: Sequence[Metered]) -> None:
        self.trainer, self.objectives = trainer, list(objectives)
        self.pairs = list(itertools.combinations(range(len(objectives)), 2))
        if hasattr(trainer, "latest_advantages"):
            self.advantage = AS_USED
        else:
            penalised = any(f.__name__ == "sequence_kl" for f in trainer.reward_funcs)
            self.advantage = WITH_KL if penalised else WITHOUT_KL
        self.memory: dict[str, Any] = {"windows": []}
        self._weights_F: list[float] = []

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        self._weights_F = self.trainer.reward_weights.tolist()  # a controller moves them before on_step_end

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        rewards_BK, advantages_B = self._observe()
        size = self.trainer.num_generations
        rewards_PSK = rewards_BK.reshape(-1, size, len(self.objectives))
        covariance_K = covariance_of_groups(rewards_PSK, advantages_PS=advantages_B.reshape(-1, size))
        correlation_KK = rank_correlation_of_groups(rewards_PSK).values_KK
        found = np.array([*covariance_K, *(correlation_KK[pair] for pair in self.pairs)])
        known, values = np.isfinite(found), np.nan_to_num(found)
        window = (state.global_step - 1) // math.ceil(state.max_steps / POINTS)
        earlier = self.memory["windows"]
        if earlier and earlier[-1]["window"] == window:
            values, known = values + earlier[-1]["sums"], known + np.array(earlier[-1]["counts"])
            earlier = earlier[:-1]
        entry = {"window": window, "step": state.global_step}
        entry |= {"sums": values.tolist(), "counts": known.astype(int).tolist()}
        self.memory = {"windows": [*earlier, entry]}

    def report(self) -> dict[str, object]:
        """`names`, `pairs` of names, `advantage` (in words) and `trace`: at most 50 points {step, covariance (one per
        name), rank_correlation (one per pair)}, means over the steps since the point before; None where undefined.

        Covariances are in units of the objective's times the weighted reward's.
        """
        names = [objective.__name__ for objective in self.objectives]
        trace = []
        for window in self.memory["windows"]:
            means = [s / n if n else None for s, n in zip(window["sums"], window["counts"], strict=True)]
            covariance, correlation = means[: len(names)], means[len(names) :]
            trace.append({"step": window["step"], "covariance": covariance, "rank_correlation": correlation})
        return {
            "names": names,
            "pairs": [[names[a], names[b]] for a, b in self.pairs],
            "advantage": self.advantage,
            "trace": trace,
        }

    def _observe(self) -> tuple[np.ndarray, np.ndarray]:
        """(B, K) scores of the step, nan where an objective does not apply, and (B,) its advantages."""
        import torch

        columns = [objective.last for objective in self.objectives]
        if self.advantage == AS_USED:
            columns.append(self.trainer.latest_advantages.tolist())
        else:
            columns += [function.last for function in self.trainer.reward_funcs]
        accelerator = self.trainer.accelerator
        local_BC = torch.tensor(np.array(columns, dtype=float).T.copy(), device=accelerator.device)  # None becomes nan
        table_BC = accelerator.gather(local_BC).cpu().numpy()
        rewards_BK, rest = table_BC[:, : len(self.objectives)], table_BC[:, len(self.objectives) :]
        if self.advantage == AS_USED:
            return rewards_BK, rest[:, 0]
        return rewards_BK, centred_sum(rest, weights_F=self._weights_F, group=self.trainer.num_generations)


def centred_sum(scores_BF: np.ndarray, *, weights_F: Sequence[float], group: int) -> np.ndarray:
    """`sum_f w_f s_f` less its mean over the prompt's group; a function that does not apply (nan) has no part in it, as
    in `partial_rewards`.
    """
    scores_PSF = scores_BF.reshape(-1, group, scores_BF.shape[1])
    known_PSF = np.isfinite(scores_PSF)
    counts_P1F = np.maximum(known_PSF.sum(1, keepdims=True), 1)
    means_P1F = np.where(known_PSF, scores_PSF, 0.0).sum(1, keepdims=True) / counts_P1F
    centred_PSF = np.where(known_PSF, scores_PSF - means_P1F, 0.0)
    return (centred_PSF @ np.asarray(weights_F, dtype=float)).ravel()
