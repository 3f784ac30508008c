"""What the harness costs: milliseconds per cell around an idle backend, and generation against other paths.

    python -m benchmarks.cost.harness                 # a model of 3 million parameters made on the spot, 500 prompts
    python -m benchmarks.cost.harness --model runs/hh/sft --rivals lm_eval inspect

Rounds alternate between the paths in one process; a ratio is that of the medians. All draw greedily, with the same
batch size and number of new tokens, over the same prompts in the order of the file: bare batched `model.generate`, and
with --rivals the model classes of `lm_eval` and `inspect_ai` (each asked directly, without its logs and scorers).
Inspect excludes versions that this project pins: an environment of its own holds all three.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal

from align import checks
from align.errors import UserError, guarded
from recipes.config import option, parse

if TYPE_CHECKING:
    from evals.backends.base import Completion, Generation
    from evals.backends.transformers import TransformersBackend
    from evals.items import Missing, Prompt

Path_ = Callable[[], list[str]]
RIVALS = {"lm_eval": "lm_eval", "inspect": "inspect_ai"}  # name -> the package it needs
WORDS = ["bread", "cheese", "tea", "boats", "rope", "glue", "knives", "bees", "clay", "how", "why", "explain", "keep"]


class NoBackend:
    """Answers at once: what is left is the harness."""

    name, fingerprint, can = "none", "none", frozenset({"system", "prefill"})

    def generate(
        self, prompts: Sequence[Prompt], *, config: Generation, seeds: Sequence[int]
    ) -> list[Completion | Missing]:
        from evals.backends.base import Completion

        return [Completion("I cannot help with that.", 6, True)] * len(prompts)

    def continuation_logprobs(
        self, prompts: Sequence[Prompt], *, continuations: Sequence[str]
    ) -> list[tuple[float, int] | Missing]:
        return [(0.0, 1)] * len(prompts)


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
        engine = Engine(NoBackend(), store=CellStore(Path(folder) / "cells.jsonl"))
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
        answers = backend.generate(asked, config=Generation(new), seeds=[0] * len(asked))
        return [getattr(answer, "text", "") for answer in answers]

    made = {"ours": ours, "bare": bare_path(backend, texts, new=new, batch=batch)}
    makers = {"lm_eval": lm_eval_path, "inspect": inspect_path}
    return made | {name: makers[name](backend, texts, new=new, batch=batch) for name in rivals}


def bare_path(backend: TransformersBackend, texts: Sequence[str], *, new: int, batch: int) -> Path_:
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


def lm_eval_path(backend: TransformersBackend, texts: Sequence[str], *, new: int, batch: int) -> Path_:
    """`lm_eval`'s HFLM over the same model in memory."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(backend.model, tokenizer=backend.tokenizer, batch_size=batch, device="cpu")
    options = {"until": [backend.tokenizer.eos_token], "max_gen_toks": new, "do_sample": False}

    def path() -> list[str]:
        asked = [Instance("generate_until", {}, (text, options), i) for i, text in enumerate(texts)]
        return list(model.generate_until(asked, disable_tqdm=True))

    return path


def inspect_path(backend: TransformersBackend, texts: Sequence[str], *, new: int, batch: int) -> Path_:
    """Inspect's `hf` provider over the same weights, all prompts asked at once so that it can fill its batches."""
    import asyncio

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
        outputs = await asyncio.gather(*(model.generate(text, config=config) for text in texts))
        return [output.completion for output in outputs]

    return lambda: asyncio.run(ask_all())


def seconds(call: Path_) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str | None = option(None, help="a model directory or run (default: made on the spot)")
    prompts: int = option(500, help="how many prompts")
    new: int = option(32, help="new tokens per prompt")
    batch: int = option(64, help="prompts per batch")
    rounds: int = option(3, help="rounds over all paths")
    cells: int = option(8000, help="cells of the overhead measurement")
    rivals: tuple[Literal["lm_eval", "inspect"], ...] = option((), help="other harnesses' model classes")


def main(argv: Sequence[str] | None = None) -> int:
    config, _ = parse(Config, argv, program="python -m benchmarks.cost.harness", about=__doc__ or "")
    checks.at_least(1, config, "prompts", "new", "batch", "rounds", "cells")
    for rival in config.rivals:
        if importlib.util.find_spec(RIVALS[rival]) is None:
            raise UserError(f"--rivals {rival} needs the package {RIVALS[rival]}; install it")
    prompts = made_prompts(config.prompts)
    with tempfile.TemporaryDirectory() as folder:
        model = config.model or made_model(Path(folder))
        calls = paths(model, prompts=prompts, new=config.new, batch=config.batch, rivals=config.rivals)
        answers = {name: call() for name, call in calls.items()}  # also warms each path
        rounds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(config.rounds):
            for name, call in calls.items():
                rounds[name].append(seconds(call))
    each = [overhead(config.cells) for _ in range(config.rounds)]
    ours = statistics.median(rounds["ours"])
    result = {
        "overhead_ms_per_cell": statistics.median(each),
        "seconds": rounds,
        "times_slower_than_ours": {name: statistics.median(r) / ours for name, r in rounds.items() if name != "ours"},
        "answers_equal_to_ours": {
            name: sum(a == b for a, b in zip(texts, answers["ours"], strict=True)) / len(prompts)
            for name, texts in answers.items()
        },
    }
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
