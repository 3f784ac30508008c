"""Responses drawn from a testbed policy, and pools of them from which the four parts of a drop are estimated.

Prefixes that several samples share are read once, so that thousands of samples of one prompt cost a few hundred rows.
Legend: N samples, U different prefixes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from align.testbed.gold import plain_words
from align.testbed.responses import gold_score
from align.testbed.transport import control_of, plain_of
from align.testbed.vocabulary import VOCABULARY, alphabet_ids, encode, response_words
from align.testbed.world import Prompt, World
from evals.attribution.sampled_parts import SOURCES, Pool, sampled_parts
from evals.items import Json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Places = dict[str, tuple["PreTrainedModel", Prompt]]  # source -> (model, the prompt it answers)


def draw(
    model: PreTrainedModel, prompt: Prompt, *, count: int, max_tokens: int, rng: np.random.Generator,
    alphabet: Sequence[int] | None = None, temperature: float = 1.0,
) -> list[list[int]]:  # fmt: skip
    """`count` responses of a model; the world's rule ends a response.

    A response that fills `max_tokens` has one token more, its end or what makes it malformed. `alphabet` are the tokens
    that a response goes on after (default: those of the prompt's spelling).
    """
    head, alphabet = encode(prompt.text), alphabet or alphabet_ids(prompt.spelling)
    drawn: list[list[int]] = [[] for _ in range(count)]
    open_ones = list(range(count))
    while open_ones:
        prefixes: dict[tuple[int, ...], list[int]] = {}
        for i in open_ones:
            prefixes.setdefault(tuple(drawn[i]), []).append(i)
        logp_UV = _next_logp(model, [[*head, *prefix] for prefix in prefixes])
        for logp_V, members in zip(logp_UV, prefixes.values(), strict=True):
            scaled_V = logp_V / temperature
            p_V = np.exp(scaled_V - scaled_V.max())
            for i, token in zip(members, rng.choice(len(p_V), size=len(members), p=p_V / p_V.sum()), strict=True):
                drawn[i].append(int(token))
        open_ones = [i for i in open_ones if drawn[i][-1] in alphabet and len(drawn[i]) <= max_tokens]
    return drawn


def response_logprobs(model: PreTrainedModel, prompt: Prompt, responses: Sequence[Sequence[int]]) -> np.ndarray:
    """(N,) log-probability of each whole response behind the prompt, at temperature 1."""
    head, logp_N = encode(prompt.text), np.zeros(len(responses))
    for depth in range(max(map(len, responses))):
        prefixes: dict[tuple[int, ...], list[int]] = {}
        for i, ids in enumerate(responses):
            if len(ids) > depth:
                prefixes.setdefault(tuple(ids[:depth]), []).append(i)
        logp_UV = _next_logp(model, [[*head, *prefix] for prefix in prefixes])
        for logp_V, members in zip(logp_UV, prefixes.values(), strict=True):
            logp_N[members] += logp_V[[responses[i][depth] for i in members]]
    return logp_N


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


def respelt(ids: Sequence[int], *, source: int, target: int) -> list[int]:
    """A response in one spelling as the matching one in another: the two alphabets change places."""
    pairs = list(zip(alphabet_ids(source), alphabet_ids(target), strict=True))
    swapped = dict(pairs) | {b: a for a, b in pairs}
    return [swapped.get(i, i) for i in ids]


def pool_of(world: World, places: Places, *, weights: Sequence[float], count: int, rng: np.random.Generator) -> Pool:
    """`count` responses from each source of one base item (one of two that are alike), scored under all sources."""
    drawn = {s: count for s in SOURCES if s != "reference_control" or places[s][1] != places["reference_shifted"][1]}
    responses, values = [], []  # all in the plain spelling
    for source in drawn:
        model, prompt = places[source]
        for ids in draw(model, prompt, count=count, max_tokens=world.config.max_tokens, rng=rng):
            values.append(scalarised(world, prompt, ids, weights))
            responses.append(respelt(ids, source=prompt.spelling, target=0))
    logp = {}
    for source in SOURCES:
        model, prompt = places[source]
        spelt = [respelt(ids, source=0, target=prompt.spelling) for ids in responses]
        logp[source] = response_logprobs(model, prompt, spelt)
    return Pool(np.array(values), logp, drawn)


def parts_from_samples(
    world: World, model: PreTrainedModel, reference: PreTrainedModel, *, shift: str, weights: Sequence[float],
    count: int, seed: int,
) -> Json:  # fmt: skip
    """`sampled_parts` of a policy under a shift whose base items have plain prompts, from `count` samples a source."""
    pools, items = {}, {}
    for number, shifted in enumerate(world.test_prompts(shift)):
        plain = plain_of(world, shifted)
        if plain is None:
            raise ValueError(f"{shift} brings base items of its own: nothing can be carried over to them")
        places: Places = {
            "policy_plain": (model, plain), "policy_shifted": (model, shifted), "reference_plain": (reference, plain),
            "reference_control": (reference, control_of(world, shifted)), "reference_shifted": (reference, shifted),
        }  # fmt: skip
        rng = np.random.default_rng([seed, number])
        pools[shifted.text] = pool_of(world, places, weights=weights, count=count, rng=rng)
        items[shifted.text] = shifted.item
    return sampled_parts(pools, beta=world.config.beta, clusters=items)
