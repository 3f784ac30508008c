"""Bits per byte of a causal LM: a likelihood that can be compared across tokenizers, and the measure of alignment tax.

Each document is scored by itself after a start token (the tokenizer's bos, else its end token, which is what stands
before a document in packed training). Its end token stands for no byte and is scored only when asked for. A document
longer than the context is read in windows that overlap by half; every token is scored once, with at least half a
context before it, or all there is.
Legend: B windows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.errors import UserError
from align.models import context_of
from align.models.chat import FormatError
from align.models.formats import formatter
from align.models.reading import Reader, Row, evaluated

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


def text_bits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    context: int | None = None,
    score_end: bool = False,
    batch_size: int = 16,
) -> Bits:
    """Total negative log-likelihood of `texts`: `per_byte` is over their total bytes, not the mean of ratios.

    `context` is in tokens, start token included (None: all the model's positions). UserError when the texts hold no
    byte.
    """
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    limit = _limit(model, context)
    end = [tokenizer.eos_token_id] if score_end else []
    windows: list[Row] = []
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
    """The completions' code length given their prompts (demonstrations) in the tokenizer's prompt format.

    Prompt bytes and what closes a reply do not count, nor do rows whose prompt a template cannot say.
    """
    limit, form, size = _limit(model, context), formatter(tokenizer), 0
    windows: list[Row] = []
    for row in rows:
        try:
            prompt, completion = form.row(row["prompt"], row["completion"], ended=False)
        except FormatError:
            continue
        prompt = prompt or [tokenizer.eos_token_id]
        windows += _windows([*prompt, *completion], len(prompt), limit)
        size += len(form.said(row["prompt"], row["completion"]).encode())
    return _total(model, tokenizer, windows, size, batch_size)


def _limit(model: PreTrainedModel, context: int | None) -> int:
    limit = min(filter(None, (context, context_of(model))), default=1024)
    if limit < 2:
        raise UserError(f"bits per byte need a context of at least 2 tokens, not {limit}")
    return limit


def _windows(ids: list[int], first: int, limit: int) -> list[Row]:
    """Windows of at most `limit` tokens, (what is read before, what is scored), in which every position from `first` on
    is scored exactly once.
    """
    windows: list[Row] = []
    while first < len(ids):
        # The whole text up to `limit` if it fits, else half a window of context before the first unscored token.
        begin = 0 if len(ids) <= limit or first < limit - limit // 2 else first - limit // 2
        end = min(begin + limit, len(ids))
        windows.append((ids[begin:first], ids[first:end]))
        first = end
    return windows


def _total(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, windows: list[Row], size: int, batch_size: int
) -> Bits:
    if size == 0:
        raise UserError("bits per byte were asked of texts without a single byte; give some text")
    nats, tokens = 0.0, 0
    windows = sorted(windows, key=lambda window: len(window[0]) + len(window[1]))
    reader = Reader(pad_id=tokenizer.pad_token_id, batch_size=batch_size)
    with evaluated(model):
        for batch, logp_BT in reader.read(model, windows):
            nats -= float(logp_BT[batch.scored_BT[:, 1:]].double().sum())
            tokens += int(batch.scored_BT.sum())
    return Bits(bits=nats / math.log(2), bytes=size, tokens=tokens)
