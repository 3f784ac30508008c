"""Dropout in memory: the same residual dropout for every architecture, and none within the attention.

Dropout is a matter of training, not of a model: saved configs say 0 and `set_dropout` turns it on in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def set_dropout(model: PreTrainedModel, p: float) -> None:
    """Residual dropout `p` in training mode: in Dropout modules, else by hooks on attention and feed-forward outputs.

    Calling it again replaces the earlier value. Dropout that is an argument of a function (of attention weights in
    Llama and its relatives, all of it in OPT) is switched off, whatever `p`. Raises UserError when the architecture
    offers no place for p > 0.
    """
    import torch
    from torch import nn

    no_attention_dropout(model)
    dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    for module in dropouts:
        module.p = p
    for handle in getattr(model, "_dropout_hooks", ()):
        handle.remove()
    model._dropout_hooks = []
    if dropouts or p == 0:
        return

    def drop(module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        first = output[0] if isinstance(output, tuple) else output
        dropped = torch.nn.functional.dropout(first, p, training=module.training)
        return (dropped, *output[1:]) if isinstance(output, tuple) else dropped

    layers = [m for m in model.modules() if hasattr(m, "self_attn") and hasattr(m, "mlp")]
    places = [m for layer in layers for m in (layer.self_attn, layer.mlp)]
    if not places:
        raise UserError(f"dropout {p} asked of a {type(model).__name__}, which has no place for it; set dropout to 0")
    model._dropout_hooks = [place.register_forward_hook(drop) for place in places]


def no_attention_dropout(model: PreTrainedModel) -> None:
    """Attention weights are dropped no more, nor is anything else whose rate is a number that a layer keeps.

    transformers passes such a number (`attention_dropout` of Llama, `dropout` and `layerdrop` of OPT) to a function in
    training mode; it is no nn.Dropout, which is all that TRL's `disable_dropout` knows. Left on, the sampler, the ratio
    and the reference are three policies. The config, which new layers read, says 0 for the attention.
    """
    for module in model.modules():
        rates = [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]
        for name in rates:
            setattr(module, name, 0.0)
    config = model.config.get_text_config()
    if getattr(config, "attention_dropout", None):
        config.attention_dropout = 0.0
