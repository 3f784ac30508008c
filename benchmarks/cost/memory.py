"""Memory of one GRPO step: the policy alone, with reference and reward models on its backbone, and as separate models.

python -m benchmarks.cost.memory [--repeats 3] [--objectives 2]      # writes docs/results/memory.json and memory.md

Every variant runs in a fresh process of one thread, in turn. A tiny GRPO step comes first (what libraries allocate once
is nobody's), then the resident set is the baseline. Models are loaded and each is read once. The kernel's high-water
mark is reset, two GRPO steps run, and the mark above the baseline is the memory: parameters, optimizer state, gradients
and peak activations. The bytes of the first three are also counted from the tensors. Weights are random:
memory does not depend on them.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from align import checks
from align.errors import UserError, guarded
from align.models import ModelConfig
from align.runs import environment
from benchmarks.pages import filled, render, write
from evals.items import Json
from recipes.config import option, parse

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    from align.engines.on_policy.sequence_kl import SequenceKL
    from align.objectives import RewardModelObjective

ROOT = Path(__file__).resolve().parents[2]
SHAPE: Json = {"hidden": 512, "layers": 16, "heads": 8, "context": 128}
VOCABULARY, PROMPT_WORDS, RANK = 16384, 8, 8
STEP: Json = {
    "batch_size": 8, "num_generations": 4, "max_completion_length": 32, "steps": 2, "lora_r": RANK, "beta": 0.05,
}  # fmt: skip
VARIANTS = {
    "policy": "policy alone",
    "reference": "policy + reference (adapter off)",
    "shared": "policy + reference + {K} reward models, one backbone",
    "separate": "policy + reference + {K} reward models, separate models",
}
BOUND = 1.25
ONE = "import json, sys; from benchmarks.cost.memory import one; print(json.dumps(one(*sys.argv[1:])))"


# ------------------------------------------------------------------------------------------------------ made on disk


def make_tokenizer(size: int) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<end>", "<unknown>", *(f"w{i}" for i in range(size - 3))]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", pad_token="<pad>", unk_token="<unknown>", model_max_length=512
    )


def make_models(folder: Path, *, shape: ModelConfig, vocabulary: int, objectives: int) -> None:
    """A random base and `objectives` random reward models on it, each as `adapter` and as merged `model`."""
    import torch
    from peft import get_peft_model

    from align.models import build_model, load_scorer, lora_config, save_model

    tokenizer = make_tokenizer(vocabulary)
    save_model(build_model(shape, tokenizer, seed=0), tokenizer, folder / "base")
    for k in range(objectives):
        torch.manual_seed(k)
        special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        scorer = load_scorer(folder / "base", **special)
        model = get_peft_model(scorer, lora_config(scorer, RANK, task="SEQ_CLS"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        save_model(model, tokenizer, folder / f"reward{k}" / "adapter")
        save_model(model.merge_and_unload(), tokenizer, folder / f"reward{k}" / "model")


# ------------------------------------------------------------------------------------------------------- one variant


def rule(prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float | None]:
    """A reward that needs no model; rewards within a group differ, so that there is a gradient."""
    return [float(i % 2) for i in range(len(prompts))]


def separate_penalty(reference: str) -> SequenceKL:
    """The sequence's KL against a reference that is a network of its own, though the policy is an adapter."""
    import torch

    from align.engines.on_policy.sequence_kl import SequenceKL

    class SeparateKL(SequenceKL):
        def __call__(
            self, prompts: Sequence[str], completions: Sequence[str], *, completion_ids: Sequence[Sequence[int]],
            **_: object,
        ) -> list[float]:  # fmt: skip
            ids = self.trainer.processing_class(text=list(prompts))["input_ids"]
            with torch.no_grad():
                ours = self._logprobs(self.trainer.model, ids, completion_ids)
                theirs = self._logprobs(self._reference_model(self.trainer.model), ids, completion_ids)
            return [a - b for a, b in zip(ours, theirs, strict=True)]

    return SeparateKL(reference)


@dataclass(frozen=True)
class Step:
    """One variant, ready to train: the trainer, its reward models, and the KL where it has a network of its own."""

    trainer: GRPOTrainer
    scorers: Sequence[RewardModelObjective]
    penalty: SequenceKL | None


def build(variant: str, models: Path, out: Path, *, objectives: int, **changes: int) -> Step:
    """The variant's trainer in the folder `out`; `changes` replace entries of STEP."""
    from trl import GRPOTrainer

    from align.engines.on_policy import trainer as onpolicy
    from align.engines.problem import Problem
    from align.objectives import RewardModelObjective
    from align.objectives.shared_reward_model import SharedRewardModel
    from align.runs import Ledger, Workspace

    make = {"shared": SharedRewardModel, "separate": RewardModelObjective}.get(variant)
    names = [f"reward{k}" for k in range(objectives)] if make else []
    scorers = [make(models / name, name=name) for name in names] if make else []
    base = str(models / "base")
    penalty = separate_penalty(base) if variant == "separate" else None

    class Trainer(GRPOTrainer):
        """The KL to the reference, which onpolicy.build_trainer appends as the last reward, left out or replaced."""

        def __init__(self, *, args: GRPOConfig, reward_funcs: Sequence[object], **common: object) -> None:
            if variant == "policy":
                args.reward_weights, reward_funcs = args.reward_weights[:-1], reward_funcs[:-1]
            elif penalty is not None:
                reward_funcs = [*reward_funcs[:-1], penalty]
            super().__init__(args=args, reward_funcs=list(reward_funcs), **common)

    words = [f"w{i}" for i in range(200)]
    prompts = [{"prompt": " ".join(words[i * PROMPT_WORDS : (i + 1) * PROMPT_WORDS]) + " "} for i in range(16)]
    config = onpolicy.OnPolicyConfig(**{**STEP, "learning_rate": 1e-4, "logging_steps": 1, **changes})
    functions: list[Callable[..., Sequence[float | None]]] = [rule, *scorers]
    trainer = onpolicy.build_trainer(
        config,
        Problem(reference=base, objectives={}, preferences=(), prompts=prompts),
        Workspace(out, Ledger()),
        rewards=[(f, 1.0) for f in functions],
        update=onpolicy.Update(algorithm="grpo", trainer_class=Trainer),
    )
    if penalty is not None:
        penalty.trainer = trainer
    return Step(trainer, scorers, penalty)


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise UserError(f"no {field} in /proc/self/status; run this benchmark on Linux")


def settle() -> None:
    """Give back what is free."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def size_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of distinct storages."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def measure(variant: str, models: Path, tiny: Path, objectives: int) -> Json:
    """One variant, in this process."""
    from align.runs.threads import set_threads

    set_threads(1)
    import torch
    from transformers import TrainerCallback

    set_threads(1)

    class Gradients(TrainerCallback):
        size = 0

        def on_pre_optimizer_step(
            self, args: object, state: object, control: object, model: torch.nn.Module, **_: object
        ) -> None:
            self.size = size_of(p.grad for p in model.parameters() if p.grad is not None)

    with tempfile.TemporaryDirectory() as out:
        warm = build(variant, tiny, Path(out) / "warm", objectives=objectives, max_completion_length=4, steps=1)
        warm.trainer.train()
        del warm
        settle()
        baseline = status("VmRSS")
        step = build(variant, models, Path(out) / "run", objectives=objectives)
        trainer, scorers, penalty = step.trainer, step.scorers, step.penalty
        scores = [scorer(["w1 w2 "] * 2, ["w3 w4", "w5"]) for scorer in scorers]
        networks = [trainer.model, *(s._load()[0] for s in scorers if variant == "separate")]
        if penalty is not None:
            networks.append(penalty._reference_model(trainer.model))
        gradients = Gradients()
        trainer.add_callback(gradients)
        settle()
        loaded = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
        peak = status("VmHWM")
    heads = [scorer._load()[0].head_1H for scorer in scorers] if variant == "shared" else []
    state = [t for s in trainer.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    base = trainer.model.get_base_model()
    return {
        "peak": peak - baseline,
        "loaded": loaded - baseline,
        "parameters": size_of([*(p for n in networks for p in n.parameters()), *heads]),
        "optimizer": size_of(state),
        "gradients": gradients.size,
        "backbone_parameters": sum(p.numel() for name, p in base.named_parameters() if "lora_" not in name),
        "policy_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "cpu_seconds_per_step": seconds / STEP["steps"],
        "scores": scores,
    }


# ------------------------------------------------------------------------------------------------------------ the run


def run(repeats: int, objectives: int) -> Json:
    """All variants in turn, `repeats` times, each in a fresh process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    runs: dict[str, list[Json]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_models(work / "models", shape=ModelConfig(**SHAPE), vocabulary=VOCABULARY, objectives=objectives)
        tiny = ModelConfig(hidden=32, layers=1, heads=2, context=128)
        make_models(work / "tiny", shape=tiny, vocabulary=512, objectives=objectives)
        for _ in range(repeats):
            for variant in VARIANTS:
                words = [variant, str(work / "models"), str(work / "tiny"), str(objectives)]
                command = [sys.executable, "-c", ONE, *words]
                done = subprocess.run(command, capture_output=True, text=True, env=environment)
                if done.returncode:
                    raise RuntimeError(f"{variant} failed:\n{done.stderr[-4000:]}")
                runs[variant].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{variant:10s} {runs[variant][-1]['peak'] / 2**20:8.0f} MiB", flush=True)
    return result_of(runs, objectives=objectives)


def result_of(runs: Mapping[str, Sequence[Json]], *, objectives: int) -> Json:
    """Medians over the repeats, ratios to the policy alone of the same round, and the checks that the numbers need."""
    pairs = zip(runs["shared"][0]["scores"], runs["separate"][0]["scores"], strict=True)
    gap = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
    if gap > 1e-4:
        raise RuntimeError(f"shared and separate reward models differ by {gap}: not the same models")
    variants = {}
    for name, measured in runs.items():
        ratios = [m["peak"] / p["peak"] for m, p in zip(measured, runs["policy"], strict=True)]
        keys = ("peak", "loaded", "parameters", "optimizer", "gradients", "cpu_seconds_per_step")
        variants[name] = {
            "label": VARIANTS[name].format(K=objectives),
            **{key: median(m[key] for m in measured) for key in keys},
            "ratio": median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios),
        }  # fmt: skip
    first = runs["policy"][0]
    return {
        "objectives": objectives, "repeats": len(runs["policy"]),
        "backbone_parameters": first["backbone_parameters"], "policy_parameters": first["policy_parameters"],
        "shape": {**SHAPE, "vocabulary": VOCABULARY}, "step": {**STEP, "prompt_tokens": PROMPT_WORDS},
        "largest_score_gap": gap, "bound": BOUND, "met": variants["shared"]["ratio_high"] <= BOUND,
        "variants": variants, "environment": environment(),
    }  # fmt: skip


def page(result: Json) -> str:
    """The Markdown page; a function of the JSON alone. Paragraphs of the template are filled to 130 columns."""
    return filled(render(Path(__file__).with_name("memory.md.j2"), **result))


def one(variant: str, models: str, tiny: str, objectives: str) -> Json:
    """`measure` from the words of a command line: what each fresh process runs."""
    return measure(variant, Path(models), Path(tiny), int(objectives))


@dataclass(frozen=True, kw_only=True)
class Config:
    repeats: int = option(3, help="rounds over all variants")
    objectives: int = option(2, help="reward models, K")
    out: Path = option(ROOT / "docs" / "results", help="folder of memory.json, memory.md")


def main(argv: Sequence[str] | None = None) -> int:
    config, _ = parse(Config, argv, program="python -m benchmarks.cost.memory", about=__doc__ or "")
    checks.at_least(1, config, "repeats", "objectives")
    result = run(config.repeats, config.objectives)
    write(config.out, {"memory.json": json.dumps(result, indent=1) + "\n", "memory.md": page(result)})
    print(page(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
