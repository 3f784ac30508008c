"""The conformance world: four prompts, 39 replies to each, two objectives that disagree, and a reference model.

A reply is one to three of three words and an end token. Anything else (no word, another token, a fourth word) is
malformed, with one low reward, and rare under the reference: pairs of replies never show it. Rewards are drawn at
random, once, so that what trainers do wrong ends in places far apart: their scale differs between objectives and
prompts, and replies of different lengths are good.
Legend: P prompts, n nodes of a depth, S slots of a node (words, the end, malformed), K objectives, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from align.testbed.theory.fixed_points import Levels, Tree
from align.testbed.theory.hypotheses import log_normalise

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PAD, END, COLON = "<pad>", "<end>", ":"
WORDS = ("red", "green", "blue")
TOPICS = ("one", "two", "three", "four")
VOCABULARY = (PAD, END, COLON, *WORDS, *TOPICS)
LENGTH = 3  # words of the longest reply
OTHERS = (len(VOCABULARY) - len(WORDS) - 1, len(VOCABULARY) - 1)  # malformed tokens at inner nodes, at the last depth
PROMPTS = tuple(f"{topic} {COLON}" for topic in TOPICS)
REPLIES = tuple(" ".join(words) for length in range(1, LENGTH + 1) for words in itertools.product(WORDS, repeat=length))
OBJECTIVES = ("first", "second")
MALFORMED = -2.0  # the reward of a malformed reply under every objective
SEED = 0
RARE = 3e-4  # the reference's probability of each token that makes a reply malformed
FIT = 100  # steps of fitting the reference


@lru_cache(maxsize=1)
def rewards() -> np.ndarray:
    """(P, replies, K) of well-formed replies.

    A sum over a reply's words (by position), neighbours and length, drawn for each prompt and objective; normal, of
    correlation -0.5 between objectives, scaled to standard deviations of 1.2 and 2 over replies, by prompt times e^±1.
    """
    rng = np.random.default_rng(SEED)
    shape, count = (len(PROMPTS), 2), len(WORDS)
    word = _disagreeing(rng.normal(size=(*shape, LENGTH, count)))
    neighbours = 0.7 * _disagreeing(rng.normal(size=(*shape, count, count)))
    length = _disagreeing(rng.normal(size=(*shape, LENGTH)))
    index = [[WORDS.index(w) for w in reply.split()] for reply in REPLIES]
    columns = [
        sum(word[..., t, w] for t, w in enumerate(ids))
        + sum(neighbours[..., v, w] for v, w in itertools.pairwise(ids)) + length[..., len(ids) - 1]
        for ids in index
    ]  # fmt: skip
    raw = np.stack(columns, axis=1)
    raw = (raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True)
    spread = np.exp(rng.uniform(-1.0, 1.0, size=(len(PROMPTS), 1, 2)))
    return np.asarray(raw * np.array([1.2, 2.0]) * spread)


def _disagreeing(draws: np.ndarray) -> np.ndarray:
    """The second objective's draws (axis 1) mixed with the first's to a correlation of -0.5."""
    return np.stack([draws[:, 0], -0.5 * draws[:, 0] + np.sqrt(0.75) * draws[:, 1]], axis=1)


@lru_cache(maxsize=1)
def _rewards_by_text() -> dict[tuple[str, str], tuple[float, ...]]:
    return {
        (prompt, reply): tuple(rewards()[p, r].tolist())
        for p, prompt in enumerate(PROMPTS) for r, reply in enumerate(REPLIES)
    }  # fmt: skip


class Reward:
    """One objective in the shape of TRL's reward functions; it counts the replies that it scored."""

    def __init__(self, index: int) -> None:
        self.index, self.__name__, self.scored = index, OBJECTIVES[index], 0

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float]:
        self.scored += len(completions)
        table, malformed = _rewards_by_text(), (MALFORMED,) * len(OBJECTIVES)
        return [
            table.get((prompt, " ".join(completion.split())), malformed)[self.index]
            for prompt, completion in zip(prompts, completions, strict=True)
        ]


def reward_levels() -> Levels:
    """(P, n, S, K) of each depth: the rewards of ending at each node, and of leaving the tree there."""
    levels, start = [], -1  # the empty reply has no reward of its own
    for depth in range(LENGTH + 1):
        count, lead = len(WORDS) ** depth, len(WORDS) if depth < LENGTH else 0
        level = np.full((len(PROMPTS), count, lead + 2, len(OBJECTIVES)), MALFORMED)
        level[..., :lead, :] = 0.0
        if depth:
            level[..., lead, :] = rewards()[:, start : start + count]
        levels.append(level)
        start += count
    return tuple(levels)


@lru_cache(maxsize=1)
def reply_leaves() -> np.ndarray:
    """Positions of REPLIES among a prompt's leaves."""
    marks, start = [], 0
    for depth in range(LENGTH + 1):
        count, lead = len(WORDS) ** depth, len(WORDS) if depth < LENGTH else 0
        mark = np.full((1, count, lead + 2), -1.0)
        if depth:
            mark[0, :, lead] = np.arange(start, start + count)
            start += count
        marks.append(mark)
    empty = tuple(np.zeros(mark.shape) for mark in marks)
    flat = Tree(empty, (), len(WORDS)).flat(marks)[0]
    return np.argsort(flat)[(flat < 0).sum() :]


def tree(logref: Levels) -> Tree:
    """The world's trees under a reference's conditionals."""
    return Tree(logref, reward_levels(), len(WORDS))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words between spaces; an unknown word is an error."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=PAD, padding_side="left")


def _paths() -> list[list[int]]:
    """Token ids of every prompt before every longest sequence of words: between them they pass every node."""
    index = {word: i for i, word in enumerate(VOCABULARY)}
    return [
        [index[token] for token in (*prompt.split(), *words)]
        for prompt in PROMPTS for words in itertools.product(WORDS, repeat=LENGTH)
    ]  # fmt: skip


def node_logits(model: PreTrainedModel) -> list[Tensor]:
    """(P, n, V) next-token logits at every node, depth by depth; differentiable. One forward pass of 108 rows."""
    import torch

    logits = model(input_ids=torch.tensor(_paths(), device=model.device), use_cache=False).logits
    heads = len(PROMPTS[0].split())
    by_path = logits[:, heads - 1 :].reshape(len(PROMPTS), len(WORDS) ** LENGTH, LENGTH + 1, len(VOCABULARY))
    return [by_path[:, :: len(WORDS) ** (LENGTH - depth), depth] for depth in range(LENGTH + 1)]


def conditionals(logits: Sequence[np.ndarray]) -> Levels:
    """(P, n, S) log-probabilities of the slots from (P, n, V) logits; malformed tokens are one slot."""
    words, end = [VOCABULARY.index(word) for word in WORDS], VOCABULARY.index(END)
    levels = []
    for depth, level in enumerate(logits):
        logp = log_normalise(np.asarray(level, float))
        lead = words if depth < LENGTH else []
        other = np.delete(logp, [*lead, end], axis=-1)
        top = other.max(-1, keepdims=True)
        rest = top + np.log(np.exp(other - top).sum(-1, keepdims=True))
        levels.append(np.concatenate([logp[..., [*lead, end]], rest], axis=-1))
    return tuple(levels)


def read(model: PreTrainedModel) -> Levels:
    """(P, n, S) the exact conditionals of a causal LM in this world's words."""
    import torch

    training = model.training
    with torch.no_grad():
        levels = [level.double().cpu().numpy() for level in node_logits(model.eval())]
    model.train(training)
    return conditionals(levels)


def make_reference(folder: Path) -> str:
    """Fit a model of 60,000 parameters to random conditionals and save it; about four seconds on one core.

    What counts as the reference is what the model says in the end, read exactly.
    """
    import torch

    from align.models import ModelConfig, build_model, save_model

    rng, tokenizer = np.random.default_rng(SEED + 1), build_tokenizer()
    shape = ModelConfig(architecture="llama", hidden=48, layers=2, heads=4, context=16, tie=False, init_std=0.15)
    model = build_model(shape, tokenizer, seed=SEED)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    likely = [VOCABULARY.index(word) for word in (*WORDS, END)]
    targets = []
    for depth in range(LENGTH + 1):
        usual = likely[:-1] if depth == 0 else likely[-1:] if depth == LENGTH else likely
        target = np.full((len(PROMPTS), len(WORDS) ** depth, len(VOCABULARY)), RARE)
        shares = rng.dirichlet([3.0] * len(usual), size=target.shape[:2])
        target[..., usual] = (1 - RARE * (len(VOCABULARY) - len(usual))) * shares
        targets.append(torch.tensor(target, dtype=torch.float32))
    for step in range(FIT):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / FIT)
        levels = node_logits(model)
        loss = -sum((t * level.log_softmax(-1)).sum(-1).mean() for t, level in zip(targets, levels, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.generation_config.eos_token_id = VOCABULARY.index(END)
    model.generation_config.pad_token_id = VOCABULARY.index(PAD)
    save_model(model, tokenizer, folder)
    return str(folder)
