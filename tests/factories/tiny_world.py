"""Tiny testbed worlds and random models on them, with the whole outcome space enumerated in pure Python.

Nothing here uses the tree, the leaf tables or the optimum of `align.testbed`: it is what they are checked against.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch

from align.models import ModelConfig, build_model
from align.testbed.vocabulary import (
    ALPHABET_IDS,
    CIPHER_ALPHABET_IDS,
    END_ID,
    ENDING_IDS,
    PAD_ID,
    TOKEN_ID,
    VOCABULARY,
    build_tokenizer,
)
from align.testbed.world import ALPHABET, World, WorldConfig, cipher

TINY = WorldConfig(name="tiny test", max_tokens=2)


def make_model(architecture: str = "llama", *, seed: int = 0) -> Any:
    """A random model of uneven next-token distributions with the testbed's tokenizer and response endings.

    A bias on the output favours response words of both spellings and the end, or nearly all mass would be malformed.
    """
    shape = ModelConfig(architecture=architecture, hidden=16, layers=2, heads=2, context=16, init_std=0.25)
    model = build_model(shape, build_tokenizer(), seed=seed).eval()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(VOCABULARY)))
    model.lm_head.bias.data[list(ALPHABET_IDS + CIPHER_ALPHABET_IDS)] = 6.0
    model.lm_head.bias.data[END_ID] = 8.5
    model.generation_config.eos_token_id = list(ENDING_IDS)
    model.generation_config.pad_token_id = PAD_ID
    return model


def next_logprobs(model: Any, words: list[str]) -> list[float]:
    """log P(next token | words), from one plain forward pass without any cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[TOKEN_ID[word] for word in words]]), use_cache=False).logits
    return logits[0, -1].double().log_softmax(-1).tolist()


def all_leaves(model: Any, prompt: str, *, max_tokens: int, ciphered: bool = False) -> Iterator[tuple[Any, float]]:
    """Every outcome of a prompt and its log-probability.

    An outcome is the tuple of plain words of a well-formed response, or ("malformed", prefix, token).
    """
    spelling = {word: cipher(word) if ciphered else word for word in ALPHABET}
    for length in range(max_tokens + 1):
        for plain in itertools.product(ALPHABET, repeat=length):
            path, total = prompt.split(), 0.0
            for word in plain:
                total += _cached(model, tuple(path))[TOKEN_ID[spelling[word]]]
                path.append(spelling[word])
            last = _cached(model, tuple(path))
            yield plain, total + last[END_ID]
            for token, word in enumerate(VOCABULARY):
                inner = length < max_tokens and word in spelling.values()
                if token != END_ID and not inner:
                    yield ("malformed", plain, word), total + last[token]


_CACHE: dict[Any, list[float]] = {}


def _cached(model: Any, path: tuple[str, ...]) -> list[float]:
    key = (model, path)  # the model itself, not its id: a freed id may come back
    if key not in _CACHE:
        _CACHE[key] = next_logprobs(model, list(path))
    return _CACHE[key]


def rewards_by_hand(world: World, topic: Any, outcome: Any) -> list[float]:
    """Gold rewards of an outcome, straight from the rules in words: a loop, no arrays."""
    config = world.config
    if outcome[:1] == ("malformed",):
        return [config.malformed_reward] * config.objectives
    helpful = len({word for word in outcome if word in topic.facts}) / 3
    caution = 0.0
    if "careful" in outcome:
        caution = 0.5
    if outcome[:1] == ("sorry",) and helpful == 0:
        caution = 1.0
    natural = 0.5 + topic.harm / 2 * (0.5 * caution - 0.5 * helpful)
    dial = config.conflict
    if dial <= 0.5:
        harmless = natural * (dial / 0.5) + helpful * (1 - dial / 0.5)
    else:
        harmless = natural * ((1 - dial) / 0.5) + (1 - helpful) * (1 - (1 - dial) / 0.5)
    brief = 1 - len(outcome) / config.max_tokens
    polite = 1.0 if outcome[:1] in (("sure",), ("sorry",)) else 0.0
    cautious = 1.0 if outcome[-1:] == ("careful",) else 0.0
    return [helpful, harmless, brief, polite, cautious][: config.objectives]


def brute_force(world: World, topic: Any, policy: dict[Any, float], reference: dict[Any, float]) -> dict[str, Any]:
    """Mean rewards, KL and malformed mass of one prompt by a loop over outcomes -> log-probabilities."""
    values, kl, malformed = [0.0] * world.config.objectives, 0.0, 0.0
    for outcome, logp in policy.items():
        p = math.exp(logp)
        for k, reward in enumerate(rewards_by_hand(world, topic, outcome)):
            values[k] += p * reward
        kl += p * (logp - reference[outcome])
        malformed += p * (outcome[:1] == ("malformed",))
    return {"values": values, "kl": kl, "malformed": malformed}
