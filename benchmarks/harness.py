"""What the harness costs: milliseconds per cell around an idle backend, and generation against bare `generate`.

    python benchmarks/harness.py                 # a model of 3 million parameters made on the spot, 500 prompts
    python benchmarks/harness.py --model runs/hh/sft

Rounds alternate between the two paths in one process; the ratio is that of the medians. Both draw greedily, with the
same batch size and number of new tokens, over the same prompts; the bare path gets them in the order of the file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from align.threads import one_thread

one_thread()

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
    from evals.engine import Engine, ask
    from evals.judges import make_judge
    from evals.judges.measurement import Verdict
    from evals.measurements import CompletionOf
    from evals.prompts import Item
    from evals.shifts import parse_shifts
    from evals.store import CellStore

    shifts = parse_shifts(["none", "base64", "lowercase", "prefix_injection"])
    items = [Item(f"i{n}", f"question {n}: {' '.join(WORDS)}", label="harmful") for n in range(cells // 8)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        engine = Engine(NoBackend(), store=CellStore(Path(folder) / "cells.jsonl"))  # type: ignore[arg-type]
        asked = ask(items, suite="made", shifts=shifts)
        found = engine.run(asked, measurements=[CompletionOf(Generation()), Verdict(make_judge("rules"))])
        seconds = time.perf_counter() - start
    return 1000 * seconds / sum(map(len, found.values()))


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


def paths(model: str, *, prompts: Sequence[str], new: int, batch: int) -> tuple[Callable[[], int], Callable[[], int]]:
    """(ours, bare): each answers all prompts once and says how many answers there were."""
    import torch

    from evals.backends.base import Generation
    from evals.backends.transformers import TransformersBackend
    from evals.prompts import Prompt

    backend = TransformersBackend.load(model, template="hh", batch_size=batch)
    asked = [Prompt.user(text) for text in prompts]
    texts = [str(backend.renderer.text(prompt)) for prompt in asked]

    def ours() -> int:
        return len(backend.generate(asked, config=Generation(new), seeds=[0] * len(asked)))

    def bare() -> int:
        done = 0
        for start in range(0, len(texts), batch):
            inputs = backend.tokenizer(
                texts[start : start + batch], return_tensors="pt", padding=True, padding_side="left",
                add_special_tokens=False, return_token_type_ids=False,
            )  # fmt: skip
            with torch.inference_mode():
                out = backend.model.generate(
                    **inputs, max_new_tokens=new, do_sample=False, pad_token_id=backend.tokenizer.pad_token_id
                )
            done += len(backend.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :]))
        return done

    return ours, bare


def seconds(call: Callable[[], int]) -> float:
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
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or made_model(Path(folder))
        ours, bare = paths(
            model, prompts=made_prompts(arguments.prompts), new=arguments.new, batch=arguments.batch
        )  # fmt: skip
        ours(), bare()  # warm
        rounds = [(seconds(ours), seconds(bare)) for _ in range(arguments.rounds)]
    each = [overhead(arguments.cells) for _ in range(arguments.rounds)]
    found = {
        "overhead_ms_per_cell": statistics.median(each),
        "seconds_ours": [a for a, _ in rounds],
        "seconds_bare": [b for _, b in rounds],
        "speed_ratio": statistics.median(b for _, b in rounds) / statistics.median(a for a, _ in rounds),
    }
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
