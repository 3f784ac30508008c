"""What the tests of mixing share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from align.models import load_model
from align.policies.mixed import MixedPolicy, Mixture
from factories.tiny_bandit import WORDS


def mixed(models: Sequence[str], *coefficients: float, **rule: Any) -> MixedPolicy:
    return MixedPolicy(models, mixture=Mixture(coefficients, **rule), name="mixed")


def ids_of(prompt: str) -> torch.Tensor:
    return torch.tensor([[WORDS.index(word) for word in prompt.split()]])


def plain_logprobs(model: str, prompt: str) -> torch.Tensor:
    """(V,) from one forward pass without a cache, in float64."""
    with torch.no_grad():
        logits = load_model(model).eval()(input_ids=ids_of(prompt), use_cache=False).logits
    return logits[0, -1].double().log_softmax(-1)
