"""Ids meet a model on the model's device: a model on torch's "meta" device, which refuses what lies elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from align.models.reading import Reader, next_token_logprobs
from align.testbed.tree import node_logprobs
from align.testbed.vocabulary import alphabet_ids, encode
from align.testbed.world import World
from factories.tiny_world import TINY, make_model


class Elsewhere:
    """A model whose device is not the CPU, and the tensors that it is given; a stand-in for one on a GPU."""

    def __init__(self) -> None:
        self.model, self.passes = make_model(seed=0).to("meta").eval(), 0
        self.device, self.config, self.training = self.model.device, self.model.config, False

    def __call__(self, **inputs: Any) -> Any:
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor) and value.device != self.device:
                raise RuntimeError(f"{name} is on {value.device}, the model on {self.device}")
        self.passes += 1
        return self.model(**inputs)


def test_the_exact_evaluation_builds_its_ids_where_the_model_is() -> None:
    """Every pass goes through; only the finished table, which has no numbers on this device, cannot be copied."""
    model, prompt = Elsewhere(), World(TINY).test_prompts("none")[0]
    with pytest.raises(NotImplementedError, match="meta"):
        node_logprobs(model, encode(prompt.text), alphabet=alphabet_ids(0), max_tokens=2)  # type: ignore[arg-type]
    assert model.passes == 3  # the prompt and two levels


class Zeros(Elsewhere):
    """The same without a pass of the model, whose own handling of masks asks for numbers."""

    def __call__(self, **inputs: Any) -> Any:
        ids_BT = inputs["input_ids"]
        assert all(value.device == self.device for value in inputs.values() if isinstance(value, torch.Tensor))
        self.passes += 1
        kept = inputs.get("logits_to_keep") or ids_BT.shape[1]
        logits_BTV = torch.zeros(len(ids_BT), kept, self.config.vocab_size, device=self.device)
        return SimpleNamespace(logits=logits_BTV, past_key_values=None)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("block_bytes", [2**29, 4])
def test_rows_are_read_where_the_model_is(side: str, block_bytes: int) -> None:
    model, ids = Zeros(), torch.tensor([[2, 3]])
    assert next_token_logprobs(model, ids, torch.ones_like(ids)).device == model.device  # type: ignore[arg-type]
    reader = Reader(pad_id=0, side=side, block_bytes=block_bytes)
    ((batch, logp_BT),) = reader.read(model, [([2, 3], [4, 5])])  # type: ignore[arg-type]
    assert logp_BT.device == batch.ids_BT.device == model.device
    assert model.passes == (2 if block_bytes > 4 else 4)  # the next tokens, and one pass or three pieces
