"""Reinforcement learning on a weighted sum of objectives (MORLHF), one run per preference, through TRL's RLOO or GRPO.

The row that is compared at beta optimises `J = E[w . r] - beta KL(pi || ref)` itself: samples at temperature 1 without
truncation, one optimisation step per batch of samples, rewards neither scaled nor clipped, and the sequence's
`beta (log pi - log ref)` subtracted from its reward. Everything that optimises something else has a name in `Config`,
and `describe` says what it is.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align import checks
from align.errors import UserError
from align.methods.base import (
    Metered,
    Objective,
    Row,
    TrainingConfig,
    adapter_config,
    check_preferences,
    check_training,
    inputs_of,
    model_to_train,
    train_points,
    trainer_arguments,
)
from align.policies import PointFamily
from align.preferences import Weights
from align.runs import Ledger

ALGORITHMS = ("rloo", "grpo")
KL_PLACES = ("sequence", "token")
SCALES = ("none", "group", "batch")
AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """How to train; `batch_size` counts completions per device and backward pass, all `gradient_accumulation` of them
    being sampled at once and used for one optimisation step.
    """

    algorithm: str = "rloo"
    # sequence: the whole response's log-ratio in the reward, the exact gradient of J. token (grpo only): a per-token
    # penalty in the loss, blind to how a token changes the prefixes after it; its fixed point is not the optimum of J.
    kl: str = "sequence"
    # none: the gradient of J. group: divides by the prompt's reward spread, which acts as a temperature of each prompt.
    # batch: one global scale, which changes beta's meaning while it drifts.
    scale_rewards: str = "none"
    # normalize_then_sum (GDPO) z-scores each objective within its prompt: the weights are then no exchange rates.
    aggregation: str = "sum_then_normalize"
    steps: int = 200
    num_generations: int = 16  # completions per prompt, the baseline's group
    max_completion_length: int = 64  # tokens, the end token included; longer responses are cut and scored as they are
    batch_size: int = 256
    learning_rate: float = 1e-5
    scheduler: str = "constant"


def fit(
    config: Config,
    *,
    reference: str,
    objectives: Mapping[str, Objective],
    preferences: Sequence[Weights],
    out: Path,
    ledger: Ledger,
    comparisons: Sequence[Row] | None = None,
    prompts: Sequence[Row] | None = None,
) -> PointFamily:
    """One policy per preference, trained on samples for `prompts` (rows with `prompt`). `comparisons` is not used.

    Objectives of weight 0 are not asked. Where an objective does not apply (None) it adds nothing to that completion's
    sum. UserError on an impossible configuration or when there are no prompts.
    """
    check_preferences(preferences, objectives=objectives)
    check_config(config)
    if not prompts:
        raise UserError("morlhf needs prompts to sample from; pass rows with a prompt")

    def body(folder: Path, cost: Ledger, weights: Weights) -> Mapping[str, Any]:
        return train(
            config,
            reference=reference,
            objectives=objectives,
            weights=weights,
            prompts=prompts,
            folder=folder,
            ledger=cost,
        )

    return train_points(
        "morlhf",
        config=config,
        preferences=preferences,
        inputs=inputs_of(reference=reference, objectives=objectives, rows=prompts),
        out=out,
        ledger=ledger,
        body=body,
        optimises=lambda weights: describe(config, weights=weights),
    )


def check_config(config: Config) -> None:
    """UserError on a value or a combination that TRL would refuse, or accept and mean something else by."""
    check_training(config)
    for name, allowed in (
        ("algorithm", ALGORITHMS),
        ("kl", KL_PLACES),
        ("scale_rewards", SCALES),
        ("aggregation", AGGREGATIONS),
    ):
        if getattr(config, name) not in allowed:
            raise UserError(f"{name} must be one of {', '.join(allowed)}, not {getattr(config, name)!r}")
    if config.algorithm == "rloo" and (config.kl, config.scale_rewards, config.aggregation) != (
        "sequence", "none", "sum_then_normalize",
    ):  # fmt: skip
        raise UserError("rloo has sequence KL, unscaled rewards and sum_then_normalize only; set algorithm: grpo")
    if config.aggregation == "normalize_then_sum" and (config.scale_rewards != "none" or config.kl != "token"):
        raise UserError(
            "normalize_then_sum ignores scale_rewards and would z-score a sequence KL as one more objective; "
            "set scale_rewards: none and kl: token"
        )
    completions = config.batch_size * config.gradient_accumulation
    if config.num_generations < 2 or completions % config.num_generations:
        raise UserError(
            f"{completions} completions a step do not divide into groups of num_generations = {config.num_generations}"
        )
    if config.steps < 1 or config.max_completion_length < 1:
        raise UserError("steps and max_completion_length must be at least 1")


def describe(config: Config, *, weights: Weights) -> str:
    """One line: what a point's training really optimises."""
    where = "sequence KL in the reward" if config.kl == "sequence" else "per-token KL in the loss, which is not this J"
    scale = {
        "none": "unscaled rewards",
        "group": "rewards divided by each prompt's spread (another temperature per prompt)",
        "batch": "rewards divided by the batch's spread (a drifting beta)",
    }[config.scale_rewards]
    if config.aggregation == "normalize_then_sum":
        scale = "each objective z-scored per prompt (the weights are no exchange rates)"
    target = f"E[w.r] - {config.beta:g} KL(pi||ref) at w = {weights.label}"
    return f"{target}, on-policy {config.algorithm}: {where}, {scale}"


def train(
    config: Config,
    *,
    reference: str,
    objectives: Mapping[str, Objective],
    weights: Weights,
    prompts: Sequence[Row],
    folder: Path,
    ledger: Ledger,
) -> dict[str, Any]:
    """Train at one preference; save the model in `folder/model` and return the last logged means."""
    from align.models import count_parameters, save_model
    from align.training.common import drop_checkpoints, finish_trainer, resume_point

    trainer = build_trainer(
        config,
        reference=reference,
        objectives=objectives,
        weights=weights,
        prompts=prompts,
        folder=folder,
        ledger=ledger,
    )
    parameters = count_parameters(trainer.model, embeddings=False)
    finish_trainer(trainer, label=f"{config.algorithm} {weights.label}", ledger=ledger, parameters=parameters)
    before = ledger.tokens
    try:
        trainer.train(resume_from_checkpoint=resume_point(folder))
    except RuntimeError:
        checks.finite_weights(trainer.model)  # sampling from a policy that is not a number
        raise
    # Besides the training step: sampling, the policy's and the reference's log-probabilities, 2 N a token each.
    ledger.add(flops=6 * parameters * (ledger.tokens - before))
    save_model(trainer.model, trainer.processing_class, folder / "model")
    drop_checkpoints(folder)
    return last_means(trainer.state.log_history)


def last_means(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last logged KL, reward and unweighted mean of each objective."""
    logged = [entry for entry in history if "reward" in entry]
    if not logged:
        return {}
    return {key: value for key, value in logged[-1].items() if key in ("kl", "reward", "entropy") or "/mean" in key}


def build_trainer(
    config: Config,
    *,
    reference: str,
    objectives: Mapping[str, Objective],
    weights: Weights,
    prompts: Sequence[Row],
    folder: Path,
    ledger: Ledger,
) -> Any:
    """The RLOO or GRPO trainer, with every default that changes the trade-off set on purpose."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    from align.models import load_tokenizer

    model = model_to_train(reference)
    refuse_shifted_positions(model, prompts=prompts, tokenizer=load_tokenizer(reference))
    longest = max(len(ids) for ids in load_tokenizer(reference)([row["prompt"] for row in prompts])["input_ids"])
    checks.fits(
        longest + config.max_completion_length,
        model,
        what="the longest prompt and max_completion_length",
        mend="leave out such prompts, or lower max_completion_length",
    )
    funcs: list[Any] = [Metered(n, f, ledger) for (n, f), w in zip(objectives.items(), weights, strict=True) if w]
    reward_weights = [w for w in weights if w]
    arguments = {
        **trainer_arguments(config, folder, max_steps=config.steps),
        "num_generations": config.num_generations,
        "max_completion_length": config.max_completion_length,
        "steps_per_generation": config.gradient_accumulation,  # every sample is used once, by the policy that drew it
        "num_iterations": 1,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "disable_dropout": True,  # the sampler, the ratio and the KL must see one and the same policy
        "mask_truncated_completions": False,
        "shuffle_dataset": False,  # `schedule` has shuffled already
        "log_completions": False,
    }
    penalty = SequenceKL(reference) if config.algorithm == "grpo" and config.kl == "sequence" else None
    if penalty is not None:
        funcs, reward_weights = [*funcs, penalty], [*reward_weights, -config.beta]
    common = {
        "model": model,
        "reward_funcs": funcs,
        "train_dataset": schedule(prompts, config=config, ledger=ledger),
        "processing_class": load_tokenizer(reference),
        "peft_config": adapter_config(config, model),
    }
    if config.algorithm == "rloo":
        return RLOOTrainer(
            args=RLOOConfig(**arguments, beta=config.beta, reward_weights=reward_weights, normalize_advantages=False),
            **common,
        )
    trainer = GRPOTrainer(
        args=GRPOConfig(
            **arguments,
            beta=config.beta if config.kl == "token" else 0.0,
            reward_weights=reward_weights,
            scale_rewards=config.scale_rewards,
            multi_objective_aggregation=config.aggregation,
            loss_type="dr_grpo",  # sums over tokens with a constant divisor: no bias towards short or long responses
            importance_sampling_level="token",
        ),
        **common,
    )
    if penalty is not None:
        penalty.trainer = trainer
    return trainer


def schedule(prompts: Sequence[Row], *, config: Config, ledger: Ledger) -> Any:
    """A dataset with the prompt of every group of every step, in order: whole shuffled passes over `prompts`.

    One epoch covers the whole run, so that a resumed run sees the same prompts, and fewer prompts than groups per step
    are no special case (TRL's sampler would silently drop an incomplete batch, here all of them).
    """
    from datasets import Dataset

    groups = config.batch_size * config.gradient_accumulation // config.num_generations
    order: list[int] = []
    rng = random.Random(f"prompts {config.seed}")
    while len(order) < groups * config.steps:
        order += rng.sample(range(len(prompts)), len(prompts))
    columns = set(prompts[0])
    for row in prompts:
        if set(row) != columns:
            raise UserError(f"prompt {row.get('id', '?')} has other columns than the first row; give all rows the same")
    ledger.add(samples_drawn=groups * config.steps * config.num_generations)
    chosen = order[: groups * config.steps]
    return Dataset.from_dict({name: [prompts[i][name] for i in chosen] for name in prompts[0]})


def refuse_shifted_positions(model: Any, *, prompts: Sequence[Row], tokenizer: Any) -> None:
    """UserError for prompts of several lengths with a model of learned positions.

    TRL pads prompts on the left and numbers positions from the padding on in its loss, while `generate` numbers them
    from the first token: with learned positions (GPT-2) the policy trained would not be the one that was sampled.
    """
    if model.config.model_type not in ("gpt2", "gpt_neo", "opt", "gpt_bigcode", "biogpt", "xglm"):
        return
    lengths = {len(ids) for ids in tokenizer([row["prompt"] for row in prompts])["input_ids"]}
    if len(lengths) > 1:
        raise UserError(
            f"a {model.config.model_type} model has learned positions, and prompts of several lengths ({min(lengths)} "
            f"to {max(lengths)} tokens) would be trained at other positions than sampled; use a rotary model like llama"
        )


class SequenceKL:
    """Reward function `log pi(y|x) - log ref(y|x)` of the policy being trained: with weight -beta, the KL of J.

    On a GRPO trainer whose own coefficient is 0. `trainer` is set once the trainer exists.
    """

    def __init__(self, reference: str) -> None:
        self.__name__ = "sequence_kl"
        self.reference = reference
        self.trainer: Any = None
        self._frozen: Any = None

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], *, completion_ids: Sequence[Sequence[int]], **_: Any
    ) -> list[float]:
        """One log-ratio per completion, in nats, summed over its sampled tokens."""
        import torch

        trainer = self.trainer
        policy = trainer.accelerator.unwrap_model(trainer.model)
        prompt_ids = trainer.processing_class(text=list(prompts))["input_ids"]
        with torch.no_grad(), trainer.accelerator.autocast():
            ours = self._logprobs(policy, prompt_ids, completion_ids)
            if hasattr(policy, "disable_adapter"):  # a PEFT model: its reference is the backbone
                with policy.disable_adapter():
                    theirs = self._logprobs(policy, prompt_ids, completion_ids)
            else:
                theirs = self._logprobs(self._reference_model(policy), prompt_ids, completion_ids)
        return [a - b for a, b in zip(ours, theirs, strict=True)]

    def _reference_model(self, policy: Any) -> Any:
        if self._frozen is None:
            from align.models import load_model

            self._frozen = load_model(self.reference).to(policy.device).eval().requires_grad_(False)
        return self._frozen

    def _logprobs(
        self, model: Any, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]
    ) -> list[float]:
        import torch

        totals: list[float] = []
        size = self.trainer.args.per_device_train_batch_size
        for start in range(0, len(prompt_ids), size):
            rows = list(zip(prompt_ids[start : start + size], completion_ids[start : start + size], strict=True))
            width, keep = max(len(p) + len(c) for p, c in rows), max(len(c) for _, c in rows)
            ids_BT = torch.full((len(rows), width), self.trainer.processing_class.pad_token_id)
            attend_BT, scored_BT = torch.zeros_like(ids_BT), torch.zeros_like(ids_BT)
            for row, (p, c) in enumerate(rows):  # padded on the left, so that completions end together
                ids_BT[row, width - len(p) - len(c) :] = torch.tensor([*p, *c])
                attend_BT[row, width - len(p) - len(c) :] = 1
                scored_BT[row, width - len(c) :] = 1
            ids_BT, attend_BT, scored_BT = (t.to(model.device) for t in (ids_BT, attend_BT, scored_BT))
            positions_BT = (attend_BT.cumsum(-1) - 1).clamp(min=0)
            logits_BTV = model(
                input_ids=ids_BT, attention_mask=attend_BT, position_ids=positions_BT, logits_to_keep=keep + 1
            ).logits[:, :-1]
            logp_BT = torch.log_softmax(logits_BTV.float(), -1).gather(-1, ids_BT[:, -keep:, None])[..., 0]
            totals.extend((logp_BT * scored_BT[:, -keep:]).sum(-1).tolist())
        return totals
