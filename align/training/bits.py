"""Bits per byte of a causal LM: a likelihood that can be compared across tokenizers, and the measure of alignment tax.

Each document is scored by itself after a start token (the tokenizer's bos, else its end token, which is what stands
before a document in packed training). Its end token stands for no byte and is scored only when asked for. A document
longer than the context is read in windows that overlap by half; every token is scored once, with at least half a
context before it, or all there is.
Legend: B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.errors import UserError
from align.models import context_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Bits:
    """The total code length of some texts: bits, and the UTF-8 bytes and tokens that they pay for."""

    bits: float
    bytes: int
    tokens: int

    @property
    def per_byte(self) -> float:
        """Bits per byte."""
        return self.bits / self.bytes


@dataclass(frozen=True)
class _Window:
    ids: list[int]  # what the model reads
    first: int  # the first position of `ids` whose token is scored


def bits_per_byte(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    context: int | None = None,
    score_end: bool = False,
    batch_size: int = 16,
) -> float:
    """Total negative log-likelihood of `texts` in bits over their total UTF-8 bytes (not the mean of ratios)."""
    return text_bits(model, tokenizer, texts, context=context, score_end=score_end, batch_size=batch_size).per_byte


def text_bits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    context: int | None = None,
    score_end: bool = False,
    batch_size: int = 16,
) -> Bits:
    """The parts of `bits_per_byte`; `context` is in tokens, start token included (None: all the model's positions).

    Raises UserError when the texts hold no byte.
    """
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    limit = _limit(model, context)
    end = [tokenizer.eos_token_id] if score_end else []
    windows: list[_Window] = []
    for text in texts:
        windows += _windows([start, *tokenizer(text, add_special_tokens=False)["input_ids"], *end], 1, limit)
    return _total(model, tokenizer, windows, sum(len(text.encode()) for text in texts), batch_size)


def completion_bits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, str]],
    *,
    context: int | None = None,
    batch_size: int = 16,
) -> Bits:
    """The completions' code length given their prompts (demonstrations); prompt bytes and end tokens do not count."""
    limit = _limit(model, context)
    windows: list[_Window] = []
    for row in rows:
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
        completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        windows += _windows([*prompt, *completion], len(prompt), limit)
    return _total(model, tokenizer, windows, sum(len(row["completion"].encode()) for row in rows), batch_size)


def _limit(model: PreTrainedModel, context: int | None) -> int:
    limit = min(filter(None, (context, context_of(model))), default=1024)
    if limit < 2:
        raise UserError(f"bits per byte need a context of at least 2 tokens, not {limit}")
    return limit


def _windows(ids: list[int], first: int, limit: int) -> list[_Window]:
    """Windows of at most `limit` tokens in which every position from `first` on is scored exactly once."""
    windows = []
    while first < len(ids):
        # The whole text up to `limit` if it fits, else half a window of context before the first unscored token.
        begin = 0 if len(ids) <= limit or first < limit - limit // 2 else first - limit // 2
        end = min(begin + limit, len(ids))
        windows.append(_Window(ids[begin:end], first - begin))
        first = end
    return windows


def _total(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, windows: list[_Window], size: int, batch_size: int
) -> Bits:
    import torch

    if size == 0:
        raise UserError("bits per byte were asked of texts without a single byte; give some text")
    nats, tokens = 0.0, 0
    windows = sorted(windows, key=lambda window: len(window.ids))
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(windows), batch_size):
            batch = windows[start : start + batch_size]
            width = max(len(window.ids) for window in batch)
            ids_BT = torch.full((len(batch), width), tokenizer.pad_token_id)
            mask_BT = torch.zeros((len(batch), width), dtype=torch.long)
            counted_BT = torch.zeros((len(batch), width), dtype=torch.bool)
            for row, window in enumerate(batch):
                ids_BT[row, : len(window.ids)] = torch.tensor(window.ids)
                mask_BT[row, : len(window.ids)] = 1
                counted_BT[row, window.first : len(window.ids)] = True
            ids_BT, mask_BT, counted_BT = (t.to(model.device) for t in (ids_BT, mask_BT, counted_BT))
            with torch.inference_mode():
                logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits[:, :-1].float()
                logp_BT = torch.log_softmax(logits_BTV, -1).gather(-1, ids_BT[:, 1:, None])[..., 0]
                nats -= float(logp_BT[counted_BT[:, 1:]].double().sum())
            tokens += int(counted_BT.sum())
    finally:
        model.train(was_training)
    return Bits(bits=nats / math.log(2), bytes=size, tokens=tokens)
