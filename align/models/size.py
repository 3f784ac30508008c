"""How many parameters a model has, and how many positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def count_parameters(model: PreTrainedModel, *, embeddings: bool) -> int:
    """Number of parameters; `embeddings=False` leaves out lookup tables, the part that costs no multiplication.

    A table that is also the output matrix (tied) multiplies every hidden state and is therefore counted either way.
    """
    from torch import nn

    total = sum(p.numel() for p in model.parameters())
    if embeddings:
        return total
    output = model.get_output_embeddings()
    shared = None if output is None else output.weight
    tables = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is not shared}
    return total - sum(weight.numel() for weight in tables.values())
