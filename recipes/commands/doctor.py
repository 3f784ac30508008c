"""What a report of a fault should say: versions, devices, paths, this machine's speed, a self-test of two trainings.

align doctor
align doctor --no-self-test
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.config import option, parse

EXTRAS = ("gguf", "bitsandbytes", "vllm", "lm_eval", "inspect_ai", "tensorboard", "wandb", "trackio")
WEIGHTS = 135_000_000  # of the chat model of `align chat`


@dataclass(frozen=True, kw_only=True)
class Config:
    self_test: bool = option(True, help="train DPO and RLOO for two steps on a tiny model made here")


def versions() -> list[str]:
    """Python, this project's commit, and the packages that decide numbers, with the extras that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    from align import __version__
    from align.runs.environment import environment

    facts = environment()
    found = facts["versions"]
    assert isinstance(found, dict)
    for name in EXTRAS:
        try:
            found = {**found, name: version(name)}
        except PackageNotFoundError:
            continue  # an extra that nobody asked for
    packages = ", ".join(f"{name} {value or 'MISSING'}" for name, value in found.items())
    commit = facts["commit"] or "none (not a clone)"
    return [f"align {__version__}, commit {commit}", f"python {facts['python']} on {facts['platform']}", packages]


def devices() -> list[str]:
    """Cores, memory, and what torch sees beside the CPU."""
    import psutil
    import torch

    free, total = (getattr(psutil.virtual_memory(), name) / 2**30 for name in ("available", "total"))
    lines = [f"{os.cpu_count()} cores, {torch.get_num_threads()} thread a process, {free:.1f} of {total:.1f} GiB free"]
    for index in range(torch.cuda.device_count()):
        seen = torch.cuda.get_device_properties(index)
        bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
        lines.append(f"cuda:{index} {seen.name}, {seen.total_memory / 2**30:.0f} GiB, {bf16} bfloat16")
    return lines if len(lines) > 1 else [*lines, "no GPU that torch can use"]


def paths() -> list[str]:
    """Where the packages are, where models are kept, and the space left beside `runs/`."""
    import shutil

    import align
    from recipes.real.small_model import cache_folder

    here = Path.cwd()
    hub = os.environ.get("HF_HOME", "~/.cache/huggingface")
    offline = ", offline" if os.environ.get("HF_HUB_OFFLINE") else ""
    return [
        f"packages in {Path(align.__file__).parents[1]}",
        f"models unpacked into {cache_folder()}, hub cache {hub}{offline}",
        f"runs below {here}: {shutil.disk_usage(here).free / 2**30:.1f} GiB free"
        + ("" if os.access(here, os.W_OK) else ", NOT WRITABLE"),
    ]


def speed(*, width: int = 576, tokens: int = 1024, rounds: int = 5) -> float:
    """Float32 operations a CPU second of one thread, in a product as in a small chat model; the best of `rounds`."""
    import torch

    left, right = torch.randn(tokens, width), torch.randn(4 * width, width)
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        torch.nn.functional.linear(left, right)
        best = min(best, time.process_time() - start)
    return 2 * tokens * width * 4 * width / best


def said_of_speed(operations: float) -> str:
    """One line: the rate, and what a forward pass of the chat model costs at it (2 operations a weight and token)."""
    milliseconds = 1000 * 2 * WEIGHTS / operations
    return (
        f"{operations / 1e9:.0f} GFLOP/s in float32 on one core: a forward pass of {WEIGHTS / 1e6:.0f}M weights takes "
        f"about {milliseconds:.1f} ms a token"
    )


def self_test(folder: Path) -> list[str]:
    """Train DPO and RLOO two steps each on an untrained tiny model, load both and ask them; one line for each.

    What fails raises: its traceback belongs into the report.
    """
    from align.engines.problem import Problem
    from align.methods import METHODS
    from align.models import ModelConfig, build_model, save_model
    from align.policies.load import load_family
    from align.preferences import Weights
    from align.runs import Ledger, Workspace
    from align.testbed import gold, vocabulary, world

    tiny, tokenizer = world.load_world("tiny"), vocabulary.build_tokenizer()
    save_model(
        build_model(ModelConfig(hidden=16, layers=1, context=16), tokenizer, seed=0), tokenizer, folder / "model"
    )
    prompts = [{"id": str(i), "prompt": prompt.text} for i, prompt in enumerate(tiny.train_prompts[:2])]
    words = [f" {word}" for word in vocabulary.vocabulary() if word.isalpha()][:2]
    pairs = [{**row, "chosen": words[0], "rejected": words[1], "objective": "helpful"} for row in prompts]
    short: dict[str, dict[str, object]] = {
        "dpo": {"batch_size": 1, "epochs": 1.0},
        "morlhf": {"algorithm": "rloo", "steps": 2, "batch_size": 4, "num_generations": 2, "max_completion_length": 3},
    }
    lines = []
    for name, settings in short.items():
        start, method = time.perf_counter(), METHODS[name]
        problem = Problem(
            reference=str(folder / "model"), objectives=gold.gold_objectives(tiny), preferences=[Weights((1.0, 0.0))],
            prompts=prompts, comparisons=pairs,
        )  # fmt: skip
        method.fit(method.Config(**settings), problem, Workspace(folder / name, Ledger())).save(folder / name)
        policy = load_family(folder / name).policy(Weights((1.0, 0.0)))
        drawn = policy.draw([prompts[0]["prompt"]], max_new_tokens=3, seed=0, batch_size=1)
        lines.append(
            f"{name}: trained, saved, loaded, drew {len(drawn[0].ids)} tokens ({time.perf_counter() - start:.1f} s)"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    config, _ = parse(Config, argv, program="align doctor", about=__doc__ or "")
    for title, lines in (("versions", versions()), ("devices", devices()), ("paths", paths())):
        print(*(f"{title}: {line}" for line in lines), sep="\n")
    print(f"speed: {said_of_speed(speed())}")
    if not config.self_test:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        print(*(f"self-test: {line}" for line in self_test(Path(folder))), "self-test: passed", sep="\n")
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("doctor")
