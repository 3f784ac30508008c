"""Loss and advantage formulae as pure tensor functions: per-example tensors in and out, the source at the line.

The trainers use TRL's own implementations; these are the statements they are tested against.
Legend: B examples, K objectives, R the K - 1 objectives other than the main one, G responses per prompt, P prompts.
Log-probabilities are sums over a response's tokens, in nats; rewards and margins are in reward units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def dpo_loss(
    chosen_B: Tensor, *, rejected_B: Tensor, ref_chosen_B: Tensor, ref_rejected_B: Tensor, beta: float
) -> Tensor:
    """(B,) DPO loss of policy log-probabilities `chosen_B`, `rejected_B` against the reference's.

    `-log sigmoid(beta [(log pi/ref)(y_w) - (log pi/ref)(y_l)])`, Rafailov et al. 2023, equation 7.
    ValueError unless `beta > 0`.
    """
    from torch.nn.functional import logsigmoid

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
    from torch.nn.functional import logsigmoid

    check_main_weight(main_weight)
    if margin_chosen_BR.shape[-1] != len(rest_weights_R) or margin_rejected_BR.shape != margin_chosen_BR.shape:
        raise ValueError(f"{len(rest_weights_R)} weights for margins of shape {tuple(margin_chosen_BR.shape)}")
    weights_R = chosen_B.new_tensor(list(rest_weights_R))
    log_ratio_B = (chosen_B - ref_chosen_B) - (rejected_B - ref_rejected_B)
    margin_B = ((margin_chosen_BR - margin_rejected_BR) * weights_R).sum(-1)
    return -logsigmoid((beta * log_ratio_B - margin_B) / (main_weight * tau))


def modpo_reference_shift(margin_BR: Tensor, *, rest_weights_R: Sequence[float], beta: float) -> Tensor:
    """(B,) what to add to a reference log-probability so that DPO at `beta / (w_0 tau)` is MODPO.

    `beta (lp - ref) - m = beta (lp - (ref + m / beta))` with `m = w_rest . r_rest` (rearranging equation 9).
    """
    if not beta > 0:
        raise ValueError(f"beta must be above 0, not {beta}")
    return (margin_BR * margin_BR.new_tensor(list(rest_weights_R))).sum(-1) / beta


def check_main_weight(main_weight: float) -> None:
    """UserError unless the weight that MODPO divides by is above 0."""
    if not main_weight > 0:
        raise UserError(
            f"MODPO divides by the weight of its main objective, which is {main_weight:g}; "
            "choose another main objective or main: auto"
        )


def bradley_terry_loss(chosen_B: Tensor, *, rejected_B: Tensor, tau: float = 1.0, smoothing: float = 0.0) -> Tensor:
    """(B,) negative log-likelihood that `chosen` beats `rejected`, given their rewards.

    `-(1 - s) log sigmoid(dr / tau) - s log sigmoid(-dr / tau)`: Bradley and Terry 1952 with label noise `s`.
    """
    from torch.nn.functional import logsigmoid

    if not tau > 0 or not 0 <= smoothing < 0.5:
        raise ValueError(f"need tau above 0 and smoothing in [0, 0.5), got {tau} and {smoothing}")
    difference_B = (chosen_B - rejected_B) / tau
    return -(1 - smoothing) * logsigmoid(difference_B) - smoothing * logsigmoid(-difference_B)


def cost_loss(
    safer_B: Tensor, *, unsafer_B: Tensor, safer_is_safe_B: Tensor, unsafer_is_safe_B: Tensor, square: float = 0.0
) -> Tensor:
    """(B,) Safe RLHF's loss of the costs of two responses: their order, and the side of 0 that each lies on.

    `-log sigmoid(c_u - c_s) - log sigmoid(s_s c_s) - log sigmoid(s_u c_u)`, s = -1 for a response labelled safe and +1
    for an unsafe one (Dai et al. 2024, cost model), plus `square` times the mean of c_s^2 and c_u^2 (official: 0.001).
    So 0 is the boundary between what is labelled safe and unsafe, and a shift of all costs is no longer free.
    ValueError if `square < 0`.
    """
    from torch.nn.functional import logsigmoid

    if square < 0:
        raise ValueError(f"square must be at least 0, not {square}")
    signs = [1 - 2 * is_safe_B.to(safer_B.dtype) for is_safe_B in (safer_is_safe_B, unsafer_is_safe_B)]
    sides_B = -logsigmoid(signs[0] * safer_B) - logsigmoid(signs[1] * unsafer_B)
    return -logsigmoid(unsafer_B - safer_B) + sides_B + square * (safer_B.square() + unsafer_B.square()) / 2


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
