"""Loss formulae as pure tensor functions: per-example tensors in and out, the source at the line.

Legend: B examples, R the objectives other than the main one. Margins are in reward units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


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
