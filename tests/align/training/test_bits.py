"""align.training.bits: windows that score each token once, and bits per byte against likelihoods known by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from align.errors import UserError
from align.models import load_model, load_tokenizer
from align.training.bits import _windows, completion_bits, text_bits


class Uniform(torch.nn.Module):
    """A model that knows nothing, over `size` tokens, with a context of 8."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.config = type("Config", (), {"max_position_embeddings": 8})()
        self.device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        assert input_ids.shape[1] <= 8
        return type("Output", (), {"logits": torch.zeros(*input_ids.shape, self.size)})()


def test_bits_per_byte_of_a_uniform_model_is_known(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    texts = ["zq" * 15, "é", ""]  # 30 one-byte tokens, then 2 bytes in 2 tokens, then nothing
    bits = text_bits(Uniform(256), tokenizer, texts)  # type: ignore[arg-type]
    assert (bits.tokens, bits.bytes) == (32, 32) and bits.per_byte == pytest.approx(8.0)
    ended = text_bits(Uniform(256), tokenizer, texts, score_end=True)  # type: ignore[arg-type]
    assert (ended.tokens, ended.bytes) == (35, 32) and ended.bits == pytest.approx(35 * 8)
    rows = [{"prompt": "zzzz", "completion": "qq"}, {"prompt": "", "completion": "q"}]
    demonstrations = completion_bits(Uniform(256), tokenizer, rows)  # type: ignore[arg-type]
    assert (demonstrations.tokens, demonstrations.bytes) == (3, 3) and demonstrations.bits == pytest.approx(24)
    with pytest.raises(UserError, match="without a single byte"):
        text_bits(Uniform(4), tokenizer, [""])  # type: ignore[arg-type]


@pytest.mark.parametrize(("length", "first", "limit"), [(30, 1, 8), (8, 1, 8), (9, 1, 8), (30, 12, 7), (5, 4, 2)])
def test_windows_score_every_token_once_with_half_a_context(length: int, first: int, limit: int) -> None:
    ids = list(range(length))
    scored = []
    for head, tail in _windows(ids, first, limit):
        window = [*head, *tail]
        assert len(window) <= limit and window == ids[window[0] : window[-1] + 1]
        for position in range(len(head), len(window)):
            token = window[position]
            scored.append(token)
            assert position >= min(token, limit // 2)
    assert scored == ids[first:]


def test_bits_per_byte_is_the_models_own_likelihood_in_any_batch(tiny_model: Path) -> None:
    tokenizer, model = load_tokenizer(tiny_model), load_model(tiny_model)
    texts = ["bread", "tea and boats and wool", "i"]
    nats = 0.0
    for text in texts:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            nats += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    expected = nats / math.log(2) / sum(map(len, texts))
    for batch_size in (1, 16):
        assert text_bits(model, tokenizer, texts, batch_size=batch_size).per_byte == pytest.approx(expected, rel=1e-5)
    # Windows change the number only through the shorter context.
    windowed = text_bits(model, tokenizer, texts, context=6).per_byte
    assert windowed != expected and windowed == pytest.approx(expected, rel=0.1)
