"""On-policy training through TRL's RLOO and GRPO: samples, metered rewards, the sequence's KL; every method's engine.

What is sampled is the policy itself (temperature 1, no truncation), each sample serves one optimisation step, and no
default of TRL that would change the trade-off is left unsaid. A method adds reward functions, columns of the prompts,
callbacks, or a trainer class with a few lines around `super()`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from align import checks
from align.data.comparisons import Row
from align.engines.on_policy.formatted import formatted
from align.engines.on_policy.outage import StepStart, kept
from align.engines.on_policy.partial_rewards import PartialRewards
from align.engines.on_policy.prompts import check_prompts, counted, sayable
from align.engines.on_policy.sequence_kl import SequenceKL
from align.engines.problem import P, Problem
from align.engines.settings import TrainingConfig, adapter_config, check_training, model_to_train, trainer_arguments
from align.errors import Outage, UserError
from align.models import count_parameters, load_tokenizer, save_model
from align.models.convert import readable
from align.models.formats import formatter
from align.models.sampling import ending_ids, plain_config, sampled_model, stop_at
from align.models.shared_backbone import bind
from align.objectives.base import Objective
from align.objectives.metered import Metered, objectives_of
from align.runs import Ledger, Workspace
from align.training.common import drop_checkpoints, finish_trainer, resume_point
from align.training.model_settings import refuse_lora_dropout
from align.training.watch import Watch, held_out_prompts, watch

if TYPE_CHECKING:
    from datasets import Dataset
    from torch.nn import Module
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer
    from trl import GRPOTrainer, RLOOTrainer

ALGORITHMS = ("rloo", "grpo")


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig(TrainingConfig):
    """How to sample and train; `batch_size` counts completions per device and backward pass, all
    `gradient_accumulation` of them being sampled at once and used for one optimisation step.
    """

    steps: int = 200
    num_generations: int = 16  # completions per prompt, the baseline's group
    max_completion_length: int = 64  # tokens, the end token included; longer responses are cut and scored as they are
    batch_size: int = 256
    learning_rate: float = 1e-5
    scheduler: str = "constant"


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig(OnPolicyConfig):
    """How to sample and train, and by which of TRL's trainers."""

    algorithm: str = "rloo"  # rloo or grpo


class PlainSampling(TrainerCallback):
    """While training lasts, the policy is sampled as it is, whatever sampling habits its checkpoint carries.

    TRL's own settings leave out min_p, typical_p, n-gram bans, suppressed tokens and more, which `generate` then takes
    from the checkpoint's generation config. That config comes back at the end, and is saved with the trained model.
    """

    def __init__(self, *, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.kept: GenerationConfig | None = None

    def on_train_begin(
        self, *_: object, model: PreTrainedModel, processing_class: PreTrainedTokenizerBase, **others: object
    ) -> None:
        holder = sampled_model(model)
        self.kept = holder.generation_config
        holder.generation_config = plain_config(model, processing_class, max_tokens=self.max_tokens)

    def on_train_end(self, *_: object, model: PreTrainedModel, **others: object) -> None:
        sampled_model(model).generation_config = self.kept


def check_sampling(config: OnPolicyConfig) -> None:
    """UserError on numbers that no on-policy trainer can mean."""
    check_training(config, can_look=True)
    refuse_lora_dropout(config)
    completions = config.batch_size * config.gradient_accumulation
    if config.num_generations < 2 or completions % config.num_generations:
        raise UserError(
            f"{completions} completions a step do not divide into groups of num_generations = {config.num_generations}"
        )
    if config.steps < 1 or config.max_completion_length < 1:
        raise UserError("steps and max_completion_length must be at least 1")
    if isinstance(config, AlgorithmConfig):
        checks.one_of(config, algorithm=ALGORITHMS)


def required_prompts(problem: Problem[P], *, method: str) -> Sequence[Row]:
    """The prompts to sample from; UserError when there are none."""
    if not problem.prompts:
        raise UserError(f"{method} needs prompts to sample from; pass rows with a prompt")
    return problem.prompts


def metered(
    objectives: Mapping[str, Objective], *, ledger: Ledger, policy: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[Metered]:  # fmt: skip
    """The objectives as TRL's `reward_funcs`, each under its own name and charged for what it scores.

    `policy`: the model in training, whose backbone objectives may share, and its tokenizer, for the tokens that end its
    responses (`build_trainer` sees to both itself).
    """
    if policy is not None:
        bind(objectives.values(), policy)
    ends = () if policy is None or tokenizer is None else ending_ids(sampled_model(policy), tokenizer)
    return [Metered(name, objective, ledger, ends=ends) for name, objective in objectives.items()]


@dataclass(frozen=True, kw_only=True)
class KL:
    """Where `beta KL(pi || reference)` enters, and against what.

    sequence: the whole response's log-ratio in the reward, the exact gradient of J. token (grpo only): a per-token
    penalty in the loss, blind to how a token changes the prefixes after it; its fixed point is not the optimum of J.
    `reference` (grpo) is another checkpoint than the one that training starts from, where that is an extended copy of
    it; `strip` and `select` are `SequenceKL`'s own.
    """

    place: str = "sequence"
    reference: str | None = None
    strip: Callable[[str], str] | None = None
    select: Callable[[Module, slice], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one optimisation step does with the samples. All but `algorithm`, `trainer_class` and `adam_beta2` are for
    grpo, where other values than these change what is optimised (see morlhf).
    """

    algorithm: str = "rloo"
    scale_rewards: str = "none"
    aggregation: str = "sum_then_normalize"
    adam_beta2: float = 0.999
    trainer_class: type | None = None  # TRL's trainer with a few lines around `super()`


@dataclass(frozen=True, kw_only=True)
class Start:
    """The policy in memory where it is not the reference's checkpoint as it is (an adapted copy), and its tokenizer.

    With LoRA the embeddings of `new_tokens` are trained, too.
    """

    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    new_tokens: tuple[int, ...] = ()


def build_trainer(
    config: OnPolicyConfig,
    problem: Problem[P],
    run: Workspace,
    *,
    rewards: Sequence[tuple[Callable[..., Sequence[float | None]], float]],
    update: Update = Update(),
    kl: KL = KL(),
    start: Start = Start(),
) -> RLOOTrainer | GRPOTrainer:
    """A trainer whose expected update is the gradient of `E[sum_k weight_k r_k] - beta KL(pi || reference)`.

    `rewards` are reward functions with their weights; the problem's objectives are not asked themselves. rloo: TRL
    subtracts beta times the sequence's log-ratio from the reward. grpo: as `kl` says. Reward models kept as adapters
    are bound to a LoRA policy's backbone (align/models/shared_backbone.py).
    """
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    model = model_to_train(problem.reference, config) if start.model is None else start.model
    tokenizer = formatted(load_tokenizer(problem.reference) if start.tokenizer is None else start.tokenizer)
    ends = ending_ids(model, tokenizer)
    stop_at(ends, model)
    most = config.max_completion_length
    said, left_out = sayable(problem.prompts or (), formatter(tokenizer), model=model, max_tokens=most)
    check_prompts(said, model=model, tokenizer=tokenizer, max_tokens=most)
    prompts, held = looked_at(said, config=config)
    funcs, weights = [f for f, _ in rewards], [weight for _, weight in rewards]
    arguments = {
        **trainer_arguments(config, run.folder, max_steps=config.steps),
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
        "adam_beta2": update.adam_beta2,
    }
    common = {
        "model": model,
        "train_dataset": schedule(prompts, config=config, ledger=run.ledger),
        "processing_class": tokenizer,
        "peft_config": adapter_config(config, model, new_tokens=start.new_tokens),
    }
    penalty = None
    if update.algorithm == "rloo":
        args = RLOOConfig(**arguments, beta=config.beta, reward_weights=weights, normalize_advantages=False)
    else:
        if kl.place == "sequence":
            penalty = SequenceKL(kl.reference or problem.reference, strip=kl.strip, select=kl.select)
            funcs, weights = [*funcs, penalty], [*weights, -config.beta]
        args = GRPOConfig(
            **arguments,
            beta=config.beta if kl.place == "token" else 0.0,
            reward_weights=weights,
            scale_rewards=update.scale_rewards,
            multi_objective_aggregation=update.aggregation,
            loss_type="dr_grpo",  # sums over tokens with a constant divisor: no bias towards short or long responses
            importance_sampling_level="token",
        )
    plain_class = RLOOTrainer if update.algorithm == "rloo" else GRPOTrainer
    base = update.trainer_class or plain_class
    kind = base if issubclass(base, PartialRewards) else type(base.__name__, (PartialRewards, base), {})
    with readable(model, problem.reference) if start.model is None else nullcontext():
        trainer = kind(args=args, reward_funcs=funcs, **common)
    trainer.add_callback(PlainSampling(max_tokens=config.max_completion_length))
    trainer.prompts_left_out = left_out
    bind(funcs, trainer.model)
    for objective in objectives_of(funcs):
        objective.ends = ends
    if penalty is not None:
        penalty.trainer = trainer
    if held:
        watch_prompts(trainer, held, config=config, folder=run.folder)
    return trainer


def looked_at(prompts: Sequence[Row], *, config: OnPolicyConfig) -> tuple[Sequence[Row], Sequence[Row]]:
    """The prompts to train on, and those that training looks at (none without `eval_steps`)."""
    if not config.eval_steps:
        return prompts, ()
    out = held_out_prompts([row["prompt"] for row in prompts], share=config.validation, seed=config.seed)
    train, looks = ([row for row, held in zip(prompts, out, strict=True) if held is side] for side in (False, True))
    return train, looks


def watch_prompts(trainer: Trainer, held: Sequence[Row], *, config: OnPolicyConfig, folder: Path) -> None:
    """Look at one sample for each of these prompts, and at what the prompts' own text costs."""
    from datasets import Dataset

    trainer.eval_dataset = Dataset.from_list([dict(row) for row in held])
    trainer.num_generations_eval = 1
    texts = [row["prompt"] for row in held if isinstance(row["prompt"], str)]
    watch(trainer, config, folder=folder, texts=texts, resumed=resume_point(folder) is not None)


def run_trainer(trainer: Trainer, *, label: str, folder: Path, ledger: Ledger, save: bool = True) -> dict[str, object]:
    """Train (resuming where a checkpoint lies), charge the ledger, save `folder/model`; the last logged means.

    An outage of what scores is raised again once the last step is kept as a checkpoint.
    With two objectives or more also `conflict`, how they pulled apart (align/engines/on_policy/conflict_log.py).
    """
    from align.engines.on_policy.conflict_log import attach
    from align.engines.on_policy.objective_log import attach_weighted_means

    parameters = count_parameters(trainer.model, embeddings=False)
    finish_trainer(trainer, label=label, ledger=ledger, parameters=parameters)
    attach_weighted_means(trainer)
    before, conflict = ledger.tokens, attach(trainer)
    trainer.add_callback(start := StepStart())
    try:
        trainer.train(resume_from_checkpoint=resume_point(folder))
    except Outage as error:
        raise kept(trainer, start, error) from error
    except RuntimeError:
        checks.finite_weights(trainer.model)  # sampling from a policy that is not a number
        raise
    looks = next((one for one in trainer.callback_handler.callbacks if isinstance(one, Watch)), None)
    held_out = {} if looks is None else {"held_out": looks.finish(trainer.model)}
    # Besides the training step: sampling, the policy's and the reference's log-probabilities, 2 N a token each.
    ledger.add(flops=6 * parameters * (ledger.tokens - before))
    if save:
        save_model(trainer.model, trainer.processing_class, folder / "model")
    drop_checkpoints(folder)
    means = {**last_means(trainer.state.log_history), **counted(trainer.prompts_left_out), **held_out}
    return means if conflict is None else {**means, "conflict": conflict.report()}


def last_means(history: Sequence[Mapping[str, float]]) -> dict[str, object]:
    """The last logged KL, reward and unweighted mean of each objective."""
    logged = [entry for entry in history if "reward" in entry]
    if not logged:
        return {}
    return {key: value for key, value in logged[-1].items() if key in ("kl", "reward", "entropy") or "/mean" in key}


def schedule(prompts: Sequence[Row], *, config: OnPolicyConfig, ledger: Ledger) -> Dataset:
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
