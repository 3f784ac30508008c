"""In-context families on tokenizers as real checkpoints have them: bases in three styles, rows, short trainings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from align.data.tokenizer import train_tokenizer
from align.engines.problem import Problem
from align.methods import METHODS
from align.models import load_tokenizer
from align.models.formats import settle
from align.policies.tagged import TaggedFamily
from align.preferences import Weights
from align.runs import Ledger, Workspace
from factories.chat_styles import chat_checkpoint

BASES = ("llama3", "chatml", "bytes")  # two chat templates, and a base model of our own tokenizer without one
IN_CONTEXT = ("ric", "cpo", "dpa", "conditioned_dpo", "mo_odpo", "conditioned_rl")
WORDS = ("tea", "glue", "rope", "bees", "clay", "ink")
QUESTIONS = [f"how do I use {word}?" for word in WORDS]
SMALL = {
    "steps": 1, "batch_size": 8, "num_generations": 4, "max_completion_length": 3, "epochs": 1, "labels": "scalarised",
    "learning_rate": 1e-3, "beta": 0.5, "n": 2, "rounds": 1, "pairs": 8, "online_rounds": 1, "online_samples": 8,
    "prompts_per_round": 4, "replay": 4, "scores": "rows", "logging_steps": 1, "levels": 4, "tau": 0.4,
}  # fmt: skip


def checkpoint(base: str, folder: Path) -> str:
    """A tiny Llama with the tokenizer of that base, its prompt format settled as an earlier stage leaves it.

    It has room for the wrappers of attacks (rotary positions need no other weights).
    """
    if base != "bytes":
        file = chat_checkpoint(base, folder) / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": 2048}))
        return str(folder)
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(QUESTIONS, vocab_size=300, out=folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=2048, tie_word_embeddings=True, initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    settle(tokenizer, prompts=["\n\nHuman: how?\n\nAssistant:"])
    tokenizer.save_pretrained(folder)
    return str(folder)


def long(prompts: Any, completions: Any, **_: Any) -> list[float | None]:
    """The number of characters."""
    return [float(len(text)) for text in completions]


def vowels(prompts: Any, completions: Any, **_: Any) -> list[float | None]:
    """The number of vowels."""
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]


def problem(reference: str) -> Problem[Weights]:
    """Comparisons with scores and prompts, a conversation among them."""
    rows = [
        {
            "id": str(i), "prompt": question, "a": f" {WORDS[i]} and so on", "b": " no",
            "scores_a": [float(10 + i), 5.0], "scores_b": [2.0, float(i)],
        }
        for i, question in enumerate(QUESTIONS)
    ]  # fmt: skip
    prompts = [*QUESTIONS, "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: how do I use wax?\n\nAssistant:"]
    return Problem(
        reference=reference, objectives={"long": long, "vowels": vowels}, preferences=[Weights((1.0, 0.0))],
        comparisons=rows, prompts=[{"prompt": prompt} for prompt in prompts],
    )  # fmt: skip


def trained(method: str, *, reference: str, run: Path, unsaid: Any = None, **changes: Any) -> TaggedFamily:
    """The family of a short training, saved in `run`; `unsaid` is one more row, in which tags cannot stand."""
    module = METHODS[method]
    known = {field.name for field in dataclasses.fields(module.Config)}
    settings = {name: value for name, value in {**SMALL, **changes}.items() if name in known}
    made = problem(reference)
    if unsaid is not None:
        rows, prompts = list(made.comparisons or ()), list(made.prompts or ())
        made = dataclasses.replace(
            made, comparisons=[*rows, {**rows[0], **unsaid, "id": "unsaid"}], prompts=[*prompts, unsaid]
        )
    family = module.fit(module.Config(**settings), made, Workspace(run, Ledger()))
    family.save(run)
    assert isinstance(family, TaggedFamily)
    return family
