"""What the harness costs: milliseconds per cell around an idle backend, and generation against other paths.

    python -m benchmarks.cost.harness                 # a model of 3 million parameters made on the spot, 500 prompts
    python -m benchmarks.cost.harness --model runs/hh/sft --rivals lm_eval inspect

Rounds alternate between the paths in one process; a ratio is that of the medians. All draw greedily, with the same
batch size and number of new tokens, over the same prompts in the order of the file: bare batched `model.generate`, and
with --rivals the model classes of `lm_eval` and `inspect_ai` (each asked directly, without its logs and scorers).
Inspect excludes versions that this project pins: an environment of its own holds all three.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from align.errors import guarded

Path_ = Callable[[], list[str]]
RIVALS = {"lm_eval": "lm_eval", "inspect": "inspect_ai"}  # name -> the package it needs
WORDS = ["bread", "cheese", "tea", "boats", "rope", "glue", "knives", "bees", "clay", "how", "why", "explain", "keep"]


class NoBackend:
    """Answers at once: what is left is the harness."""

    name, fingerprint, can = "none", "none", frozenset({"system", "prefill"})

    def generate(self, prompts: Sequence[Any], *, config: Any, seeds: Sequence[int]) -> list[Any]:
        from evals.backends.base import Completion

        return [Completion("I cannot help with that.", 6, True)] * len(prompts)


def overhead(cells: int) -> float:
    """Milliseconds per cell: plan, keys, batches, the store on disk, and the rule judge's verdicts as further cells."""
    from evals.backends.base import Generation
    from evals.items import Item
    from evals.judges import make_judge
    from evals.measure.cells import ask
    from evals.measure.engine import Engine
    from evals.measure.measurements import CompletionOf
    from evals.measure.store import CellStore
    from evals.measure.verdict import Verdict
    from evals.shifts import parse_shifts

    shifts = parse_shifts(["none", "base64", "lowercase", "prefix_injection"])
    items = [Item(f"i{n}", f"question {n}: {' '.join(WORDS)}", label="harmful") for n in range(cells // 8)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        engine = Engine(NoBackend(), store=CellStore(Path(folder) / "cells.jsonl"))  # type: ignore[arg-type]
        plan = ask(items, suite="made", shifts=shifts)
        measured = engine.run(plan, measurements=[CompletionOf(Generation()), Verdict(make_judge("rules"))])
        seconds = time.perf_counter() - start
    return 1000 * seconds / sum(len(cell.values) for cell in measured)


def made_prompts(count: int) -> list[str]:
    """Questions of 3 to 40 words."""
    rng = Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 40))) for _ in range(count)]


def made_model(folder: Path) -> str:
    """A Llama shape of 3 million parameters with random weights, and a tokenizer of the prompts' words."""
    from align.data import train_tokenizer
    from align.models import ModelConfig, build_model, save_model

    texts = [*made_prompts(200), "Human: Assistant:"]
    tokenizer = train_tokenizer(texts, vocab_size=600, out=folder / "tokenizer")
    shape = ModelConfig(hidden=192, layers=4, heads=4, intermediate=512, context=512, init_std=0.06)
    save_model(build_model(shape, tokenizer, seed=0), tokenizer, folder / "model")
    return str(folder / "model")


def paths(model: str, *, prompts: Sequence[str], new: int, batch: int, rivals: Sequence[str]) -> dict[str, Path_]:
    """Name -> a call that answers all prompts once and returns the answers."""
    from evals.backends.base import Generation
    from evals.backends.transformers import TransformersBackend
    from evals.items import Prompt

    backend = TransformersBackend.load(model, template="hh", batch_size=batch)
    asked = [Prompt.user(text) for text in prompts]
    texts = [str(backend.renderer.text(prompt)) for prompt in asked]

    def ours() -> list[str]:
        found = backend.generate(asked, config=Generation(new), seeds=[0] * len(asked))
        return [getattr(answer, "text", "") for answer in found]

    made = {"ours": ours, "bare": bare_path(backend, texts, new=new, batch=batch)}
    makers = {"lm_eval": lm_eval_path, "inspect": inspect_path}
    return made | {name: makers[name](backend, texts, new=new, batch=batch) for name in rivals}


def bare_path(backend: Any, texts: Sequence[str], *, new: int, batch: int) -> Path_:
    """Batches in the order given through `model.generate`."""
    import torch

    def bare() -> list[str]:
        done: list[str] = []
        for start in range(0, len(texts), batch):
            inputs = backend.tokenizer(
                texts[start : start + batch], return_tensors="pt", padding=True, padding_side="left",
                add_special_tokens=False, return_token_type_ids=False,
            )  # fmt: skip
            with torch.inference_mode():
                out = backend.model.generate(
                    **inputs, max_new_tokens=new, do_sample=False, pad_token_id=backend.tokenizer.pad_token_id
                )
            answers = out[:, inputs["input_ids"].shape[1] :]
            done += backend.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return done

    return bare


def lm_eval_path(backend: Any, texts: Sequence[str], *, new: int, batch: int) -> Path_:
    """`lm_eval`'s HFLM over the same model in memory."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(backend.model, tokenizer=backend.tokenizer, batch_size=batch, device="cpu")
    options = {"until": [backend.tokenizer.eos_token], "max_gen_toks": new, "do_sample": False}

    def path() -> list[str]:
        asked = [Instance("generate_until", {}, (text, options), i) for i, text in enumerate(texts)]
        return list(model.generate_until(asked, disable_tqdm=True))

    return path


def inspect_path(backend: Any, texts: Sequence[str], *, new: int, batch: int) -> Path_:
    """Inspect's `hf` provider over the same weights, all prompts asked at once so that it can fill its batches."""
    import asyncio
    import tempfile

    from inspect_ai.model import GenerateConfig, get_model

    folder = tempfile.mkdtemp()
    backend.model.save_pretrained(folder)
    backend.tokenizer.save_pretrained(folder)
    config = GenerateConfig(max_tokens=new, max_connections=batch)
    content = "{% for message in messages %}{{ message['content'] }}{% endfor %}"  # the text as it is
    model = get_model(
        "hf/local", model_path=folder, tokenizer_path=folder, device="cpu", batch_size=batch, do_sample=False,
        chat_template=content, config=config,
    )  # fmt: skip

    async def ask_all() -> list[str]:
        found = await asyncio.gather(*(model.generate(text, config=config) for text in texts))
        return [output.completion for output in found]

    return lambda: asyncio.run(ask_all())


def seconds(call: Path_) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="a model directory or run (default: made on the spot)")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--new", type=int, default=32, help="new tokens per prompt")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=8000, help="cells of the overhead measurement")
    parser.add_argument("--rivals", nargs="*", choices=list(RIVALS), default=[], help="other harnesses' model classes")
    arguments = parser.parse_args(argv)
    for name in arguments.rivals:
        if importlib.util.find_spec(RIVALS[name]) is None:
            print(f"error: --rivals {name} needs the package {RIVALS[name]}; install it", file=sys.stderr)
            return 2
    prompts = made_prompts(arguments.prompts)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or made_model(Path(folder))
        calls = paths(
            model, prompts=prompts, new=arguments.new, batch=arguments.batch, rivals=arguments.rivals
        )  # fmt: skip
        answers = {name: call() for name, call in calls.items()}  # also warms each path
        rounds = {name: [] for name in calls}  # type: dict[str, list[float]]
        for _ in range(arguments.rounds):
            for name, call in calls.items():
                rounds[name].append(seconds(call))
    each = [overhead(arguments.cells) for _ in range(arguments.rounds)]
    mine = statistics.median(rounds["ours"])
    found = {
        "overhead_ms_per_cell": statistics.median(each),
        "seconds": rounds,
        "times_slower_than_ours": {name: statistics.median(r) / mine for name, r in rounds.items() if name != "ours"},
        "answers_equal_to_ours": {
            name: sum(a == b for a, b in zip(texts, answers["ours"], strict=True)) / len(prompts)
            for name, texts in answers.items()
        },
    }
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
