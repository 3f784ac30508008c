"""The back-off model is Kneser-Ney to the digit: by hand, against a slow dictionary version, and normalised."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest

from evals.baselines.ngram import STAND_IN, fit_ngram, ngram_bits_per_byte

HALVES = (0.5, 0.5, 0.5)


def test_bigrams_by_hand() -> None:
    """Bigrams of [0, 1, 0, 2]: (start, 0), (0, 1), (1, 0), (0, 2), once each; different predecessors 2, 1, 1 of 4.

    P1(0) = (2 - .5)/4 + (3 x .5/4)/3 = .5, P1(1) = P1(2) = .25; P(1|0) = (1 - .5)/2 + (2 x .5/2) x .25 = .375.
    """
    model = fit_ngram([[0, 1, 0, 2]], vocab_size=3, order=2, discounts=HALVES)
    assert model.distribution([0]) == pytest.approx([0.25, 0.375, 0.375], abs=1e-12)
    assert model.distribution([]) == pytest.approx([0.5 + 0.5 * 0.5, 0.125, 0.125], abs=1e-12)
    assert model.distribution([2]) == pytest.approx([0.5, 0.25, 0.25], abs=1e-12)  # 2 was never followed
    assert model.bits([[2, 2, 0]]) == pytest.approx([3, 2, 1], abs=1e-12)


def test_unigrams_by_hand() -> None:
    """Counts 3, 1, 0 of 4 at the highest order: P(0) = 2.5/4 + (1/4)/3, P(2) = (1/4)/3."""
    model = fit_ngram([[0, 0], [0, 1]], vocab_size=3, order=1, discounts=HALVES)
    assert model.distribution([1]) == pytest.approx([17 / 24, 5 / 24, 2 / 24], abs=1e-12)


def slow_kneser_ney(
    documents: Sequence[Sequence[int]], context: Sequence[int], *, order: int, size: int
) -> list[float]:
    """P(w | context) from dictionaries and the recursion as it is written; discounts by the same estimate."""
    start = ["s"] * (order - 1)
    seen = Counter[tuple[object, ...]]()
    for document in documents:
        padded = [*start, *document]
        for i in range(order - 1, len(padded)):
            seen[tuple(padded[i - order + 1 : i + 1])] += 1
    counts: dict[int, dict[tuple[object, ...], int]] = {order: dict(seen)}
    for n in range(order - 1, 0, -1):
        before: dict[tuple[object, ...], set[object]] = defaultdict(set)
        raw: Counter[tuple[object, ...]] = Counter()
        for gram, count in seen.items():
            raw[gram[-n:]] += count
        for gram in counts[n + 1]:
            before[gram[1:]].add(gram[0])
        counts[n] = {g: raw[g] if g[0] == "s" else len(before[g]) for g in before}

    def discount(n: int, count: int) -> float:
        of = Counter(counts[n].values())
        if min(of[1], of[2], of[3], of[4]) == 0:
            return 0.5 * min(count, 3)
        y = of[1] / (of[1] + 2 * of[2])
        every = [j - (j + 1) * y * of[j + 1] / of[j] for j in (1, 2, 3)]
        if not all(0 < d < j for j, d in enumerate(every, start=1)):
            return 0.5 * min(count, 3)
        return every[min(count, 3) - 1] if count else 0.0

    def probability(history: tuple[object, ...], token: int) -> float:
        n = len(history) + 1
        lower = probability(history[1:], token) if history else 1 / size
        row = {w: counts[n].get((*history, w), 0) for w in range(size)}
        total = sum(row.values())
        if total == 0:
            return lower
        handed = sum(discount(n, c) for c in row.values()) / total
        return max(row[token] - discount(n, row[token]), 0) / total + handed * lower

    history = tuple([*start, *context][len(context) :])
    return [probability(history, token) for token in range(size)]


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    """Sixty documents of a second-order chain over 6 tokens (end = 5): enough for every count of counts."""
    generator = np.random.default_rng(3)
    table = generator.dirichlet(np.full(5, 0.4), size=(6, 6))
    made = []
    for _ in range(60):
        document = [5, 5]
        while len(document) < 2 + generator.integers(2, 14):
            document.append(int(generator.choice(5, p=table[document[-2], document[-1]])))
        made.append([*document[2:], 5])
    return made


@pytest.mark.parametrize("order", [2, 3])
def test_against_the_slow_version(order: int) -> None:
    generator = np.random.default_rng(1)
    shares = 1 / np.arange(1, 31)
    texts = [
        [*generator.choice(30, p=shares / shares.sum(), size=generator.integers(1, 20)).tolist(), 30] for _ in range(60)
    ]
    model = fit_ngram(texts, vocab_size=31, order=order)
    assert model.orders[-1].discounts != STAND_IN  # the estimate is what is compared, not the stand-in
    for context in ([], [0], [1, 2], [29], [3, 1, 0], [0, 0, 1, 0], texts[0][:4]):
        expected = slow_kneser_ney(texts, context, order=order, size=31)
        assert model.distribution(context) == pytest.approx(expected, abs=1e-12)


def test_probabilities_sum_to_one(documents: list[list[int]]) -> None:
    model = fit_ngram(documents, vocab_size=7, order=5)  # token 6 never occurs
    generator = np.random.default_rng(0)
    for length in (0, 1, 2, 5, 9):
        p = model.distribution(generator.integers(7, size=length).tolist())
        assert p.min() > 0 and p.sum() == pytest.approx(1, abs=1e-12)


def test_documents_do_not_see_each_other(documents: list[list[int]]) -> None:
    model = fit_ngram(documents, vocab_size=6)
    apart = np.concatenate([model.bits([document]) for document in documents[:5]])
    assert model.bits(documents[:5]) == pytest.approx(apart, abs=1e-12)
    again = fit_ngram(documents[::-1], vocab_size=6)
    assert again.bits(documents[:5]) == pytest.approx(apart, abs=1e-12)


def test_longer_contexts_help_on_a_second_order_chain(documents: list[list[int]]) -> None:
    bits = [fit_ngram(documents[:50], vocab_size=6, order=n).bits(documents[50:]).mean() for n in (1, 2, 3)]
    assert bits[0] > bits[1] > bits[2]


class Letters:
    """One token per byte, end token 256."""

    eos_token_id = 256

    def __len__(self) -> int:
        return 257

    def __call__(self, texts: list[str], **options: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(text.encode()) for text in texts]}


def test_bits_per_byte_counts_bytes_and_end_tokens() -> None:
    train, held_out = ["the cat sat"] * 3 + ["a hat"], ["the h\u00e4t", "cat"]
    inner = ngram_bits_per_byte(train, held_out, Letters(), order=3)
    whole = ngram_bits_per_byte(train, held_out, Letters(), order=3, score_end=True)
    assert (inner.bytes, inner.tokens, whole.tokens, inner.train_tokens) == (11, 11, 13, 3 * 12 + 6)
    model = fit_ngram([[*text.encode(), 256] for text in train], vocab_size=257, order=3)
    by_document = [model.bits([[*text.encode(), 256]]) for text in held_out]
    assert inner.bits_per_byte == pytest.approx(sum(bits[:-1].sum() for bits in by_document) / 11)
    assert whole.bits_per_byte == pytest.approx(sum(bits.sum() for bits in by_document) / 11)
    assert inner.bits_per_token < math.log2(257)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="from 0 to 2"):
        fit_ngram([[0, 3]], vocab_size=3)
    with pytest.raises(ValueError, match="no tokens"):
        fit_ngram([[]], vocab_size=3)
    with pytest.raises(ValueError, match="from 0 to 2"):
        fit_ngram([[0, 1]], vocab_size=3).bits([[-1]])


def test_plain_back_off_by_hand() -> None:
    """[0, 1, 0, 2], D = 1/2: P1(0) = (2 - .5)/4 + (3 x .5/4)/3 = .5, P1(1) = P1(2) = (1 - .5)/4 + .125 = .25.

    After 0: 1 and 2 seen once each, (1 - .5)/2 = .25 each; alpha = (1 - .5) / (1 - .5) = 1, so P(0|0) = P1(0) = .5.
    After 1: 0 seen once, P(0|1) = .5; alpha = .5 / (1 - .5) = 1, so P(1|1) = P(2|1) = .25. 2 was never followed.
    """
    model = fit_ngram([[0, 1, 0, 2]], vocab_size=3, order=2, discounts=HALVES, smoothing="back-off")
    assert model.distribution([0]) == pytest.approx([0.5, 0.25, 0.25], abs=1e-12)
    assert model.distribution([1]) == pytest.approx([0.5, 0.25, 0.25], abs=1e-12)
    assert model.distribution([2]) == pytest.approx([0.5, 0.25, 0.25], abs=1e-12)


def test_plain_back_off_is_the_recursion_and_sums_to_one() -> None:
    """Against dictionaries and the recursion as it is written, at order 3, seen and unseen contexts."""
    rng = np.random.default_rng(3)
    documents = [
        rng.choice(6, size=int(n), p=[0.4, 0.25, 0.15, 0.1, 0.06, 0.04]).tolist() for n in rng.integers(3, 9, 25)
    ]
    size, order = 7, 3
    counts: list[Counter[tuple[object, ...]]] = [Counter() for _ in range(order + 1)]
    for document in documents:
        padded = ["s"] * (order - 1) + document
        for i in range(order - 1, len(padded)):
            for n in range(1, order + 1):
                counts[n][tuple(padded[i - n + 1 : i + 1])] += 1

    def probability(context: tuple[object, ...], token: int) -> float:
        n = len(context) + 1
        of = Counter(counts[n].values())
        discount = of[1] / (of[1] + 2 * of[2]) if of[1] and of[2] else 0.5
        after = {gram[-1]: c for gram, c in counts[n].items() if gram[:-1] == context}
        total = sum(after.values())
        if n == 1:
            return max(after.get(token, 0) - discount, 0) / total + discount * len(after) / total / size
        if not after:
            return probability(context[1:], token)
        if token in after:
            return (after[token] - discount) / total
        alpha = discount * len(after) / total / (1 - sum(probability(context[1:], int(str(w))) for w in after))
        return alpha * probability(context[1:], token)

    model = fit_ngram(documents, vocab_size=size, order=order, smoothing="back-off")
    for context in ([], [0], [0, 1], [1, 0, 2], [5, 5], [6, 0]):
        past = tuple((["s", "s"] + context)[-2:])
        expected = [probability(past, token) for token in range(size)]
        assert model.distribution(context) == pytest.approx(expected, abs=1e-12)
        assert sum(expected) == pytest.approx(1, abs=1e-12)


def test_unknown_smoothing_is_refused() -> None:
    with pytest.raises(ValueError, match="smoothing 'none'"):
        fit_ngram([[0, 1]], vocab_size=2, smoothing="none")
