"""Models of the tiny bandit's vocabulary made without training: adapters with random factors, and exact optima."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from align.models import load_model, save_model
from factories.tiny_bandit import PROMPTS, WORDS, make_tokenizer, reward


def make_adapter(base: str, folder: Path, *, r: int, seed: int, **settings: Any) -> str:
    """A LoRA adapter with random factors (PEFT starts B at 0, which would hide every error)."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings = {"lora_alpha": 3 * r, **settings}
    config = LoraConfig(task_type="CAUSAL_LM", r=r, target_modules="all-linear", **settings)
    model = get_peft_model(load_model(base), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def shifted(source: str, folder: Path, change: Callable[[str, torch.Tensor], Sequence[float]]) -> str:
    """A copy of `source` whose logits after prompt p are `logits + change(p, logits)`, by the smallest change of its
    output matrix (two prompts, two hidden states: two linear equations per token)."""
    model = load_model(source).eval()
    hidden, changes = [], []
    with torch.no_grad():
        for prompt in PROMPTS:
            ids = torch.tensor([[WORDS.index(word) for word in prompt.split()]])
            out = model(input_ids=ids, output_hidden_states=True)
            hidden.append(out.hidden_states[-1][0, -1].double())
            changes.append(torch.as_tensor(change(prompt, out.logits[0, -1]), dtype=torch.float64))
        delta = torch.stack(changes, 1) @ torch.linalg.pinv(torch.stack(hidden, 1))
        model.lm_head.weight += delta.float()
    save_model(model, make_tokenizer(), folder)
    return str(folder)


def specialist(source: str, folder: Path, objective: str, *, beta: float) -> str:
    """The optimum of `E[r] - beta KL(pi || source)` for one-token responses."""
    return shifted(source, folder, lambda prompt, _: [reward(objective, prompt, word) / beta for word in WORDS])


def reward_model(source: str, folder: Path, objective: str, *, scale: float) -> str:
    """An autoregressive reward model: log-probabilities `r / scale` up to a constant of the prompt."""

    def change(prompt: str, logits: torch.Tensor) -> torch.Tensor:
        return torch.tensor([reward(objective, prompt, word) / scale for word in WORDS]) - logits

    return shifted(source, folder, change)
