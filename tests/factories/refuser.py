"""A model that refuses harmful requests and answers benign ones, in any tokenizer style: its logits are written down.

It has read, as `apply_chat_template` writes them, whole conversations of known requests; behind any beginning of one of
them the next token has probability .995, elsewhere every token has the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch

from align.turns import Turn
from factories.parity import Truth

SURE = 0.995
REFUSAL, COMPLIANCE = "I'm sorry, no.", "Sure, here it is."


class Cache:
    """The ids that a pass has read."""

    def __init__(self, ids_BT: torch.Tensor) -> None:
        self.ids_BT = ids_BT

    def batch_repeat_interleave(self, count: int) -> None:
        self.ids_BT = self.ids_BT.repeat_interleave(count, 0)


class Refuser(torch.nn.Module):
    """Replies by request; `generation_config` ends where the style's turns end."""

    device = torch.device("cpu")

    def __init__(self, truth: Truth, replies: Mapping[str, str]) -> None:
        super().__init__()
        self.size = len(truth.tokenizer)
        self.config = SimpleNamespace(
            max_position_embeddings=512, vocab_size=self.size, num_hidden_layers=1, to_dict=dict
        )
        self.generation_config = SimpleNamespace(eos_token_id=truth.end)
        self.known = [(*truth.begun([Turn("user", request)], reply), truth.end) for request, reply in replies.items()]

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, past_key_values: Any = None,
        **_: Any,
    ) -> SimpleNamespace:  # fmt: skip
        new, before = input_ids.shape[1], 0 if past_key_values is None else past_key_values.ids_BT.shape[1]
        ids_BT = input_ids if past_key_values is None else torch.cat([past_key_values.ids_BT, input_ids], 1)
        mask_BT = torch.ones_like(ids_BT) if attention_mask is None else attention_mask
        odds = math.log(SURE / (1 - SURE) * (self.size - 1))
        logits_BTV = torch.zeros(*ids_BT.shape, self.size)
        for b, (row, real) in enumerate(zip(ids_BT.tolist(), mask_BT.tolist(), strict=True)):
            read: list[int] = []
            for t, (token, one) in enumerate(zip(row, real, strict=True)):
                read += [token] * one
                follow = {k[len(read)] for k in self.known if list(k[: len(read)]) == read and len(k) > len(read)}
                for following in follow:
                    logits_BTV[b, t, following] = odds
        states = torch.zeros(*ids_BT.shape, 4)[:, before:]
        return SimpleNamespace(
            logits=logits_BTV[:, before : before + new], past_key_values=Cache(ids_BT), hidden_states=[states, states]
        )
