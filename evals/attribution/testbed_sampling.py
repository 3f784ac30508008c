"""Responses drawn from a testbed policy with their log-probabilities under other models too, and the split from them.

Prefixes that several samples share are read once, so that thousands of samples of one prompt cost a few hundred rows.
Legend: N samples, U different prefixes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from align.testbed.gold import plain_words
from align.testbed.responses import gold_score
from align.testbed.vocabulary import VOCABULARY, alphabet_ids, encode, response_words
from align.testbed.world import Prompt, World
from evals.attribution.sampled_split import Estimate, Samples, estimate

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def draw(
    models: Sequence[PreTrainedModel], prompt: Prompt, *, count: int, max_tokens: int, rng: np.random.Generator,
    alphabet: Sequence[int] | None = None, temperature: float = 1.0,
) -> tuple[list[list[int]], np.ndarray]:  # fmt: skip
    """`count` responses of models[0], and their (models, N) log-probabilities; the world's rule ends a response.

    A response that fills `max_tokens` has one token more, its end or what makes it malformed. `alphabet` are the tokens
    that a response goes on after (default: those of the prompt's spelling). The log-probabilities are those at
    temperature 1, whatever `temperature` the responses are drawn at.
    """
    head, alphabet = encode(prompt.text), alphabet or alphabet_ids(prompt.spelling)
    drawn: list[list[int]] = [[] for _ in range(count)]
    logp = np.zeros((len(models), count))
    open_ones = list(range(count))
    while open_ones:
        prefixes: dict[tuple[int, ...], list[int]] = {}
        for i in open_ones:
            prefixes.setdefault(tuple(drawn[i]), []).append(i)
        tables = [_next_logp(model, [[*head, *prefix] for prefix in prefixes]) for model in models]
        for row, members in enumerate(prefixes.values()):
            scaled_V = tables[0][row] / temperature
            p_V = np.exp(scaled_V - scaled_V.max())
            tokens = rng.choice(len(p_V), size=len(members), p=p_V / p_V.sum())
            for i, token in zip(members, tokens.tolist(), strict=True):
                drawn[i].append(token)
                logp[:, i] += [table[row, token] for table in tables]
        open_ones = [i for i in open_ones if drawn[i][-1] in alphabet and len(drawn[i]) <= max_tokens]
    return drawn, logp


def _next_logp(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """(U, V) log-probabilities of the next token; all rows have one length. Tags beyond the vocabulary are left out."""
    import torch

    with torch.inference_mode():
        logits_UV = model(input_ids=torch.tensor(rows, device=model.device)).logits[:, -1, : len(VOCABULARY)]
    return logits_UV.cpu().double().log_softmax(-1).numpy()


def scalarised(world: World, prompt: Prompt, ids: Sequence[int], weights: Sequence[float]) -> float:
    """The judge's w.r of one sampled response."""
    words = response_words(list(ids), spelling=prompt.spelling)
    plain = plain_words(words, spelling=prompt.spelling)
    return float(np.dot(weights, gold_score(world, prompt.topic, plain)))


def estimates(
    world: World, model: PreTrainedModel, reference: PreTrainedModel, prompts: Sequence[Prompt], *,
    weights: Sequence[float], count: int, seed: int,
) -> dict[str, Estimate]:  # fmt: skip
    """Prompt -> J and J* from `count` samples each of policy and reference."""
    by_prompt = {}
    for number, prompt in enumerate(prompts):
        sides = []
        for which, models in enumerate(((model, reference), (reference, model))):
            rng = np.random.default_rng([seed, number, which])
            ids, logp = draw(models, prompt, count=count, max_tokens=world.config.max_tokens, rng=rng)
            values = np.array([scalarised(world, prompt, one, weights) for one in ids])
            sides.append(Samples(values, logp[which], logp[1 - which]))
        by_prompt[prompt.text] = estimate(sides[0], sides[1], beta=world.config.beta)
    return by_prompt
