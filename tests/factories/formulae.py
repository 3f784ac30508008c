"""Losses and advantages as their papers state them: what TRL's and our trainers are tested against.

Legend: B examples, K objectives, R the K - 1 objectives other than the main one, G responses per prompt, P prompts.
Log-probabilities are sums over a response's tokens, in nats; rewards and margins are in reward units.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import logsigmoid

from align.functional.losses import check_main_weight


def dpo_loss(
    chosen_B: Tensor, *, rejected_B: Tensor, ref_chosen_B: Tensor, ref_rejected_B: Tensor, beta: float
) -> Tensor:
    """(B,) DPO loss of policy log-probabilities `chosen_B`, `rejected_B` against the reference's.

    `-log sigmoid(beta [(log pi/ref)(y_w) - (log pi/ref)(y_l)])`, Rafailov et al. 2023, equation 7.
    ValueError unless `beta > 0`.
    """
    if not beta > 0:
        raise ValueError(f"beta must be above 0, not {beta}")
    return -logsigmoid(beta * ((chosen_B - ref_chosen_B) - (rejected_B - ref_rejected_B)))


def modpo_loss(
    chosen_B: Tensor,
    *,
    rejected_B: Tensor,
    ref_chosen_B: Tensor,
    ref_rejected_B: Tensor,
    margin_chosen_BR: Tensor,
    margin_rejected_BR: Tensor,
    main_weight: float,
    rest_weights_R: Sequence[float],
    beta: float,
    tau: float = 1.0,
) -> Tensor:
    """(B,) MODPO loss: the pairs are labelled by the main objective, the others enter as margins.

    `-log sigmoid((1 / (w_0 tau)) [beta dlog(pi/ref) - w_rest . dr_rest])`, Zhou et al. 2024, equation 9, with the label
    temperature `tau` of the annotator. UserError when the main weight is 0, ValueError on a wrong number of weights.
    """
    check_main_weight(main_weight)
    if margin_chosen_BR.shape[-1] != len(rest_weights_R) or margin_rejected_BR.shape != margin_chosen_BR.shape:
        raise ValueError(f"{len(rest_weights_R)} weights for margins of shape {tuple(margin_chosen_BR.shape)}")
    weights_R = chosen_B.new_tensor(list(rest_weights_R))
    log_ratio_B = (chosen_B - ref_chosen_B) - (rejected_B - ref_rejected_B)
    margin_B = ((margin_chosen_BR - margin_rejected_BR) * weights_R).sum(-1)
    return -logsigmoid((beta * log_ratio_B - margin_B) / (main_weight * tau))


def bradley_terry_loss(chosen_B: Tensor, *, rejected_B: Tensor, tau: float = 1.0, smoothing: float = 0.0) -> Tensor:
    """(B,) negative log-likelihood that `chosen` beats `rejected`, given their rewards.

    `-(1 - s) log sigmoid(dr / tau) - s log sigmoid(-dr / tau)`: Bradley and Terry 1952 with label noise `s`.
    """
    if not tau > 0 or not 0 <= smoothing < 0.5:
        raise ValueError(f"need tau above 0 and smoothing in [0, 0.5), got {tau} and {smoothing}")
    difference_B = (chosen_B - rejected_B) / tau
    return -(1 - smoothing) * logsigmoid(difference_B) - smoothing * logsigmoid(-difference_B)


def rloo_advantages(rewards_PG: Tensor) -> Tensor:
    """(P, G) each reward minus the mean of the other G - 1 of its prompt (Kool et al. 2019).

    ValueError below two responses per prompt.
    """
    count = rewards_PG.shape[-1]
    if count < 2:
        raise ValueError("a leave-one-out baseline needs at least two responses per prompt")
    return (rewards_PG - rewards_PG.mean(-1, keepdim=True)) * (count / (count - 1))


def kl_penalized(rewards_B: Tensor, *, logp_B: Tensor, ref_B: Tensor, beta: float) -> Tensor:
    """(B,) `r - beta (log pi - log ref)`: the reward whose mean under pi is `J = E[r] - beta KL(pi || ref)`."""
    return rewards_B - beta * (logp_B - ref_B)
