"""Policy-gradient formulae as pure tensor functions: token rewards, advantages, clipped policy loss, value loss.

Gamma is 1 throughout: a discount would make the sum of token rewards another objective than `J = E[r] - beta KL`.
Legend: B responses, T response tokens. `mask_BT` is True on the tokens that were drawn, the first ending one included;
what lies outside it is padding, may hold anything, and carries neither reward nor loss nor gradient. Values at t are of
the state before token t. Log-probabilities are in nats, rewards and values in reward units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """What the updates on one batch compare with, from the policy that drew it and without gradients."""

    old_BT: Tensor  # log-probabilities
    values_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor

    def rows(self, index: Tensor | slice) -> Targets:
        """Those of these responses."""
        return Targets(*(getattr(self, f.name)[index] for f in fields(self)))

    def parts(self, size: int) -> Iterator[Targets]:
        """Those of `size` responses at a time, in order."""
        return (self.rows(slice(i, i + size)) for i in range(0, len(self.old_BT), size))


def token_rewards(scores_B: Tensor, *, logp_BT: Tensor, ref_BT: Tensor, mask_BT: Tensor, beta: float) -> Tensor:
    """(B, T) `-beta (log pi - log ref)` of each token, the response's score added at its last one.

    Ziegler et al. 2019, equation 2, by tokens: a row sums to `r - beta (log pi(y|x) - log ref(y|x))`, whose mean is J.
    ValueError for a response without tokens, whose score would be lost.
    """
    lengths_B = mask_BT.sum(-1)
    if not bool((lengths_B > 0).all()):
        raise ValueError("a response has no token to carry its score")
    rewards_BT = (-beta * (logp_BT - ref_BT)).masked_fill(~mask_BT, 0.0)
    return rewards_BT.scatter_add(-1, (lengths_B - 1)[:, None], scores_B[:, None].to(rewards_BT.dtype))


def gae(rewards_BT: Tensor, *, values_BT: Tensor, mask_BT: Tensor, lam: float) -> Tensor:
    """(B, T) generalised advantage estimates, 0 at padding; nothing is bootstrapped behind the last token.

    `A_t = d_t + lam A_{t+1}` with `d_t = r_t + V_{t+1} - V_t` (Schulman et al. 2016, equations 11 and 16). lam = 1 is
    the whole return minus V_t, which no error of V biases; lam = 0 is one step, which is only as right as V.
    """
    import torch

    values_BT = values_BT.masked_fill(~mask_BT, 0.0)
    rewards_BT = rewards_BT.masked_fill(~mask_BT, 0.0)
    next_value_B = next_advantage_B = torch.zeros_like(rewards_BT[:, 0])
    advantages = []
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + next_value_B - values_BT[:, t]
        next_advantage_B, next_value_B = delta_B + lam * next_advantage_B, values_BT[:, t]
        advantages.append(next_advantage_B)
    return torch.stack(advantages[::-1], -1)


def whiten(advantages_BT: Tensor, *, mask_BT: Tensor) -> Tensor:
    """(B, T) advantages minus their mean, over their standard deviation (+ 1e-8), both of all drawn tokens.

    One scale for the whole batch: the direction of J's gradient up to the mean's and the spread's sampling error, with
    a step that does not shrink towards the optimum.
    """
    drawn = advantages_BT[mask_BT]
    return ((advantages_BT - drawn.mean()) / (drawn.std(correction=0) + 1e-8)).masked_fill(~mask_BT, 0.0)


def clipped_policy_loss(
    logp_BT: Tensor, *, old_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, clip: float
) -> Tensor:
    """(B,) `-sum_t min(rho_t A_t, clamp(rho_t, 1 - clip, 1 + clip) A_t)`, `rho_t = pi / pi_old` of token t.

    Schulman et al. 2017, equation 7. Summed over a response's tokens, not averaged: at rho = 1 its mean over samples
    has the gradient of -J, which division by each response's length would tilt towards short or long ones.
    """
    import torch

    ratio_BT = (logp_BT - old_BT).masked_fill(~mask_BT, 0.0).exp()
    advantages_BT = advantages_BT.masked_fill(~mask_BT, 0.0)
    free_BT, held_BT = ratio_BT * advantages_BT, ratio_BT.clamp(1 - clip, 1 + clip) * advantages_BT
    return -torch.minimum(free_BT, held_BT).sum(-1)


def beyond_clip(logp_BT: Tensor, *, old_BT: Tensor, mask_BT: Tensor, clip: float) -> int:
    """How many drawn tokens have a ratio `pi / pi_old` outside 1 +- clip."""
    ratio = (logp_BT - old_BT)[mask_BT].exp()
    return int(((ratio - 1).abs() > clip).sum())


def value_loss(values_BT: Tensor, *, old_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, clip: float = 0.0) -> Tensor:
    """(B,) `1/2 sum_t (V_t - R_t)^2`; with clip > 0 the larger of that and of V held within clip of its old value.

    Value clipping is in the code of Ziegler et al. 2019, not in a paper's equation; 0 turns it off.
    """
    import torch

    error_BT = (values_BT - returns_BT).masked_fill(~mask_BT, 0.0).square()
    if clip > 0:
        held_BT = old_BT + (values_BT - old_BT).clamp(-clip, clip)
        error_BT = torch.maximum(error_BT, (held_BT - returns_BT).masked_fill(~mask_BT, 0.0).square())
    return error_BT.sum(-1) / 2
