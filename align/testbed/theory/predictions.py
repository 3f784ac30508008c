"""The policy that a rule would end at on a testbed world, from the reference's leaves: a row's predicted fixed point.

A row's regret then splits in two: what its rule gives away when fully trained (the regret of the prediction), and
optimisation that is unfinished or not shared between prompts (the rest). Tabular means free logits at every prefix of
every prompt; a network ties prompts together, so the prediction is of the rule, not of the network.
Legend: N nodes, V vocabulary, K objectives, P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from align.errors import UserError
from align.preferences import Weights
from align.testbed.responses import A, gold_rewards, level_starts
from align.testbed.theory.fixed_points import Levels, Tree, fixed_point, optimum, token_mod
from align.testbed.theory.group_advantages import Groups
from align.testbed.vocabulary import END_ID
from align.testbed.world import Prompt, World

if TYPE_CHECKING:
    from torch import Tensor

    from align.testbed.exact import TreePolicy


# kind -> (advantage scale, where the KL stands), as `align.testbed.theory.fixed_points` names them
KINDS: dict[str, tuple[str, str]] = {
    "scalarised": ("none", "reward"),  # pi*_w: RLOO, or GRPO with a sequence-KL reward whatever scales the sum
    "token_kl": ("none", "token"),  # GRPO's own KL, unscaled rewards
    "group": ("group", "token"),  # stock GRPO: scale_rewards="group"
    "batch": ("batch", "token"),  # scale_rewards="batch"
    "gdpo": ("gdpo", "token"),  # multi_objective_aggregation="normalize_then_sum"
    "token_k3": ("none", "token_k3"),  # GRPO's KL without TRL's bias correction, as before TRL had it
    "token_mod": ("", ""),  # next-token products of the optimal single-objective policies
}


def world_tree(world: World, *, prompts: Sequence[Prompt], leaves: Sequence[Tensor]) -> Tree:
    """The P prompts' trees from their (N, V) leaf log-probabilities.

    Slots: the alphabet's continuations, the end, and all malformed tokens of a node as one (they share one reward, so
    no rule here tells them apart); the last depth has no continuations.
    """
    depth, config = world.config.max_tokens, world.config
    starts = level_starts(depth)
    logref: list[np.ndarray] = []
    rewards: list[np.ndarray] = []
    tables = [np.asarray(table, dtype=float) for table in leaves]
    ended_PN = np.stack([table[:, END_ID] for table in tables])
    other_PN = np.stack([_log_sum(np.delete(table, END_ID, axis=1)) for table in tables])
    gold_PNK = np.stack([gold_rewards(world, prompt.topic) for prompt in prompts])
    mass = None
    for d in reversed(range(depth + 1)):
        level = slice(starts[d], starts[d + 1])
        slots = [ended_PN[:, level, None], other_PN[:, level, None]]
        lead = 0
        if mass is not None:
            slots, lead = [mass.reshape(len(tables), -1, A), *slots], A
        joint = np.concatenate(slots, axis=-1)
        total = _log_sum(joint)
        logref.append(joint - total[..., None])
        reward = np.zeros((*joint.shape, config.objectives))
        reward[..., lead, :], reward[..., lead + 1, :] = gold_PNK[:, level], config.malformed_reward
        rewards.append(reward)
        mass = total
    return Tree(tuple(reversed(logref)), tuple(reversed(rewards)), A)


def _log_sum(x: np.ndarray) -> np.ndarray:
    top = x.max(-1)
    with np.errstate(divide="ignore"):
        return top + np.log(np.exp(x - top[..., None]).sum(-1))


def predicted_conditionals(
    kind: str, *, tree: Tree, weights: Sequence[float], beta: float, group: int | None = None, draws: int = 4096
) -> Levels:
    """The rule's fixed point on all prompts of a tree; `group` None is the limit of large groups.

    UserError on a kind that has none. Scales "batch" and "gdpo" pool the tree's prompts as one batch.
    """
    if kind not in KINDS:
        raise UserError(f"no predicted fixed point for {kind!r}; choose {', '.join(KINDS)}")
    if kind == "token_mod":
        vertices = [Weights.vertex(k, len(weights)).values for k in range(len(weights))]
        return token_mod([optimum(tree, weights=e, beta=beta) for e in vertices], weights=weights)
    scale, kl = KINDS[kind]
    # 1e-6 in the advantage is 1e-5 nats at beta = 0.1; seeded draws end in a small cycle, hence the limit.
    groups = None if scale == "none" or group is None else Groups(group, draws=draws)
    found = fixed_point(
        tree, weights=weights, beta=beta, scale=scale, kl=kl, groups=groups, tolerance=1e-6, max_iterations=100
    )
    return found.conditionals


def _leaf_ratios(
    kind: str, world: World, prompts: Sequence[Prompt], leaves: Sequence[Tensor], weights: Sequence[float],
    group: int | None, draws: int,
) -> np.ndarray:  # fmt: skip
    """(P, N, 2) log p/ref of ending well and of ending malformed at each node."""
    tree = world_tree(world, prompts=prompts, leaves=leaves)
    found = predicted_conditionals(kind, tree=tree, weights=weights, beta=world.config.beta, group=group, draws=draws)
    reach, out = np.zeros((len(prompts), 1)), []
    for d, (logp, logref) in enumerate(zip(found, tree.logref, strict=True)):
        ratio = logp - logref + reach[..., None]
        out.append(ratio[..., -2:])
        if d < world.config.max_tokens:
            reach = ratio[..., :A].reshape(len(prompts), -1)
    return np.concatenate(out, axis=1)


def _apply(table: Any, ratio_N2: np.ndarray) -> np.ndarray:
    leaf_NV = np.asarray(table, dtype=float) + ratio_N2[:, 1:]
    leaf_NV[:, END_ID] = np.asarray(table)[:, END_ID] + ratio_N2[:, 0]
    return leaf_NV


@dataclass
class Predicted:
    """A predicted fixed point as a tree policy, for rows of any exact table.

    `population`: the prompts that share a batch (scales "batch" and "gdpo"); each prompt alone where it is empty or
    lacks the prompt. Ratios to the reference are kept, 260 kB a prompt.
    """

    kind: str
    reference: TreePolicy
    weights: Weights
    name: str
    group: int | None = None
    population: Sequence[Prompt] = ()
    samples_per_response: int = 1
    _ratios: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def leaf_logprobs(self, world: World, prompt: Prompt) -> Tensor:
        """(N, V) torch float64, as the evaluator wants it."""
        import torch

        if prompt.text not in self._ratios:
            batch = list(self.population) if prompt in self.population else [prompt]
            leaves = [self.reference.leaf_logprobs(world, p) for p in batch]
            found = _leaf_ratios(self.kind, world, batch, leaves, self.weights.values, self.group, 4096)
            self._ratios |= {p.text: r for p, r in zip(batch, found, strict=True)}
        table = self.reference.leaf_logprobs(world, prompt)
        return torch.from_numpy(_apply(table, self._ratios[prompt.text]))
