"""What a trainer with a known fault ends at: the exact policy of each fault on a world's trees, in closed form.

A fault is given as the fixed point of its expected update, so that a trained policy can be held against it. Trees are
those of `predictions.world_tree`: at every node the continuations, then the end, then all malformed tokens as one slot.
Legend: P prompts of one batch, M leaves, n nodes of a depth, S slots, K objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from align.testbed.theory.desirability import kto
from align.testbed.theory.fixed_points import Tree, fixed_point, leaf_logprobs, optimum
from align.testbed.theory.group_advantages import Groups
from align.testbed.theory.quantile_whitening import rdpo

LONGEST_SEARCH = 200
LEAST = 1e-9  # a probability of 0


@dataclass(frozen=True)
class Asked:
    """What a trainer was asked for: `J = E[w.r] - beta KL(pi || ref)` at these weights, on these trees.

    `others`: how many tokens the malformed slot stands for, at inner nodes and at the last depth. `replies`: which of
    the M leaves are well-formed replies. `tau`: the temperature of the labels, where training is on pairs.
    """

    tree: Tree
    weights: tuple[float, ...]
    beta: float
    others: tuple[int, int]
    replies: np.ndarray
    tau: float = 0.8

    @property
    def total(self) -> np.ndarray:
        """(P, M) w.r of every leaf."""
        return np.asarray(self.tree.leaf_rewards @ np.array(self.weights))

    def formed(self, logp: np.ndarray) -> np.ndarray:
        """(P, R) of (P, M): the log-probabilities of well-formed replies, given that a reply is one."""
        return log_normalise(logp[:, self.replies])


def log_normalise(x: np.ndarray) -> np.ndarray:
    """(..., M) log-probabilities of unnormalised ones."""
    top = x.max(-1, keepdims=True)
    return np.asarray(x - top - np.log(np.exp(x - top).sum(-1, keepdims=True)))


def tilted(asked: Asked, tilt: Sequence[float] | np.ndarray) -> np.ndarray:
    """(P, M) `ref exp(tilt.r) / Z`: the optimum of some weights at some beta."""
    return log_normalise(asked.tree.leaf_logref + asked.tree.leaf_rewards @ np.asarray(tilt, float))


def right(asked: Asked) -> np.ndarray:
    """(P, M) pi*_w, the optimum of J."""
    return leaf_logprobs(asked.tree, optimum(asked.tree, weights=asked.weights, beta=asked.beta))


def leaf_tokens(tree: Tree) -> np.ndarray:
    """(M,) tokens of each leaf, the one that ends it included."""
    levels = [np.full(level.shape[-2:], d + 1.0) for d, level in enumerate(tree.logref)]
    return tree.flat(levels)


def mean_over_tokens(asked: Asked) -> np.ndarray:
    """(P, M) the log-ratio divided by its response's number of tokens, T: `log pi/ref = T (w.r - c) / beta`.

    Where the expected update vanishes `w.r - beta log(pi/ref) / T` is one constant c, the root that makes pi sum to 1.
    The same for DPO on mean log-probabilities, whose margins are then `w.dr`.
    """
    tree, tokens_M = asked.tree, leaf_tokens(asked.tree)
    low, high = asked.total.min(-1) - 50 * asked.beta, asked.total.max(-1) + 50 * asked.beta
    for _ in range(LONGEST_SEARCH):
        middle = (low + high) / 2
        exponent = tree.leaf_logref + tokens_M * (asked.total - middle[..., None]) / asked.beta
        above = np.exp(np.minimum(exponent, 700)).sum(-1) > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return log_normalise(tree.leaf_logref + tokens_M * (asked.total - high[..., None]) / asked.beta)


def endless(asked: Asked, *, least: float = 0.0) -> np.ndarray:
    """(P, M) the end token's log-probability is left out of log pi, in the loss and in the KL.

    The update moves the end only through the words that it competes with. At a node where no word is better than
    ending, the words stand at `ref exp((V(child) - r_end) / beta)` and the end takes what they leave, so V = r_end;
    else the end has probability 0. It gets there slowly, its gradient being proportional to its own probability:
    with `least` it stops at that share of the reference's, the words being at their best given that.
    """
    tree, w = asked.tree, np.array(asked.weights)
    ends: list[np.ndarray] = []
    value: np.ndarray | None = None
    for d in reversed(range(len(tree.logref))):
        words, ended = _word_values(asked, d, tree.rewards[d] @ w, value)
        soft = asked.beta * _log_sum(words)
        value = np.maximum(soft, ended)
        ends.append(np.maximum(1 - np.exp((np.minimum(soft, ended) - ended) / asked.beta), LEAST))
    levels: list[np.ndarray] = []
    value = None
    for d, target in zip(reversed(range(len(tree.logref))), ends, strict=True):
        words, ended = _word_values(asked, d, tree.rewards[d] @ w, value)
        p_end = np.maximum(target, least * np.exp(tree.logref[d][..., -2]))
        rest = np.log1p(-np.minimum(p_end, 1 - LEAST))
        total = _log_sum(words)
        value = p_end * ended + np.exp(rest) * asked.beta * (total - rest)
        logits = words - total[..., None] + rest[..., None]
        levels.append(np.insert(logits, words.shape[-1] - 1, np.log(p_end), axis=-1))
    return log_normalise(leaf_logprobs(tree, tuple(reversed(levels))))


def _word_values(asked: Asked, d: int, payoff: np.ndarray, value: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(P, n, S - 1) `log ref + V / beta` of all slots but the end, and (P, n) the reward of ending."""
    if value is not None:
        children = value.reshape(*payoff.shape[:-1], asked.tree.branching)
        payoff = np.concatenate([children, payoff[..., -2:]], axis=-1)
    return np.delete(asked.tree.logref[d] + payoff / asked.beta, -2, axis=-1), payoff[..., -2]


def _log_sum(x: np.ndarray) -> np.ndarray:
    top = x.max(-1)
    return np.asarray(top + np.log(np.exp(x - top[..., None]).sum(-1)))


def without_reference(asked: Asked) -> np.ndarray:
    """(P, M) `exp(w.r / beta) / Z` over all token sequences: log pi where log pi / ref belongs."""
    last = len(asked.tree.logref) - 1
    counts = []
    for d, level in enumerate(asked.tree.logref):
        count = np.zeros(level.shape[-2:])
        count[..., -1] = np.log(asked.others[d == last])
        counts.append(count)
    return log_normalise(asked.tree.flat(counts) + asked.total / asked.beta)


def of_another_prompt(asked: Asked) -> np.ndarray:
    """(P, M) every response is scored under a prompt drawn anew: the optimum of the rewards' mean over prompts."""
    mixed = tuple(np.broadcast_to(level.mean(-4, keepdims=True), level.shape) for level in asked.tree.rewards)
    return right(replace(asked, tree=replace(asked.tree, rewards=mixed)))


def kto_of_pairs(asked: Asked) -> np.ndarray:
    """(P, M) KTO at beta / tau on pairs taken apart; of what no pair shows, the malformed, the reference's share."""
    logp, logref = asked.tree.leaf_logref.copy(), asked.tree.leaf_logref[:, asked.replies]
    formed = np.log(np.exp(logref).sum(-1, keepdims=True))
    total = asked.total[:, asked.replies]
    logp[:, asked.replies] = formed + kto(logref - formed, total, beta=asked.beta / asked.tau, tau=asked.tau)
    return logp


def _rule(scale: str, kl: str) -> Callable[[Asked], np.ndarray]:
    def of(asked: Asked) -> np.ndarray:
        return fixed_point(
            asked.tree, weights=asked.weights, beta=asked.beta, scale=scale, kl=kl, tolerance=1e-6, max_iterations=2000
        ).leaf_logp

    return of


def _of_eight(scale: str) -> Callable[[Asked], np.ndarray]:
    """Groups of eight, TRL's default, whose spread is often too small or too large; 512 seeded draws of the others."""

    def of(asked: Asked) -> np.ndarray:
        groups = Groups(8, draws=512)
        return fixed_point(
            asked.tree, weights=asked.weights, beta=asked.beta, scale=scale, kl="token", groups=groups,
            tolerance=1e-4, max_iterations=60,
        ).leaf_logp  # fmt: skip

    return of


def _rdpo(asked: Asked) -> np.ndarray:
    return rdpo(asked.tree, weights=asked.weights, beta=asked.beta, tolerance=1e-6).leaf_logp


@dataclass(frozen=True)
class Hypothesis:
    """One explanation of a trained policy: what it says of the trainer, and the policy that such a trainer ends at.

    `fault`: hypotheses of one fault say the same of a trainer and differ in details that a budget may not tell apart.
    """

    name: str
    fault: str
    says: str
    policy: Callable[[Asked], np.ndarray]


def _weights(change: Callable[[Asked], Sequence[float]]) -> Callable[[Asked], np.ndarray]:
    return lambda asked: tilted(asked, np.asarray(change(asked), float) / asked.beta)


_GROUP = "divides by each prompt's reward spread: every prompt has a beta of its own"
_BATCH = "divides by the batch's reward spread: the asked weights at another beta"
_GDPO = "optimises another trade-off than its weights say: each objective is divided by its own spread"
_RDPO = "optimises another trade-off than its weights say: rewards are replaced by their whitened ranks"
_TOKEN = "charges each token's own KL and not that of the tokens after it"
_ENDLESS = "leaves the end token out of log pi: nothing teaches it where to end"
_KTO = "counts how often a reply wins its pairs and not by how much (KTO's own objective), at no price of the KL"
_IGNORED = "ignores the weights: every objective counts the same"

LIBRARY = tuple(
    Hypothesis(*row)
    for row in (
        ("right", "right", "optimises the J that was asked", right),
        ("sign of the reward", "sign of the reward", "makes the reward small: its sign is flipped",
         _weights(lambda a: [-w for w in a.weights])),
        ("weights ignored", "weights ignored", _IGNORED, _weights(lambda a: [1 / len(a.weights)] * len(a.weights))),
        ("weights ignored, sum", "weights ignored", _IGNORED, _weights(lambda a: [1.0] * len(a.weights))),
        ("weights reversed", "weights reversed", "gives each objective another one's weight: their order is reversed",
         _weights(lambda a: a.weights[::-1])),
        ("mean over tokens", "mean over tokens", "takes the mean of the log-ratio over tokens where its sum belongs",
         mean_over_tokens),
        ("end token", "end token", _ENDLESS, endless),
        ("end token, to a twentieth", "end token", _ENDLESS, partial(endless, least=0.05)),
        ("end token, to a sixth", "end token", _ENDLESS, partial(endless, least=0.16)),
        ("end token, to a half", "end token", _ENDLESS, partial(endless, least=0.5)),
        ("no reference", "no reference", "has log pi where log pi - log ref belongs: the reference is missing",
         without_reference),
        ("reward of another prompt", "reward of another prompt", "scores replies under other prompts than their own",
         of_another_prompt),
        ("group scaling", "group scaling", _GROUP, _rule("group", "loss")),
        ("group scaling, KL per token", "group scaling", _GROUP, _rule("group", "token")),
        ("group scaling, groups of 8", "group scaling", _GROUP, _of_eight("group")),
        ("batch scaling", "batch scaling", _BATCH, _rule("batch", "loss")),
        ("batch scaling, KL per token", "batch scaling", _BATCH, _rule("batch", "token")),
        ("GDPO", "GDPO", _GDPO, _rule("gdpo", "loss")),
        ("GDPO, KL per token", "GDPO", _GDPO, _rule("gdpo", "token")),
        ("GDPO, groups of 8", "GDPO", _GDPO, _of_eight("gdpo")),
        ("RDPO", "RDPO", _RDPO, _rdpo),
        ("KTO", "KTO", _KTO, kto_of_pairs),
        ("KL per token", "KL per token", _TOKEN, _rule("none", "token")),
        ("KL per token, k3", "KL per token", _TOKEN, _rule("none", "token_k3")),
    )
)  # fmt: skip
