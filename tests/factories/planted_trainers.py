"""Trainers with a planted fault on the conformance world: Adam on free logits at every node, exact expected updates.

Each fault is written as the mistake that somebody would make in a training loop, not as the policy that it ends at:
`align.testbed.theory.hypotheses` is held against it. Legend: P prompts, M leaves, K objectives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from align.testbed.theory.hypotheses import Asked
from recipes.conformance import world

FAULTS = (
    "none", "sign of the KL", "mean over tokens", "end token", "reward of another sample", "reward of another prompt",
    "weights ignored", "weights reversed", "group scaling", "GDPO", "sign of the reward", "no reference", "no KL",
    "another beta",
)  # fmt: skip


def reference() -> tuple[np.ndarray, ...]:
    """Conditionals of a reference without a model: Dirichlet(3) over the usual tokens, 0.3 % malformed at each node."""
    rng, levels = np.random.default_rng(3), []
    for depth in range(world.LENGTH + 1):
        lead = len(world.WORDS) if depth < world.LENGTH else 0
        usual = [*range(lead), *([lead] if depth else [])]
        p = np.full((len(world.PROMPTS), len(world.WORDS) ** depth, lead + 2), 0.003)
        p[..., usual] = rng.dirichlet([3.0] * len(usual), size=p.shape[:2]) * (1 - 0.003 * (lead + 2 - len(usual)))
        levels.append(np.log(p))
    return tuple(levels)


def asked(*, beta: float = 1.2, weights: Sequence[float] = (0.7, 0.3)) -> Asked:
    """The conformance world under `reference`."""
    return Asked(world.tree(reference()), tuple(weights), beta, world.OTHERS, world.reply_leaves())


def train(asked: Asked, fault: str, *, steps: int = 150, learning_rate: float = 0.1, seed: int = 0) -> np.ndarray:
    """(P, M) log-probabilities of the leaves after training from the reference."""
    torch.manual_seed(seed)
    logits = [torch.tensor(level, requires_grad=True) for level in asked.tree.logref]
    optimizer = torch.optim.Adam(logits, lr=learning_rate)
    ref_PM, rewards_PMK = torch.tensor(asked.tree.leaf_logref), torch.tensor(asked.tree.leaf_rewards)
    ref_words_PM = _leaves(asked, [torch.tensor(level) for level in asked.tree.logref], end=False)
    tokens_M = _tokens(asked)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        levels = [level.log_softmax(-1) for level in logits]
        logp_PM = _leaves(asked, levels, end=fault != "end token")
        p_PM = _leaves(asked, levels, end=True).detach().exp()
        log_ratio_PM = (logp_PM - (ref_words_PM if fault == "end token" else ref_PM)).detach()
        reward_PM = _reward(asked, fault, rewards_PMK, p_PM)
        beta = {"sign of the KL": -1.0, "no KL": 0.0, "another beta": 0.4}.get(fault, 1.0) * asked.beta
        penalty_PM = log_ratio_PM / tokens_M if fault == "mean over tokens" else log_ratio_PM
        if fault == "no reference":
            penalty_PM = logp_PM.detach() - torch.tensor(_malformed_tokens(asked))  # of one token in a slot of many
        advantage_PM = reward_PM - beta * penalty_PM
        advantage_PM = advantage_PM - (p_PM * advantage_PM).sum(-1, keepdim=True)
        if fault == "reward of another sample":
            advantage_PM = _of_another(p_PM, advantage_PM)
        loss = -(p_PM * advantage_PM * logp_PM).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return _leaves(asked, [level.detach().log_softmax(-1) for level in logits], end=True).numpy()


def _leaves(asked: Asked, levels: Sequence[Tensor], *, end: bool) -> Tensor:
    """(P, M) by the chain rule; without `end` the end token's own factor is left out."""
    words, parts = asked.tree.branching, []
    reach = torch.zeros(levels[0].shape[0], 1, 1, dtype=torch.float64)
    for depth, level in enumerate(levels):
        own = level if end else torch.cat([level[..., :-2], 0 * level[..., -2:-1], level[..., -1:]], dim=-1)
        joint = own + reach
        lead = words if depth < len(levels) - 1 else 0
        parts.append(joint[..., lead:].flatten(1))
        reach = joint[..., :words].reshape(joint.shape[0], -1, 1)
    return torch.cat(parts, dim=1)


def _tokens(asked: Asked) -> Tensor:
    """(M,) tokens of each leaf with its end."""
    depths = [
        [depth + 1] * (level.shape[-2] * (2 if depth < len(asked.tree.logref) - 1 else level.shape[-1]))
        for depth, level in enumerate(asked.tree.logref)
    ]
    return torch.tensor(sum(depths, []), dtype=torch.float64)


def _malformed_tokens(asked: Asked) -> np.ndarray:
    """(M,) log of how many tokens a leaf stands for."""
    last, out = len(asked.tree.logref) - 1, []
    for depth, level in enumerate(asked.tree.logref):
        out += [0.0, float(np.log(asked.others[depth == last]))] * level.shape[-2]
    return np.array(out)


def _reward(asked: Asked, fault: str, rewards_PMK: Tensor, p_PM: Tensor) -> Tensor:
    w_K = torch.tensor(asked.weights, dtype=torch.float64)
    if fault == "weights ignored":
        w_K = torch.ones_like(w_K)
    if fault == "weights reversed":
        w_K = w_K.flip(0)
    if fault == "sign of the reward":
        w_K = -w_K
    if fault == "reward of another prompt":
        rewards_PMK = rewards_PMK.mean(0, keepdim=True).expand_as(rewards_PMK)
    if fault == "GDPO":
        centred = rewards_PMK - (p_PM[..., None] * rewards_PMK).sum(1, keepdim=True)
        z_PM = (centred / (p_PM[..., None] * centred**2).sum(1, keepdim=True).sqrt()) @ w_K
        return z_PM / (p_PM * z_PM**2).sum(-1).mean().sqrt()
    total_PM = rewards_PMK @ w_K
    if fault == "group scaling":
        centred_PM = total_PM - (p_PM * total_PM).sum(-1, keepdim=True)
        return centred_PM / (p_PM * centred_PM**2).sum(-1, keepdim=True).sqrt()
    return total_PM


def _of_another(p_PM: Tensor, advantage_PM: Tensor, samples: int = 50) -> Tensor:
    """Samples that each get the next one's advantage, as what their sum is worth for each leaf."""
    drawn = torch.multinomial(p_PM, samples, replacement=True)
    given = advantage_PM.gather(1, drawn).roll(1, dims=1)
    return torch.zeros_like(p_PM).scatter_add(1, drawn, given / samples) / p_PM.clamp_min(1e-9)
