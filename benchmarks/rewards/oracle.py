"""What the labels could give: estimators that know the world's rules, and the best one that knows nothing of a topic.

`true_class`: the gold rewards' own functions of a response, coefficients unknown; maximum likelihood on the labels.
`rules`: which facts are right and each topic's harm level are known, the form of the reward is not; posterior mean of
eighteen linear coefficients. `topic_blind`: the mean gold reward of the fine-tuning topics, what infinitely many labels
say of a topic about which nothing is known. Legend: N responses, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.functional.bradley_terry import fit_linear_reward
from align.testbed.responses import gold_rewards, helpfulness, node_of, node_tokens
from align.testbed.world import ALPHABET, COLON, FACTS, Prompt, Topic, World

Array = NDArray[np.float64]
KINDS = ("true_class", "rules", "topic_blind")


def oracle_rewards(
    kind: str, world: World, prompts: Sequence[Prompt], *, pairs: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[Array]:
    """(N, K) rewards of each prompt in gold units, from the labelled `pairs` of each objective."""
    if kind == "topic_blind":
        seen = [topic for topic in world.topics if not topic.heldout]
        blind_NK = np.mean([gold_rewards(world, topic) for topic in seen], axis=0)
        return [blind_NK for _ in prompts]
    weights = {name: _fitted(kind, world, k, pairs[name]) for k, name in enumerate(world.objectives)}

    def rewards(topic: Topic) -> Array:
        columns = [features_of(kind, world, topic, k)[:-1] @ weights[name] for k, name in enumerate(world.objectives)]
        return np.stack(columns, 1)

    return [rewards(prompt.topic) for prompt in prompts]


def _fitted(kind: str, world: World, objective: int, pairs: Sequence[Mapping[str, Any]]) -> Array:
    topics = {topic.word: topic for topic in world.topics}
    tables: dict[str, Array] = {}

    def row(prompt: str, text: str) -> Array:
        words = prompt.split()
        topic = topics[words[words.index(COLON) - 1]]
        if topic.word not in tables:
            tables[topic.word] = features_of(kind, world, topic, objective)
        node = node_of(text.split(), world.config.max_tokens)
        return tables[topic.word][-1 if node is None else node]

    differences = [row(p["prompt"], p["chosen"]) - row(p["prompt"], p["rejected"]) for p in pairs]
    strengths = (1e-6,) if kind == "true_class" else tuple(10.0**k for k in range(-2, 4))
    fit = fit_linear_reward(np.array(differences), strengths=strengths)
    return world.config.tau * fit.weights_F


def features_of(kind: str, world: World, topic: Topic, objective: int) -> Array:
    """(N + 1, F) features of every response; the last row is a malformed one, as the last column says."""
    depth = world.config.max_tokens
    tokens = node_tokens(depth)
    share, warns = helpfulness(topic, depth), (tokens == ALPHABET.index("careful")).any(1)
    refuses = tokens[:, 0] == ALPHABET.index("sorry")
    if kind == "true_class":
        if objective == 0:
            columns = [share]
        elif objective == 1:
            caution = np.maximum(refuses & (share == 0), 0.5 * warns)
            columns = [topic.harm * share, topic.harm * caution]
        else:
            columns = [gold_rewards(world, topic)[:, objective]]
    else:
        wrong = sum((tokens == ALPHABET.index(f)).any(1) for f in FACTS if f not in topic.facts)
        said = [share, wrong, refuses, warns, tokens[:, 0] == ALPHABET.index("sure"), (tokens >= 0).sum(1)]
        columns = [(topic.harm == level) * np.asarray(one, dtype=np.float64) for level in range(3) for one in said]
    features_NF = np.stack([*columns, np.zeros(len(tokens))], 1).astype(np.float64)
    last_F = np.zeros((1, features_NF.shape[1]))
    last_F[0, -1] = 1.0
    return np.concatenate([features_NF, last_F])
