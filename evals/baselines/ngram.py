"""A back-off 5-gram language model over token ids: the baseline that a neural model's bits per byte must beat.

Interpolated modified Kneser-Ney (Chen and Goodman 1999, eq. 26-28; Kneser and Ney 1995). With h the last n-1 tokens
and h' the same without its first,

    P_n(w | h) = max(c(hw) - D(c(hw)), 0) / c(h.)  +  [D_1 N_1(h) + D_2 N_2(h) + D_3 N_3+(h)] / c(h.) * P_{n-1}(w | h')
    P_1(w)     = the same with P_0 = 1 / vocabulary size;   h never seen:  P_n(w | h) = P_{n-1}(w | h')

c is the count at the highest order, and below it the number of different tokens seen before hw, padding being one
(the raw count where hw starts a document). N_j(h) counts the tokens that follow h exactly j times (3+: three or
more). The discounts of an order come from its counts of counts n_j, with Y = n_1 / (n_1 + 2 n_2):
D_j = j - (j + 1) Y n_{j+1} / n_j; they are 1/2, 1, 3/2 where some n_j is 0 or a D_j is not between 0 and j.

`smoothing="back-off"` is the plain model: raw counts at every order, one discount D = n_1 / (n_1 + 2 n_2) per order
(Ney, Essen and Kneser 1994), and the lower order for unseen tokens only (Katz 1987):

    P_n(w | h) = (c(hw) - D) / c(h.) if c(hw) > 0, else alpha(h) P_{n-1}(w | h'),   P_1 interpolated with 1 / vocabulary
    alpha(h)   = [1 - sum over w seen after h of P_n(w | h)] / [1 - sum over the same w of P_{n-1}(w | h')]

A document starts from an empty past (padding), and its end token is predicted like any other. Everything is sorted
int64 arrays: an n-gram's key is (id of its first n-1 tokens, last token), so any vocabulary fits. On one core 15
million tokens take 45 s and 4 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Discounts = tuple[float, float, float]  # D_1, D_2, D_3+

STAND_IN: Discounts = (0.5, 1.0, 1.5)
SMOOTHING = ("kneser-ney", "back-off")


@dataclass(frozen=True)
class _Order:
    """One order's table: n-grams by sorted key, and what their contexts (the (n-1)-grams) hand down."""

    keys: Ints  # sorted; key = context id * (vocabulary + 1) + token; an n-gram's id is its position here
    direct: Floats  # per n-gram: max(c - D, 0) / c(h.)
    handed: Floats  # per context id: the lower order's factor; 1 where the context was never followed by a token
    discounts: Discounts


@dataclass(frozen=True)
class NgramModel:
    """A fitted model; `fit_ngram` makes it."""

    orders: tuple[_Order, ...]
    vocab_size: int
    smoothing: str = SMOOTHING[0]

    @property
    def order(self) -> int:
        """The n of the longest n-gram."""
        return len(self.orders)

    def bits(self, documents: Sequence[Sequence[int]]) -> Floats:
        """Bits (-log2 P) of every token of `documents`, in order, each document from an empty past.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        tokens, predicted = _stream(documents, order=self.order, vocab_size=self.vocab_size)
        probability = np.full(len(tokens), 1.0 / self.vocab_size)
        ids: Ints = np.zeros(len(tokens), dtype=np.int64)  # of the (n-1)-gram that ends at a position; -1 unseen
        for table in self.orders:
            context = _shift(ids)
            ids = _look_up(table.keys, context, tokens, self.vocab_size)
            seen = context >= 0
            handed = np.where(seen, table.handed[np.maximum(context, 0)], 1.0)
            direct = np.where(ids >= 0, table.direct[np.maximum(ids, 0)], 0.0)
            lower = handed * probability
            if self.smoothing == "back-off" and table is not self.orders[0]:
                lower[direct > 0] = 0.0
            probability = direct + lower
        return -np.log2(probability[predicted])

    def distribution(self, context: Sequence[int]) -> Floats:
        """P(w | document so far = context) over the whole vocabulary, shape (vocab_size,)."""
        every = [[*context, token] for token in range(self.vocab_size)]
        last = np.cumsum([len(document) for document in every]) - 1
        return np.exp2(-self.bits(every)[last])


@dataclass(frozen=True)
class NgramScore:
    """What a back-off model needs for held-out texts."""

    bits_per_byte: float  # total bits / UTF-8 bytes of the texts
    bits_per_token: float
    tokens: int  # scored tokens, end tokens included when they are scored
    bytes: int
    train_tokens: int
    order: int
    end_scored: bool
    smoothing: str = SMOOTHING[0]


def fit_ngram(
    documents: Sequence[Sequence[int]],
    *,
    vocab_size: int,
    order: int = 5,
    discounts: Discounts | None = None,
    smoothing: str = SMOOTHING[0],
) -> NgramModel:
    """Count `documents` (token ids, each with its end token if that is to be predicted) and smooth.

    Args:
        vocab_size: ids run from 0 to vocab_size - 1.
        order: n of the longest n-gram.
        discounts: (D_1, D_2, D_3+) for all orders; by default each order's own estimate from its counts of counts.
        smoothing: "kneser-ney" or "back-off" (the plain model: of `discounts` only D_1, for every count).
    Raises:
        ValueError: no tokens, an id outside the vocabulary, order below 1, or an unknown smoothing.
    """
    if order < 1:
        raise ValueError(f"order {order}: at least 1")
    if smoothing not in SMOOTHING:
        raise ValueError(f"smoothing {smoothing!r} is not one of {', '.join(SMOOTHING)}")
    tokens, predicted = _stream(documents, order=order, vocab_size=vocab_size)
    if not predicted.any():
        raise ValueError("no tokens to count")
    ids: Ints = np.zeros(len(tokens), dtype=np.int64)
    levels = []  # per order: sorted keys, the id of the n-gram at each position, and of its context
    for _ in range(order):
        context = _shift(ids)
        keys, ids = np.unique(context * (vocab_size + 1) + tokens, return_inverse=True)
        levels.append((keys, ids, context))
    if smoothing == "back-off":
        return NgramModel(
            _back_off(levels, predicted, vocab_size=vocab_size, discounts=discounts), vocab_size, smoothing
        )
    tables = []
    for n, (keys, ids, context) in enumerate(levels, start=1):
        higher = levels[n] if n < order else None
        counts = _counts(tokens, predicted, ids, len(keys), higher=higher, span=n, vocab_size=vocab_size)
        contexts = int(context.max()) + 1 if n == 1 else len(levels[n - 2][0])
        tables.append(_table(keys, counts, contexts=contexts, vocab_size=vocab_size, discounts=discounts))
    return NgramModel(orders=tuple(tables), vocab_size=vocab_size)


def ngram_bits_per_byte(
    train: Sequence[str],
    held_out: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    order: int = 5,
    score_end: bool = False,
    smoothing: str = SMOOTHING[0],
) -> NgramScore:
    """Fit on `train` and score `held_out`, tokenized as for a neural model: each text followed by the end token.

    Args:
        tokenizer: a Hugging Face tokenizer with an end token.
        score_end: also count the bits of the end tokens, which have no bytes; `align.training.bits` does not.
    Raises:
        ValueError: no tokens to train on, or no bytes to score.
    """
    from align.data.pack import encode

    end = tokenizer.eos_token_id
    documents = [[*ids, end] for ids in encode(train, tokenizer)]
    model = fit_ngram(documents, vocab_size=len(tokenizer), order=order, smoothing=smoothing)
    scored = [[*ids, end] for ids in encode(held_out, tokenizer)]
    bits = model.bits(scored)
    if not score_end:
        last = np.cumsum([len(document) for document in scored]) - 1
        bits = np.delete(bits, last)
    size = sum(len(text.encode("utf-8")) for text in held_out)
    if size == 0:
        raise ValueError("no held-out bytes to score")
    return NgramScore(
        bits_per_byte=float(bits.sum() / size),
        bits_per_token=float(bits.mean()),
        tokens=len(bits),
        bytes=size,
        train_tokens=sum(len(document) for document in documents),
        order=order,
        end_scored=score_end,
        smoothing=smoothing,
    )


def _stream(documents: Sequence[Sequence[int]], *, order: int, vocab_size: int) -> tuple[Ints, NDArray[np.bool_]]:
    """All documents in one array, each after order - 1 paddings (= vocab_size); and which positions are predicted."""
    padding = max(order - 1, 1)
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    starts = np.cumsum(lengths + padding) - lengths
    tokens = np.full(int((lengths + padding).sum()), vocab_size, dtype=np.int64)
    for start, document in zip(starts, documents, strict=True):
        tokens[start : start + len(document)] = document
    predicted = np.ones(len(tokens), dtype=bool)
    for back in range(1, padding + 1):
        predicted[starts - back] = False
    if len(tokens) and (tokens[predicted].min(initial=0) < 0 or tokens[predicted].max(initial=0) >= vocab_size):
        raise ValueError(f"token ids must be from 0 to {vocab_size - 1}")
    return tokens, predicted


def _shift(ids: Ints) -> Ints:
    """The n-gram id one position earlier: the context of the token at each position."""
    return np.concatenate([ids[:1], ids[:-1]])


def _look_up(keys: Ints, context: Ints, tokens: Ints, vocab_size: int) -> Ints:
    """Ids of the n-grams (context, token), -1 where unseen."""
    wanted = np.where(context >= 0, context * (vocab_size + 1) + tokens, -1)
    found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[found] == wanted, found, -1)


def _counts(
    tokens: Ints,
    predicted: NDArray[np.bool_],
    ids: Ints,
    size: int,
    *,
    higher: tuple[Ints, Ints, Ints] | None,
    span: int,
    vocab_size: int,
) -> Ints:
    """c per n-gram: occurrences at the highest order or at a document's start, else different tokens seen before it."""
    raw = np.bincount(ids[predicted], minlength=size)
    if higher is None:
        return raw
    # position of one occurrence of every n-gram of the next order that ends in a predicted token
    where = np.full(len(higher[0]), -1, dtype=np.int64)
    positions = np.flatnonzero(predicted)
    where[higher[1][positions]] = positions
    different = np.bincount(ids[where[where >= 0]], minlength=size)
    at_start = np.zeros(size, dtype=bool)
    first = np.maximum(positions - (span - 1), 0)
    at_start[ids[positions[tokens[first] == vocab_size]]] = True
    return np.where(at_start, raw, different)


def _table(keys: Ints, counts: Ints, *, contexts: int, vocab_size: int, discounts: Discounts | None) -> _Order:
    discounts = discounts or _discounts(counts)
    steps = np.array([0.0, *discounts])[np.minimum(counts, 3)]  # D(c) of each n-gram
    owner = keys // (vocab_size + 1)
    total = np.bincount(owner, weights=counts, minlength=contexts)
    removed = np.bincount(owner, weights=np.minimum(steps, counts), minlength=contexts)
    followed = total > 0
    handed = np.divide(removed, total, out=np.ones(contexts), where=followed)
    direct = np.divide(np.maximum(counts - steps, 0), total[owner], out=np.zeros(len(keys)), where=followed[owner])
    return _Order(keys=keys, direct=direct, handed=handed, discounts=discounts)


def _back_off(
    levels: Sequence[tuple[Ints, Ints, Ints]],
    predicted: NDArray[np.bool_],
    *,
    vocab_size: int,
    discounts: Discounts | None,
) -> tuple[_Order, ...]:
    """The tables of the plain model, lowest order first, from each order's (keys, ids, context ids) of `fit_ngram`."""
    tables: list[_Order] = []
    for n, (keys, ids, context) in enumerate(levels, start=1):
        contexts = int(context.max()) + 1 if n == 1 else len(levels[n - 2][0])
        counts = np.bincount(ids[predicted], minlength=len(keys))
        d = discounts[0] if discounts else _one_discount(counts)
        table = _table(keys, counts, contexts=contexts, vocab_size=vocab_size, discounts=(d, d, d))
        if n > 1:
            suffix: Ints = np.zeros(len(keys), dtype=np.int64)  # id of each n-gram without its first token
            suffix[ids] = levels[n - 2][1]
            below = tables[-1].direct + (tables[0].handed[0] / vocab_size if n == 2 else 0.0)
            owner, seen = keys // (vocab_size + 1), counts > 0
            covered = np.bincount(owner[seen], weights=below[suffix[seen]], minlength=contexts)
            followed = np.bincount(owner[seen], minlength=contexts) > 0
            handed = np.divide(table.handed, 1 - covered, out=np.ones(contexts), where=followed & (covered < 1))
            table = _Order(keys=keys, direct=table.direct, handed=handed, discounts=table.discounts)
        tables.append(table)
    return tuple(tables)


def _one_discount(counts: Ints) -> float:
    """n_1 / (n_1 + 2 n_2), or 1/2 where one of them is 0."""
    n1, n2 = (int((counts == j).sum()) for j in (1, 2))
    return n1 / (n1 + 2 * n2) if n1 and n2 else STAND_IN[0]


def _discounts(counts: Ints) -> Discounts:
    """D_1, D_2, D_3+ from the counts of counts, or the stand-in where there are too few n-grams to estimate them."""
    n1, n2, n3, n4 = (int((counts == j).sum()) for j in range(1, 5))
    if min(n1, n2, n3, n4) == 0:
        return STAND_IN
    y = n1 / (n1 + 2 * n2)
    estimate = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    if not all(0 < d < j for j, d in enumerate(estimate, start=1)):
        return STAND_IN
    return estimate
