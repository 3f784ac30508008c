"""A language world of one-token responses, where every distribution, optimum and KL is a short sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.engines.problem import Problem
from align.models import ModelConfig, build_model, save_model
from align.preferences import Weights
from align.runs import Ledger, Workspace
from recipes.pipeline.specialists import with_specialists

WORDS = ("<pad>", "<end>", "x", "y", ":", "A", "B", "C", "D")
RESPONSES = ("A", "B", "C", "D")
PROMPTS = ("x :", "y y :")  # of different lengths: padding is exercised
REWARDS = {  # (objective, prompt) to the rewards of A, B, C, D; everything else earns 0
    ("one", "x :"): (1.0, 0.6, 0.0, 0.2),
    ("two", "x :"): (0.0, 0.7, 1.0, 0.2),
    ("one", "y y :"): (0.1, 0.9, 0.3, 0.0),
    ("two", "y y :"): (0.8, 0.0, 0.4, 0.6),
}


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<pad>")


def make_reference(
    folder: Path, *, one_token: bool = True, seed: int = 0, architecture: str = "llama", sharpness: float = 8.0
) -> str:
    """Save a random model of uneven next-token distributions; `one_token`: every token ends a response."""
    tokenizer = make_tokenizer()
    shape = ModelConfig(architecture=architecture, hidden=32, layers=1, heads=2, context=16, tie=False)
    model = build_model(shape, tokenizer, seed=seed)
    model.lm_head.weight.data *= sharpness
    model.generation_config.eos_token_id = list(range(len(WORDS))) if one_token else tokenizer.eos_token_id
    save_model(model, tokenizer, folder)
    return str(folder)


class TableReward:
    """The reward of the first sampled token, from its id where the trainer gives it and from the text elsewhere."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        first = [c.split()[0] if c.split() else "" for c in completions]
        if "completion_ids" in columns:
            first = [WORDS[ids[0]] for ids in columns["completion_ids"]]
        return [reward(self.__name__, p, word) for p, word in zip(prompts, first, strict=True)]


def reward(name: str, prompt: str, word: str) -> float:
    return REWARDS[name, prompt][RESPONSES.index(word)] if word in RESPONSES else 0.0


OBJECTIVES = {"one": TableReward("one"), "two": TableReward("two")}


def next_distribution(model: str, prompt: str) -> list[float]:
    """Probabilities of the first response token, from one plain forward pass."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        ids = torch.tensor([[WORDS.index(word) for word in prompt.split()]])
        return AutoModelForCausalLM.from_pretrained(model)(input_ids=ids).logits[0, -1].softmax(-1).tolist()


def optimum(reference: Sequence[float], rewards: Sequence[float], *, beta: float) -> list[float]:
    """`ref exp(r / beta)`, normalised."""
    tilted = [p * math.exp(r / beta) for p, r in zip(reference, rewards, strict=True)]
    return [t / sum(tilted) for t in tilted]


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def scalarised(prompt: str, weights: Sequence[float]) -> list[float]:
    """w . r of every word of the vocabulary."""
    names = ("one", "two")
    return [sum(w * reward(n, prompt, word) for w, n in zip(weights, names, strict=True)) for word in WORDS]


def pair_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Comparisons with two different responses, both objectives' scores, and the annotator's uniform draws."""
    import random

    rng = random.Random(seed)
    rows = []
    for i in range(count):
        prompt = PROMPTS[i % 2]
        a, b = rng.sample(RESPONSES, 2)
        scores = [[reward(n, prompt, word) for n in ("one", "two")] for word in (a, b)]
        rows.append(
            {
                "id": f"r{i}",
                "prompt": prompt,
                "a": " " + a,
                "b": " " + b,
                "scores_a": scores[0],
                "scores_b": scores[1],
                "u": rng.random(),
            }
        )
    return rows


PROMPT_ROWS = [{"id": str(i), "prompt": prompt} for i, prompt in enumerate(PROMPTS)]
BETA = 0.5
RL = {
    "beta": BETA,
    "steps": 40,
    "batch_size": 96,
    "num_generations": 24,
    "max_completion_length": 1,
    "learning_rate": 2e-3,
    "logging_steps": 10,
}
PAIRS = {"beta": BETA, "learning_rate": 5e-3, "batch_size": 128, "epochs": 3.0, "tau": 0.4, "labels": "scalarised"}


def problem_of(reference: str, **fields: Any) -> Problem:
    """The bandit's problem: its objectives, its prompts, no comparisons and no preferences, unless `fields` say so."""
    return Problem(
        **{"objectives": OBJECTIVES, "preferences": (), "prompts": PROMPT_ROWS, "reference": reference} | fields
    )


def workspace(folder: Path, ledger: Ledger | None = None) -> Workspace:
    return Workspace(folder, ledger or Ledger())


def fit(module: Any, config: Any, *, reference: str, weights: Sequence[Weights], out: Path, **data: Any) -> Any:
    """The family of one call; `data` are further fields of the problem, and `ledger`."""
    run = Workspace(out, data.pop("ledger", None) or Ledger())
    data.setdefault("objectives", OBJECTIVES)
    problem = Problem(reference=reference, preferences=weights, **data)
    return module.fit(config, with_specialists(config, problem, run), run)


def tensors(model: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(Path(model) / "model.safetensors")


def same_weights(one: str, other: str) -> bool:
    import torch

    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
