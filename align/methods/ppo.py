"""Proximal policy optimisation (PPO) on a weighted sum of objectives, one run per preference, in a loop of our own.

TRL has no PPO any more; this is a small reference for `J = E[w . r] - beta KL(pi || ref)` by clipped policy gradients
(Schulman et al. 2017; Ouyang et al. 2022). The KL is a reward of every token, whose sum is the sequence's log-ratio:
with gamma = 1 the expected first update is along the gradient of J. What departs from that has a name in `Config`.

Deviations from the code of Ziegler et al. 2019, whose terms would change J or hide it:
- beta is fixed, not steered to a KL target; rewards are neither whitened nor discounted; advantages are whitened only
  when asked; losses are summed over a response's tokens, whose number differs here, and averaged over responses.
- The value's head has its own learning rate and passes no gradient into the policy: at lam = 1 its errors bias nothing.
Legend: B responses, T response tokens, K objectives.
Data: prompts. Fixed point: the optimum of J.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align import checks
from align.data.comparisons import Row
from align.engines.on_policy import trainer as onpolicy
from align.engines.on_policy.actor_critic import ActorCritic
from align.engines.on_policy.partial_rewards import filled
from align.engines.on_policy.prompts import check_lengths, counted, sayable
from align.engines.on_policy.rollouts import Rollouts, draw
from align.engines.points import check_preferences, train_points
from align.engines.problem import Problem
from align.engines.settings import check_training, trainer_arguments
from align.errors import UserError
from align.functional.policy_gradient import (
    Targets,
    beyond_clip,
    clipped_policy_loss,
    gae,
    token_rewards,
    value_loss,
    whiten,
)
from align.models import count_parameters, save_model
from align.models.formats import formatter
from align.models.sampling import plain_sampling
from align.policies.base import PointFamily
from align.preferences import Weights
from align.runs import Workspace
from align.training.common import Progress
from align.training.logs import LoopLog
from align.training.model_settings import refuse_lora_dropout

if TYPE_CHECKING:
    from torch import Tensor

ASKED_BY = (Weights,)
FAMILY = PointFamily


@dataclass(frozen=True, kw_only=True)
class Config(onpolicy.OnPolicyConfig):
    """A step draws batch_size (the rows of a pass) x gradient_accumulation samples for epochs x minibatches updates."""

    num_generations: int = 1  # responses per prompt: the baseline is the value, not a group
    epochs: int = 2  # passes over each batch of samples
    minibatches: int = 2  # updates per pass
    clip: float = 0.2  # how far from 1 a token's ratio still pulls
    lam: float = 1.0  # of GAE; below 1 (0.95 is usual) less variance, and the value's errors bias the gradient of J
    value_learning_rate: float = 0.1  # about how far an update moves a value at most; on the same schedule
    value_clip: float = 0.0  # in reward units; 0 does not clip
    whiten: bool = False  # advantages to mean 0 and spread 1 in each batch: J's direction, steps that never shrink
    scheduler: str = "linear"


def fit(config: Config, problem: Problem[Weights], run: Workspace) -> PointFamily:
    """One policy per preference, trained on samples for the prompts. Comparisons are not used.

    Objectives of weight 0 are not asked. None counts as the mean of an objective's scores in the group, or in the batch
    where a prompt has one response. UserError on an impossible configuration or when there are no prompts.
    """
    check_preferences(problem)
    check_config(config)
    rows = onpolicy.required_prompts(problem, method="ppo")

    def body(weights: Weights, point: Workspace) -> Mapping[str, object]:
        return Trainer(config, problem, point, weights=weights).train(rows)

    return train_points(
        "ppo", config, problem, run, rows=rows, body=body, optimises=lambda w: describe(config, weights=w)
    )


def check_config(config: Config) -> None:
    """UserError on a value that this loop cannot mean."""
    check_training(config)
    refuse_lora_dropout(config)
    checks.at_least(1, config, "steps", "max_completion_length", "num_generations", "epochs", "minibatches")
    checks.at_least(0, config, "value_learning_rate", "value_clip")
    samples = config.batch_size * config.gradient_accumulation
    for name in ("num_generations", "minibatches"):
        if samples % getattr(config, name):
            raise UserError(f"{samples} samples a step do not divide by {name} = {getattr(config, name)}")
    if not 0 < config.clip < 1:
        raise UserError(f"clip must be between 0 and 1, not {config.clip:g}")
    if not 0 <= config.lam <= 1:
        raise UserError(f"lam must be in [0, 1], not {config.lam:g}")
    if config.save_steps is not None:
        raise UserError("ppo writes no checkpoints while it trains; leave save_steps out")
    if config.gradient_checkpointing:
        raise UserError("ppo reads its policy in eval mode, without checkpoints; leave gradient_checkpointing out")


def describe(config: Config, *, weights: Weights) -> str:
    """One line: what a point's training really optimises."""
    target = f"E[w.r] - {config.beta:g} KL(pi||ref) at w = {weights.label}, on-policy ppo: sequence KL in token rewards"
    updates = f"{config.epochs} x {config.minibatches} updates per batch of samples, ratio clipped at {config.clip:g}"
    if config.epochs * config.minibatches > 1:
        updates += " (those after the first on a surrogate of J)"
    value = "whole returns (lam 1)" if config.lam == 1 else f"GAE at lam {config.lam:g} (biased by the value's error)"
    scale = "whitened per batch (J's direction, steps that never shrink)" if config.whiten else "unscaled"
    return f"{target}, {updates}, {value}, advantages {scale}"


class Trainer:
    """The loop of one preference: draw, score, update."""

    def __init__(self, config: Config, problem: Problem[Weights], run: Workspace, *, weights: Weights) -> None:
        import torch
        from transformers import get_scheduler
        torch.manual_seed(config.seed)  # of sampling, of the order of rows and of a new adapter
        asked = {name: f for (name, f), w in zip(problem.objectives.items(), weights, strict=True) if w}
        self.config, self.run, self.label = config, run, f"ppo {weights.label}"
        actor = self.actor = ActorCritic(problem.reference, config)
        self.rewards = onpolicy.metered(asked, ledger=run.ledger, policy=actor.policy, tokenizer=actor.tokenizer)
        self.weights, self.size = [w for w in weights if w], count_parameters(actor.policy, embeddings=False)
        groups = self.actor.groups(weight_decay=config.weight_decay, value_learning_rate=config.value_learning_rate)
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
        updates = config.steps * config.epochs * config.minibatches
        warmup = math.ceil(config.warmup * updates if config.warmup < 1 else config.warmup)
        self.scheduler = get_scheduler(config.scheduler, self.optimizer, warmup, updates)

    def train(self, prompts: Sequence[Row]) -> dict[str, object]:
        """All steps; saves `run.folder/model` and gives the means of the last `logging_steps` of them.

        Also how many prompts were left out, by reason, where the prompt format cannot say them.
        """
        config, actor, history = self.config, self.actor, list[dict[str, float]]()
        most = config.max_completion_length
        prompts, left_out = sayable(prompts, formatter(actor.tokenizer), model=actor.model, max_tokens=most)
        check_lengths(prompts, model=actor.model, tokenizer=actor.tokenizer, max_tokens=most)
        schedule = onpolicy.schedule(prompts, config=config, ledger=self.run.ledger)
        groups = len(schedule) // config.steps
        arguments = trainer_arguments(config, self.run.folder, max_steps=config.steps)
        watched = {"model": actor.policy, "tokenizer": actor.tokenizer}
        log = LoopLog(arguments, **watched, label=self.label, callbacks=[Progress(self.label)])
        log.begin()
        try:
            with plain_sampling(actor.model, actor.tokenizer, max_tokens=config.max_completion_length) as ends:
                for start in range(0, len(schedule), groups):
                    history.append(self.step(schedule[start : start + groups], ends=ends))
                    log.step({"loss": -history[-1]["reward"], **history[-1]})  # -J as sampled
        except RuntimeError:
            checks.finite_weights(actor.policy)  # sampling from a policy that is not a number
            raise
        finally:
            log.end()
        save_model(actor.policy, actor.tokenizer, self.run.folder / "model")
        last = history[-config.logging_steps :]
        means = {name: sum(entry[name] for entry in last) / len(last) for name in last[0]}
        return {**means, **counted(left_out)}

    def step(self, columns: Mapping[str, Sequence[str]], *, ends: Sequence[int]) -> dict[str, float]:
        """Draw and score one batch, update on it epochs x minibatches times; what was measured on it."""
        import torch

        config, actor = self.config, self.actor
        rows = {name: [v for v in values for _ in range(config.num_generations)] for name, values in columns.items()}
        batch = draw(actor.policy, actor.tokenizer, rows["prompt"], ends=ends, batch_size=config.batch_size)
        scores_BK = self.scores(batch, rows)
        group = config.num_generations if config.num_generations > 1 else len(scores_BK)
        total_B = filled(scores_BK, group=group).nan_to_num() @ scores_BK.new_tensor(self.weights)
        targets, measured = self.targets(batch, scores_B=total_B)
        clipped = 0
        for _ in range(config.epochs):
            order = torch.randperm(len(scores_BK)) if config.minibatches > 1 else torch.arange(len(scores_BK))
            for index in order.chunk(config.minibatches):
                clipped += self.update(batch.rows(index), targets.rows(index))
        tokens = int(batch.attend_BL.sum())  # a pass of training is 6 N each; sampling and two readings are 2 N each
        self.run.ledger.add(tokens=config.epochs * tokens, flops=6.0 * self.size * tokens * (config.epochs + 1))
        means_K = scores_BK.nanmean(0).nan_to_num().tolist()
        named = {f"rewards/{f.__name__}/mean": mean for f, mean in zip(self.rewards, means_K, strict=True)}
        weighed = zip(self.rewards, self.weights, means_K, strict=True)
        named |= {f"rewards/{f.__name__}/weighted": weight * mean for f, weight, mean in weighed}
        return {**measured, **named, "clipped": clipped / (config.epochs * int(batch.mask_BT.sum()))}

    def scores(self, batch: Rollouts, rows: Mapping[str, Sequence[str]]) -> Tensor:
        """(B, K) scores of the objectives that are asked, in TRL's calling convention; None becomes NaN."""
        import torch

        ids, form = batch.responses(), formatter(self.actor.tokenizer)
        texts = [form.decode(response) for response in ids]
        columns = {name: values for name, values in rows.items() if name != "prompt"}
        asked = (f(rows["prompt"], texts, completion_ids=ids, **columns) for f in self.rewards)
        scores_KB = [[math.nan if score is None else score for score in scores] for scores in asked]
        return torch.tensor(scores_KB, device=batch.ids_BL.device).T

    def targets(self, batch: Rollouts, *, scores_B: Tensor) -> tuple[Targets, dict[str, float]]:
        """What the updates compare with; the batch's mean reward less beta KL, its KL, and the value's error (RMS)."""
        import torch

        config, mask_BT = self.config, batch.mask_BT
        with torch.no_grad():
            parts = batch.parts(config.batch_size)
            readings = [(*self.actor.read(part), self.actor.read_reference(part)) for part in parts]
            old_BT, values_BT, ref_BT = (torch.cat(tensors) for tensors in zip(*readings, strict=True))
        rewards_BT = token_rewards(scores_B, logp_BT=old_BT, ref_BT=ref_BT, mask_BT=mask_BT, beta=config.beta)
        plain_BT = gae(rewards_BT, values_BT=values_BT, mask_BT=mask_BT, lam=config.lam)
        advantages_BT = whiten(plain_BT, mask_BT=mask_BT) if config.whiten else plain_BT
        measured = {
            "reward": float(rewards_BT.sum(-1).mean()),
            "kl": float((old_BT - ref_BT).sum(-1).mean()),
            "value_error": float(plain_BT[mask_BT].square().mean().sqrt()),
        }
        return Targets(old_BT, values_BT, advantages_BT, plain_BT + values_BT), measured

    def losses(self, batch: Rollouts, targets: Targets) -> tuple[Tensor, Tensor, int]:
        """(B,) policy loss, (B,) value loss, and the number of tokens beyond the clip."""
        (logp_BT, values_BT), mask_BT, config = self.actor.read(batch), batch.mask_BT, self.config
        common = {"old_BT": targets.old_BT, "mask_BT": mask_BT, "clip": config.clip}
        policy_B = clipped_policy_loss(logp_BT, advantages_BT=targets.advantages_BT, **common)
        value_B = value_loss(
            values_BT, old_BT=targets.values_BT, returns_BT=targets.returns_BT, mask_BT=mask_BT, clip=config.value_clip
        )
        return policy_B, value_B, beyond_clip(logp_BT.detach(), **common)

    def update(self, batch: Rollouts, targets: Targets) -> int:
        """One optimisation step on the mean loss of these responses; the number of tokens beyond the clip."""
        from torch.nn.utils import clip_grad_norm_

        count, size, clipped = len(batch.mask_BT), self.config.batch_size, 0
        for part, compared in zip(batch.parts(size), targets.parts(size), strict=True):
            policy_B, value_B, beyond = self.losses(part, compared)
            ((policy_B + value_B).sum() / count).backward()  # two graphs that share nothing
            clipped += beyond
        if self.config.max_grad_norm:
            for module in (self.actor.policy, self.actor.head):
                clip_grad_norm_(module.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return clipped
